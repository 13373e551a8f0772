"""A checkpoint with everything else that its pipeline needs, as one folder for ppdiffusers or for diffusers."""

import shutil
from pathlib import Path

from sd.errors import InputError, RunError
from sd.flags.arguments import check_choice

FORMATS = ("ppdiffusers", "diffusers")


def export_pipeline(models, output, layout, scheduler=None):
    """Write UNet, VAE, text encoder, tokenizer and scheduler to `output`, which appears only when it is whole.

    models: sd.sampling.models.Models. layout: `ppdiffusers`, or `diffusers` for PyTorch (matrices transposed, its own
    names of files). The weights are float32 safetensors. Raises InputError if output holds something already.
    """
    from ppdiffusers import StableDiffusionPipeline

    check_choice("format", layout, FORMATS)
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output={str(output)!r} is there already; remove it or choose another")
    pipeline = StableDiffusionPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        unet=models.unet,
        scheduler=models.scheduler(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # What paddlenlp saves is what it once loaded, and the run may have cut captions shorter.
    models.tokenizer.init_kwargs["model_max_length"] = models.tokenizer.model_max_length
    aside = output.with_name(f".{output.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        pipeline.save_pretrained(str(aside), safe_serialization=True, to_diffusers=layout == "diffusers")
        for weights in aside.rglob("*.safetensors"):  # which safetensors lets its owner alone read
            shutil.copymode(aside / "model_index.json", weights)
        if output.exists():
            output.rmdir()
        aside.rename(output)
    except (OSError, RuntimeError) as error:  # safetensors' error for a full disk is its own
        shutil.rmtree(aside, ignore_errors=True)
        raise RunError(f"{output} not written: {error}; free space or choose another --output") from error
    return output
