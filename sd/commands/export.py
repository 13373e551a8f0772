"""Write a checkpoint as a whole pipeline: a folder for ppdiffusers or diffusers, or one file for ComfyUI and A1111."""

import argparse
from collections.abc import Sequence

from sd import devices, runtime
from sd.flags.idle import refuse_idle
from sd.flags.models import add_model_flags
from sd.flags.parser import Parser
from sd.logs import import_quietly, set_up_logging

FORMATS = ("ppdiffusers", "diffusers", "single_file")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="NAME",
        help="checkpoint-N, output_dir (its newest) or a model",
    )
    add("--output", required=True, metavar="PATH", help="folder, or file.safetensors, to be made")
    add(
        "--format",
        choices=FORMATS,
        default="ppdiffusers",
        help="folder for ppdiffusers or for diffusers on PyTorch, or one file in the CompVis v1 layout "
        "(default: %(default)s)",
    )
    add("--dtype", choices=("fp32", "fp16"), default="fp32", help="of the weights in one file (default: %(default)s)")
    add("--card", action="store_true", help="also write a model card from the run's settings: README.md")
    add("--scores", metavar="FILE", help="metrics.json of eval.py --metrics, for the card")
    add("--picture", metavar="FILE", help="a grid of pictures, copied beside the card")
    add("--variant", help="`ema` for the moving average of the UNet's weights (default: the weights themselves)")
    add("--scheduler", help="ddim, pndm, lms, euler, heun or dpm (default: ddim)")
    add_model_flags(add)
    flags = parser.parse_args(arguments)
    one_file = flags.format == "single_file"
    rules = [
        (one_file, "dtype", "without --format single_file; a folder holds fp32"),
        (not one_file, "scheduler", "with --format single_file, which holds weights alone"),
        (flags.card, "scores picture", "without --card"),
    ]
    refuse_idle(flags, rules, {name: parser.get_default(name) for name in vars(flags)})
    return flags


def main() -> None:
    """Load the parts, write the folder."""
    flags = parse_arguments()
    runtime.prepare("cpu")
    set_up_logging()
    import_quietly()
    from sd.runs.locate import find_unet
    from sd.sampling.card import write_card
    from sd.sampling.export import export_pipeline, export_single_file
    from sd.sampling.models import load_models

    devices.select("cpu")
    models = load_models(
        flags.checkpoint,
        pretrained_model=flags.pretrained_model,
        text_encoder=flags.text_encoder,
        vae=flags.vae,
        tokenizer=flags.tokenizer,
        variant=flags.variant,
    )
    if flags.format == "single_file":
        written = export_single_file(models, flags.output, flags.dtype)
    else:
        written = export_pipeline(models, flags.output, flags.format, flags.scheduler)
    print(f"{models.label} for {flags.format}: {written}")
    if flags.card:
        checkpoint = find_unet(flags.checkpoint).checkpoint
        print(f"model card: {write_card(checkpoint, written, models, flags.scores, flags.picture)}")
