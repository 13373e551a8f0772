"""Training with Hugging Face diffusers on PyTorch, as its script for text-to-image does it: a contender of
bench/training.py, which starts it with `sh bench/torch_env.sh`.

Reads the same configurations and the same records as the other contenders; weights are random, which costs the same.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SNR_GAMMA = 5.0


class Images(torch.utils.data.Dataset):
    """Pictures of a JSONL: the short side resized, a random square cut out, floats from -1 to 1."""

    def __init__(self, jsonl, tokenizer, length, resolution):
        self.rows = [json.loads(line) for line in Path(jsonl).read_text().splitlines()]
        self.folder, self.tokenizer, self.length, self.resolution = Path(jsonl).parent, tokenizer, length, resolution

    def __len__(self):
        return len(self.rows)

    def ids(self, row):
        caption = "" if random.random() < 0.1 else row["caption"]
        encoded = self.tokenizer(caption, padding="max_length", truncation=True, max_length=self.length)
        return torch.tensor(encoded.input_ids)

    def __getitem__(self, index):
        row, side = self.rows[index], int(self.resolution / 0.9)
        image = Image.open(self.folder / row["image"]).convert("RGB")
        scale = side / min(image.size)
        image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
        left, top = (random.randint(0, length - self.resolution) for length in image.size)
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        return {"pixel_values": pixels, "input_ids": self.ids(row)}


class Moments(Images):
    """Means and log-variances from one memory-mapped .npy [rows, 2C, h, w] in the order of the JSONL: no way to read
    them costs less.
    """

    def __init__(self, moments, *arguments):
        super().__init__(*arguments)
        self.moments = np.load(moments, mmap_mode="r")

    def __getitem__(self, index):
        moments = torch.from_numpy(self.moments[index % len(self.moments)].copy())
        return {"moments": moments, "input_ids": self.ids(self.rows[index])}


def endless(loader):
    while True:
        yield from loader


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="folder with vae/, text_encoder/ and tokenizer/")
    parser.add_argument("--unet_config", required=True)
    parser.add_argument("--jsonl", required=True)
    parser.add_argument("--moments", help=".npy of moments instead of the pictures")
    for name in ("resolution", "batch", "length", "workers", "max_steps", "logging_steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    models = Path(args.models)
    tokenizer = CLIPTokenizer.from_pretrained(models / "tokenizer")
    vae = AutoencoderKL.from_config(json.loads((models / "vae/config.json").read_text())).eval().requires_grad_(False)
    text_config = json.loads((models / "text_encoder/config.json").read_text())
    text_encoder = CLIPTextModel(CLIPTextConfig(**text_config)).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_config(json.loads(Path(args.unet_config).read_text())).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.01)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    source = (args.jsonl, tokenizer, args.length, args.resolution)
    data = Moments(args.moments, *source) if args.moments else Images(*source)
    loader = torch.utils.data.DataLoader(data, args.batch, shuffle=True, num_workers=args.workers, drop_last=True)
    batches, begin = endless(loader), time.perf_counter()
    for step in range(1, args.max_steps + 1):
        loss = step_loss(next(batches), vae, text_encoder, unet, scheduler)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % args.logging_steps == 0:
            print(f"step {step}/{args.max_steps} | loss {loss.item():.5f} | {time.perf_counter() - begin:.2f} s")
            sys.stdout.flush()


def step_loss(batch, vae, text_encoder, unet, scheduler):
    """Min-SNR-weighted loss of a batch."""
    with torch.no_grad():
        if "moments" in batch:
            mean, log_variance = batch["moments"].float().chunk(2, dim=1)
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        else:
            latents = vae.encode(batch["pixel_values"]).latent_dist.sample()
        latents = latents * vae.config.scaling_factor
        text_states = text_encoder(batch["input_ids"]).last_hidden_state
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (len(latents),))
    prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text_states, return_dict=False)[0]
    snr = compute_snr(scheduler, timesteps)
    weight = snr.clamp(max=SNR_GAMMA) / snr
    return (F.mse_loss(prediction, noise, reduction="none").mean(dim=(1, 2, 3)) * weight).mean()


if __name__ == "__main__":
    main()
