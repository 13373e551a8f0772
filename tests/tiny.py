"""Random models small enough for tests, in the layout of a Stable Diffusion repository."""

import json
from pathlib import Path

import paddle

RESOLUTION = 32  # pixels; the VAE divides them by 4
UNET_CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}


def make_tokenizer_files(folder):
    """A CLIP tokenizer of single bytes; it has no merges."""
    from paddlenlp.transformers.clip.tokenizer import bytes_to_unicode

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = list(bytes_to_unicode().values())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)


def make_tiny_repository(folder, seed=0, latent_channels=4):
    """Write vae/, text_encoder/, tokenizer/, scheduler/, unet/, model_index.json and unet_config.json to `folder`."""
    import ppdiffusers
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    from sd.diffusion.schedule import sampler_config

    folder = Path(folder)
    paddle.seed(seed)
    num_tokens = make_tokenizer_files(folder / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=num_tokens,
            hidden_size=16,
            intermediate_size=32,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=num_tokens - 2,
            eos_token_id=num_tokens - 1,
            pad_token_id=num_tokens - 1,
        )
    )
    text_encoder.save_pretrained(str(folder / "text_encoder"), safe_serialization=True)
    vae = ppdiffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=RESOLUTION,
    )
    vae.save_pretrained(str(folder / "vae"), safe_serialization=True)
    config = UNET_CONFIG | {"in_channels": latent_channels, "out_channels": latent_channels}
    (folder / "unet_config.json").write_text(json.dumps(config), encoding="utf-8")
    unet = ppdiffusers.UNet2DConditionModel(**config)
    unet.save_pretrained(str(folder / "unet"), safe_serialization=True)
    ppdiffusers.DDIMScheduler(**sampler_config()).save_pretrained(str(folder / "scheduler"))
    pipeline = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["ppdiffusers", "DDIMScheduler"],
        "text_encoder": ["ppdiffusers.transformers", "CLIPTextModel"],
        "tokenizer": ["ppdiffusers.transformers", "CLIPTokenizer"],
        "unet": ["ppdiffusers", "UNet2DConditionModel"],
        "vae": ["ppdiffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(pipeline), encoding="utf-8")
    return folder
