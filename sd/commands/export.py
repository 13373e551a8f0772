"""Write a checkpoint as a whole pipeline: a folder for ppdiffusers or diffusers, or one file for ComfyUI and A1111."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd import devices, runtime
from sd.flags.arguments import refuse_empty
from sd.flags.idle import refuse_idle
from sd.flags.models import ModelNames
from sd.flags.options import REQUIRED, option, parse
from sd.logs import import_quietly, set_up_logging
from sd.runs.locate import find_unet
from sd.sampling.card import check_files, check_free, write_card
from sd.sampling.export import check_output, export_pipeline, export_single_file
from sd.sampling.settings import check_scheduler
from sd.sampling.sources import find_sources

FORMATS = ("ppdiffusers", "diffusers", "single_file")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelNames):
    """The flags of export.py. Raises InputError for flags without an effect."""

    checkpoint: str = option(REQUIRED, "checkpoint-N, output_dir (its newest) or a model", metavar="NAME")
    output: str = option(REQUIRED, "folder, or file.safetensors, to be made", metavar="PATH")
    format: str = option(
        "ppdiffusers",
        "folder for ppdiffusers or for diffusers on PyTorch, or one file in the CompVis v1 layout",
        choices=FORMATS,
    )
    dtype: str = option("fp32", "of the weights in one file", choices=("fp32", "fp16"))
    card: bool = option(False, "also write a model card from the run's settings: README.md")
    scores: str | None = option(None, "metrics.json of eval.py --metrics, for the card", metavar="FILE")
    picture: str | None = option(None, "a grid of pictures, copied beside the card", metavar="FILE")
    variant: str | None = option(
        None, "`ema` for the moving average of the UNet's weights (default: the weights themselves)"
    )
    scheduler: str | None = option(None, "ddim, pndm, lms, euler, heun or dpm (default: ddim)")

    def __post_init__(self):
        refuse_empty(self)
        one_file = self.format == "single_file"
        rules = [
            (one_file, "dtype", "without --format single_file; a folder holds fp32"),
            (not one_file, "scheduler", "with --format single_file, which holds weights alone"),
            (self.card, "scores picture", "without --card"),
        ]
        refuse_idle(self, rules)
        check_scheduler(self.scheduler)


def parse_arguments(arguments: Sequence[str] | None = None) -> ExportOptions:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    return parse(ExportOptions, arguments, description=__doc__)


def main() -> None:
    """Load the parts, write the folder."""
    flags = parse_arguments()
    find_sources(flags.checkpoint, variant=flags.variant, **flags.models).check(scheduler=flags.scheduler)
    check_output(flags.output, one_file=flags.format == "single_file")
    check_files(flags.scores, flags.picture)
    if flags.card and flags.format == "single_file":
        check_free(Path(flags.output), flags.picture)
    runtime.prepare("cpu")
    set_up_logging()
    import_quietly()
    from sd.sampling.models import load_models

    devices.select("cpu")
    models = load_models(flags.checkpoint, variant=flags.variant, **flags.models)
    if flags.format == "single_file":
        written = export_single_file(models, flags.output, flags.dtype)
    else:
        written = export_pipeline(models, flags.output, flags.format, flags.scheduler)
    print(f"{models.label} for {flags.format}: {written}")
    if flags.card:
        checkpoint = find_unet(flags.checkpoint).checkpoint
        print(f"model card: {write_card(checkpoint, written, models, flags.scores, flags.picture)}")
