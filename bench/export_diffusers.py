"""An exported pipeline in Hugging Face diffusers on PyTorch against the same in Paddle: texts, UNet, pictures.

    python -m bench export_diffusers write FOLDER          with this toolkit: export, and keep what Paddle computes
    sh bench/torch_env.sh -m bench.export_diffusers check FOLDER      with PyTorch: load it and compare

Models: demo/tiny_sd with a random UNet of demo/unet_config.json; `write FOLDER CHECKPOINT` takes a trained one.
Fails if a UNet output differs by over 1e-4 or a picture of 20 DDIM steps by over 2 of 255.
"""

import argparse
from pathlib import Path

import numpy as np

from bench.results import ROOT, Results

PROMPTS = ["a red circle on a black background", "a blue square on a white background", ""]
STEPS, GUIDANCE = 20, 7.5


def write(folder, checkpoint):
    """Export in both layouts and record Paddle's results beside them."""
    from sd import runtime

    runtime.prepare()
    import paddle
    from ppdiffusers import UNet2DConditionModel

    from sd.sampling.export import export_pipeline, export_single_file
    from sd.sampling.models import load_models
    from sd.sampling.pipeline import denoise, draw_images, encode_prompt, initial_noise, vae_factor

    if checkpoint is None:
        paddle.seed(0)
        unet = UNet2DConditionModel.from_config(str(ROOT / "demo/unet_config.json"))
        unet.save_pretrained(str(folder / "random/unet"), safe_serialization=True)
        models = load_models(str(folder / "random/unet"), pretrained_model=str(ROOT / "demo/tiny_sd"))
    else:
        models = load_models(checkpoint)
    export_pipeline(models, folder / "diffusers", "diffusers")
    export_pipeline(models, folder / "ppdiffusers", "ppdiffusers")
    export_single_file(models, folder / "model.safetensors")
    parts = (models.unet, models.vae, models.text_encoder, models.tokenizer)
    side = models.unet.config.sample_size * vae_factor(models.vae)
    shape = (models.unet.config.in_channels, *[models.unet.config.sample_size] * 2)
    noise = np.stack([initial_noise(seed, shape) for seed in range(len(PROMPTS))])
    with paddle.no_grad():
        states = paddle.concat([encode_prompt(*parts[2:], prompt) for prompt in PROMPTS])
        timesteps = paddle.to_tensor([981, 500, 1])
        output = models.unet(paddle.to_tensor(noise), timesteps, states).sample
        scheduler = models.scheduler("ddim")
        scheduler.set_timesteps(STEPS)
        empty = paddle.concat([states[2:]] * len(PROMPTS))
        latents = denoise(models.unet, scheduler, paddle.to_tensor(noise), states, empty, GUIDANCE)
    images = draw_images(
        models,
        PROMPTS,
        seeds=range(len(PROMPTS)),
        height=side,
        width=side,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        scheduler=models.scheduler("ddim"),
    )
    results = {"noise": noise, "states": states, "output": output, "latents": latents, "images": images}
    np.savez(folder / "paddle.npz", timesteps=timesteps, **{name: np.asarray(value) for name, value in results.items()})
    print(f"written: {folder}")


def check(folder):
    """Load the export with diffusers, compute the same, print the largest differences and fail if one is too large."""
    import diffusers

    whole = {"folder": diffusers.StableDiffusionPipeline.from_pretrained(folder / "diffusers", safety_checker=None)}
    # The configurations are given, since diffusers knows those of the published sizes alone.
    whole["one file"] = diffusers.StableDiffusionPipeline.from_single_file(
        str(folder / "model.safetensors"), config=str(folder / "diffusers"), safety_checker=None
    )
    counted = f"largest difference over {len(PROMPTS)} prompts, {STEPS} DDIM steps, guidance {GUIDANCE}"
    table = Results("export_diffusers", ["export", "what", "difference", "limit"], counted)
    agree = [compare(table, name, pipeline, folder) for name, pipeline in whole.items()]
    if not all(agree):
        raise SystemExit("the export does not agree")


def compare(table, name, pipeline, folder):
    """Record the largest differences between a pipeline of diffusers and Paddle's results; whether all are small."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    ours = np.load(folder / "paddle.npz")
    noise = torch.from_numpy(ours["noise"])
    with torch.no_grad():
        states = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        output = pipeline.unet(noise, torch.from_numpy(ours["timesteps"]), states).sample
    images = pipeline(
        PROMPTS, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np"
    ).images
    differences = {
        "text states": (np.abs(states.numpy() - ours["states"]).max(), 1e-4),
        "UNet output": (np.abs(output.numpy() - ours["output"]).max(), 1e-4),
        "picture, of 255": (np.abs((images * 255).round() - ours["images"].astype(float)).max(), 2),
    }
    for what, (difference, limit) in differences.items():
        table.add(export=name, what=what, difference=float(difference), limit=limit)
    return all(difference <= limit for difference, limit in differences.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", nargs="?")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.checkpoint) if arguments.action == "write" else check(arguments.folder)


if __name__ == "__main__":
    main()
