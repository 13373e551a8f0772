"""Models in the shapes of Stable Diffusion v1-4 with random weights, and pictures of noise to train them on."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

VAE_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}


def make_models(folder: Path) -> None:
    """vae/, text_encoder/ and tokenizer/ (a tiny one) in `folder`, some 0.8 GB."""
    import paddle
    from ppdiffusers import AutoencoderKL
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    from tests.tiny import make_tokenizer_files

    paddle.seed(0)
    AutoencoderKL(**VAE_CONFIG).save_pretrained(str(folder / "vae"), safe_serialization=True)
    CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)).save_pretrained(str(folder / "text_encoder"), safe_serialization=True)
    make_tokenizer_files(folder / "tokenizer")


def make_input(folder: Path, count: int = 16, side: int = 320) -> Path:
    """`count` JPEGs of noise, side x side px, and the JSONL that names them, whose path is returned."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"images/{number}.jpg")
        rows.append(json.dumps({"caption": f"picture number {number}", "image": f"images/{number}.jpg"}))
    (folder / "input.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "input.jsonl"


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
