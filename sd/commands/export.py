"""Write a checkpoint as a whole pipeline folder, for ppdiffusers or for diffusers on PyTorch."""

import argparse

from sd import devices, runtime, versions
from sd.flags.models import add_model_flags
from sd.logs import import_quietly


def parse_arguments(arguments=None):
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="NAME", help="output_dir/checkpoint-N, or output_dir (its newest)")
    add("--output", required=True, metavar="DIR", help="folder to be made")
    add("--format", default="ppdiffusers", help="ppdiffusers or diffusers (default: %(default)s)")
    add("--variant", help="`ema` for the moving average of the UNet's weights (default: the weights themselves)")
    add("--scheduler", help="ddim, pndm, lms, euler, heun or dpm (default: ddim)")
    add_model_flags(add)
    return parser.parse_args(arguments)


def main():
    """Load the parts, write the folder."""
    flags = parse_arguments()
    versions.check()
    runtime.prepare("cpu")
    import_quietly()
    from sd.sampling.export import export_pipeline
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
    folder = export_pipeline(models, flags.output, flags.format, flags.scheduler)
    print(f"{models.label} for {flags.format}: {folder}")
