"""Checkpoints for tests, in the layout that the trainer writes."""

import json

from safetensors.numpy import load_file

from sd.runs.checkpoint import CheckpointWriter


def save_checkpoint(repository, output_dir, step, ema=False):
    """checkpoint-N of a v-prediction run: the repository's UNet with weights scaled by 1 - N/100, its EMA by 1/2."""
    tensors = load_file(repository / "unet" / "diffusion_paddle_model.safetensors")
    name = "unet/diffusion_paddle_model"
    writer = CheckpointWriter(output_dir, step)
    writer.write_json("unet/config.json", json.loads((repository / "unet/config.json").read_text()))
    writer.write_tensors(f"{name}.safetensors", {key: value * (1 - step / 100) for key, value in tensors.items()})
    if ema:
        writer.write_tensors(f"{name}.ema.safetensors", {key: value * 0.5 for key, value in tensors.items()})
    writer.write_json("settings.json", {"prediction_type": "v_prediction", "model_max_length": 20})
    writer.commit()


def make_output_dir(repository, folder):
    """Checkpoints 5 and 10, the later one with a moving average, of a run at 24 pixels."""
    for step in (5, 10):
        save_checkpoint(repository, folder, step, ema=step == 10)
    arguments = {
        "SDModelArguments": {"pretrained_model_name_or_path": repository.name, "vae_name_or_path": None},
        "SDDataArguments": {"resolution": 24},
    }
    (folder / "run.json").write_text(json.dumps({"folder": str(repository.parent), "arguments": arguments}))
    return folder
