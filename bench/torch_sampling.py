"""Sampling with Hugging Face diffusers on PyTorch: a contender of bench/sampling.py, which starts it with
`sh bench/torch_env.sh` and writes a line to it for each drawing that it is to measure.

    python bench/torch_sampling.py UNET_CONFIG MODELS_FOLDER '{"count": 72, "batch": 36, "steps": 20, ...}'

Answers with a line of JSON: processor seconds, and those of the clock. Weights are random, which costs the same.
"""

import json
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel


def load(unet_config, models):
    """(UNet, VAE, text encoder) of the configurations."""
    reported = json.loads((models / "vae/config.json").read_text())
    vae = AutoencoderKL.from_config({name: value for name, value in reported.items() if value is not None})
    text_encoder = CLIPTextModel(
        CLIPTextConfig.from_dict(json.loads((models / "text_encoder/config.json").read_text()))
    )
    unet = UNet2DConditionModel.from_config(json.loads(unet_config.read_text()))
    return unet.eval(), vae.eval(), text_encoder.eval()


@torch.no_grad()
def draw(unet, vae, text_encoder, scheduler, count, batch, steps, guidance, side, length):
    """Pictures as StableDiffusionPipeline draws them, in batches: uint8 [batch, side, side, 3]."""
    words = text_encoder.config.vocab_size
    for _ in range(0, count, batch):
        ids = torch.randint(words, (2 * batch, length))
        states = text_encoder(ids)[0]
        size = side // 2 ** (len(vae.config.block_out_channels) - 1)
        latents = torch.randn(batch, unet.config.in_channels, size, size)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            both = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=states, return_dict=False)[0]
            base, towards = both.chunk(2)
            output = base + guidance * (towards - base)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        pixels = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        (pixels.permute(0, 2, 3, 1) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def main():
    models = load(Path(sys.argv[1]), Path(sys.argv[2]))
    settings = json.loads(sys.argv[3])
    torch.set_num_threads(settings.pop("threads"))
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        processor, clock = time.process_time(), time.perf_counter()
        draw(*models, scheduler, **settings)
        print(json.dumps([time.process_time() - processor, time.perf_counter() - clock]), flush=True)


if __name__ == "__main__":
    main()
