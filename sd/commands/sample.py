"""Draw pictures from a trained checkpoint or from published weights."""

from collections.abc import Sequence
from dataclasses import replace

from sd import runtime
from sd.flags.options import parse
from sd.logs import import_quietly, set_up_logging
from sd.sampling.options import ASTRONAUT, SampleOptions


def parse_arguments(arguments: Sequence[str] | None = None) -> SampleOptions:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    description = (
        "Draw pictures from a checkpoint or from published weights: PNG files that hold their prompt and "
        "settings, and a labelled grid of them. With no arguments the published Stable Diffusion v1-4 draws "
        f"{ASTRONAUT!r}, 512 x 512, into astronaut_rides_horse.png."
    )
    return parse(SampleOptions, arguments, description=description)


def main() -> None:
    """Read the flags, set the machine up, draw."""
    flags = parse_arguments()
    if flags.unet:  # a wrong name is answered before Paddle is imported
        from sd.runs.locate import find_unet

        flags = replace(flags, unet=find_unet(flags.unet).folder)
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
