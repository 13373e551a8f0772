"""Makes `demo/tiny_sd`: tiny frozen models in the layout of a Stable Diffusion repository, from nothing but a seed.

    MKL_DEBUG_CPU_TYPE=7 MKL_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m demo.make_models --output demo/tiny_sd

The same machine, versions and variables give the same files again. With `--vae_formats 24x40,32x32,40x24 --vae_start
demo/tiny_sd/vae` the VAE is trained on from another, for pictures of these formats and squares cut out of them.
"""

import argparse
import json
from pathlib import Path

from demo.shapes import sizes_of
from sd import runtime

PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["ppdiffusers", "DDIMScheduler"],
    "text_encoder": ["paddlenlp.transformers", "CLIPTextModel"],
    "tokenizer": ["paddlenlp.transformers", "CLIPTokenizer"],
    "unet": ["ppdiffusers", "UNet2DConditionModel"],
    "vae": ["ppdiffusers", "AutoencoderKL"],
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


def make_scheduler():
    """The sampler of the logged images."""
    from ppdiffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def main():
    parser = argparse.ArgumentParser(description="Make the tiny frozen models of the demo.")
    parser.add_argument("--output", default="demo/tiny_sd", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=7200, help="drawings the VAE is trained on")
    parser.add_argument("--vae_steps", type=int, default=4500)
    parser.add_argument("--vae_batch_size", type=int, default=16)
    parser.add_argument("--vae_learning_rate", type=float, default=2e-3)
    parser.add_argument("--vae_formats", help="width x height of the pictures, several in turn (default: squares)")
    parser.add_argument("--vae_start", help="folder of a VAE to go on from (default: random weights)")
    parser.add_argument("--text_encoder_steps", type=int, default=300)
    parser.add_argument("--parts", nargs="+", default=["text", "vae"], choices=["text", "vae"], help="what to make")
    args = parser.parse_args()

    runtime.prepare("cpu")
    output = Path(args.output)
    if "text" in args.parts:
        from demo.make_text_encoder import train_text_encoder
        from demo.make_tokenizer import make_tokenizer

        tokenizer = make_tokenizer(output / "tokenizer")
        encoder = train_text_encoder(tokenizer, args.text_encoder_steps, args.seed)
        encoder.save_pretrained(str(output / "text_encoder"), safe_serialization=True)
    if "vae" in args.parts:
        from demo.make_vae import RESOLUTION, pictures_of_formats, start_vae, train_vae, training_pictures

        if args.vae_formats:
            pictures = pictures_of_formats(args.pictures, args.seed, sizes_of(args.vae_formats))
        else:
            pictures = {(RESOLUTION, RESOLUTION): training_pictures(args.pictures, args.seed)}
        vae = start_vae(args.seed, args.vae_start)
        vae = train_vae(vae, pictures, args.vae_steps, args.vae_batch_size, args.vae_learning_rate, args.seed)
        vae.save_pretrained(str(output / "vae"), safe_serialization=True)
    make_scheduler().save_pretrained(str(output / "scheduler"))
    (output / "model_index.json").write_text(json.dumps(PIPELINE, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
