"""Draw pictures from a trained checkpoint or from published weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sd import devices, runtime
from sd.errors import ArgumentError
from sd.flags.options import parse
from sd.logs import import_quietly, set_up_logging
from sd.metrics.inputs import check_inputs
from sd.runs.locate import PUBLISHED
from sd.sampling.compare import Column, find_columns
from sd.sampling.files import check_folder
from sd.sampling.options import ASTRONAUT, SampleOptions
from sd.sampling.settings import check_guidance
from sd.sampling.sources import find_sources


def parse_arguments(arguments: Sequence[str] | None = None) -> SampleOptions:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    description = (
        "Draw pictures from a checkpoint or from published weights: PNG files that hold their prompt and "
        "settings, and a labelled grid of them. With no arguments the published Stable Diffusion v1-4 draws "
        f"{ASTRONAUT!r}, 512 x 512, into astronaut_rides_horse.png."
    )
    return parse(SampleOptions, arguments, description=description)


def check(flags: SampleOptions) -> None:
    """Raise InputError for what local files and the installed Paddle show to be wrong, before the seconds of Paddle's
    import."""
    devices.check_flags(flags.device, flags.dtype)
    flags.read_prompts()
    if flags.output:
        output = Path(flags.output)
        is_png = output.suffix.lower() == ".png"
        if is_png and output.is_dir():
            raise ArgumentError("output", flags.output, " is a folder; name another file.png, or a folder without .png")
        check_folder(output.parent if is_png else output)
    check_inputs(flags)
    # The checkpoints of a watched run may be still to come.
    unet = f"{PUBLISHED}/unet" if flags.watch else flags.unet
    columns = [Column("", unet, flags.variant, flags.guidance_scale)]
    if flags.compare:
        columns = find_columns(flags.compare, flags.unet, flags.variant, flags.guidance_scale)
    flags = flags.with_preset()
    for column in columns:
        check_guidance("compare" if flags.compare else "guidance_scale", column.guidance_scale)
        sources = find_sources(column.unet, variant=column.variant, **flags.models)
        sources.check(flags.height, flags.width, flags.scheduler)


def main() -> None:
    """Read the flags, set the machine up, draw."""
    flags = parse_arguments()
    check(flags)
    runtime.prepare(flags.device)
    set_up_logging()
    import_quietly()
    from sd.metrics.measure import measure
    from sd.metrics.watch import watch
    from sd.sampling.run import run

    if flags.watch:
        watch(flags)
    elif flags.metrics:
        measure(flags, flags.unet, flags.variant)
    elif flags.prompt or flags.prompts_file:
        run(flags)
    else:
        run(replace(flags, prompt=[ASTRONAUT], output=flags.output or "astronaut_rides_horse.png"))
