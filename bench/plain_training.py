"""Training by the reference's method, written plainly in our own words: a contender of bench/training.py.

Paddle as its wheel comes (one thread, no setting for the processor), parts of gzip text read from their start, every
picture resized whole with Pillow, a buffer that swaps with what it has just taken, the text encoder's own forward,
AdamW one weight at a time, and the loss read back at every step. Its crashes are left out: workers hand over NumPy.
"""

import argparse
import base64
import gzip
import io
import itertools
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import Image
from ppdiffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from ppdiffusers.transformers import CLIPTextModel, CLIPTokenizer

SNR_GAMMA = 5.0


class Records(paddle.io.IterableDataset):
    """The parts in order, each worker its share, for ever."""

    def __init__(self, parts, tokenizer, length, resolution):
        self.parts, self.tokenizer, self.length, self.resolution = parts, tokenizer, length, resolution

    def __iter__(self):
        info = paddle.io.get_worker_info()
        parts = self.parts[info.id :: info.num_workers] if info else self.parts
        buffer = []
        for part in itertools.cycle(parts):
            with gzip.open(part, "rt", encoding="utf-8") as rows:
                for row in rows:
                    buffer.append(self.sample(row))
                    if len(buffer) > 100:
                        yield buffer.pop(random.randrange(len(buffer)))

    def sample(self, row):
        caption, _, image = row.rstrip("\n").split("\t")
        caption = "" if random.random() < 0.1 else caption
        encoded = self.tokenizer(caption, padding="max_length", truncation=True, max_length=self.length)
        image = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
        side = int(self.resolution / 0.9)
        scale = side / min(image.size)
        image = image.resize([max(side, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
        left, top = (random.randint(0, length - self.resolution) for length in image.size)
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        pixels = (np.asarray(image).astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
        return {"pixel_values": pixels, "input_ids": np.array(encoded["input_ids"], np.int64)}


def collate(samples):
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="folder with vae/, text_encoder/ and tokenizer/")
    parser.add_argument("--unet_config", required=True)
    parser.add_argument("--parts", nargs="+", required=True)
    for name in ("resolution", "batch", "length", "workers", "max_steps", "logging_steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    models = Path(args.models)
    tokenizer = CLIPTokenizer.from_pretrained(str(models / "tokenizer"))
    vae = AutoencoderKL.from_pretrained(str(models / "vae"))
    text_encoder = CLIPTextModel.from_pretrained(str(models / "text_encoder"))
    for frozen in (vae, text_encoder):
        frozen.eval()
        for parameter in frozen.parameters():
            parameter.stop_gradient = True
    unet = UNet2DConditionModel.from_config(json.loads(Path(args.unet_config).read_text()))
    unet.train()
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=unet.parameters(), weight_decay=0.01)
    data = Records(args.parts, tokenizer, args.length, args.resolution)
    loader = paddle.io.DataLoader(data, batch_size=args.batch, collate_fn=collate, num_workers=args.workers)
    begin, losses = time.perf_counter(), []
    for step, batch in enumerate(loader, 1):
        batch = {name: paddle.to_tensor(value) for name, value in batch.items()}
        loss = step_loss(batch, vae, text_encoder, unet, scheduler)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
        if step % args.logging_steps == 0:
            print(f"step {step}/{args.max_steps} | loss {losses[-1]:.5f} | {time.perf_counter() - begin:.2f} s")
            sys.stdout.flush()
        if step == args.max_steps:
            break


def step_loss(batch, vae, text_encoder, unet, scheduler):
    """Min-SNR-weighted loss of a batch."""
    with paddle.no_grad():
        latents = vae.encode(batch["pixel_values"]).latent_dist.sample() * vae.config.scaling_factor
        text_states = text_encoder(batch["input_ids"])[0]
    noise = paddle.randn(latents.shape)
    timesteps = paddle.randint(0, 1000, [latents.shape[0]])
    prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text_states).sample
    alpha_bar = paddle.gather(scheduler.alphas_cumprod, timesteps)
    snr = alpha_bar / (1 - alpha_bar)
    weight = snr.clip(max=SNR_GAMMA) / snr
    return (F.mse_loss(prediction, noise, reduction="none").mean(axis=[1, 2, 3]) * weight).mean()


if __name__ == "__main__":
    main()
