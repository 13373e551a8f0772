"""A whole Stable Diffusion in one file (.safetensors, .ckpt): each component's configuration and weights out of it.

v1 and v2 are read; what the shapes do not tell (heads, groups, scaling) is that of the published models, unless the
file's own metadata holds the configurations, as `sd.sampling.export` writes them.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sd.errors import InputError
from sd.models import compvis
from sd.models.weight_file import WeightFile
from sd.models.weights import linear_weights, set_weight

if TYPE_CHECKING:
    import paddle

CONFIGS_KEY = "sd_configs"  # in the metadata: {"unet": {...}, "vae": {...}, "text_encoder": {...}}
PREFIXES = {"unet": compvis.UNET, "vae": compvis.VAE, "text_encoder": "cond_stage_model."}
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# Layouts that are something else, by a name that only they have.
_OTHERS = {
    "conditioner.": "an SDXL model",
    "model.diffusion_model.label_emb.": "an SDXL model",
    "model.diffusion_model.joint_blocks.": "an SD3 model",
    "joint_blocks.": "an SD3 model",
    "double_blocks.": "a FLUX model",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "unet.": "a pipeline of this or another trainer",
    "down_blocks.": "a UNet in diffusers' layout; put it beside its config.json and name the folder",
    "encoder.down_blocks.": "a VAE in diffusers' layout; put it beside its config.json and name the folder",
    "text_model.": "a text encoder alone; put it beside its config.json and name the folder",
}


def is_single_file(name: str | Path) -> bool:
    """Whether a name is that of an existing weight file, which then must hold a whole model."""
    return Path(name).suffix in _SUFFIXES and Path(name).is_file()


class SingleFile:
    """One file's components. Raises InputError that says what the file looks like if it is no v1 or v2 model."""

    def __init__(self, path: str | Path):
        self._file = WeightFile(path)
        self._shapes = self._file.shapes
        missing = [prefix for prefix in PREFIXES.values() if not any(name.startswith(prefix) for name in self._shapes)]
        guess = next(
            (description for start, description in _OTHERS.items() if any(n.startswith(start) for n in self._shapes)),
            None,
        )
        if missing or (guess and "SDXL" in guess):
            raise InputError(
                f"{path}: looks like {guess or 'no model that is known here'}; expected Stable Diffusion v1 or v2 in "
                f"one file, with weights named {', '.join(PREFIXES.values())}*"
            )
        channels = self._shapes[compvis.UNET + "input_blocks.0.0.weight"][1]
        if channels == 9:
            raise InputError(f"{path}: an inpainting model (9 input channels); expected a text-to-image model")
        self.is_v2 = compvis.TEXT_V2 + "ln_final.weight" in self._shapes
        self.configs = self._read_configs()

    def load_weights(self, component: str, model: "paddle.nn.Layer") -> None:
        """Copy the weights of "unet", "vae" or "text_encoder" into a model of that configuration."""
        parameters = model.state_dict()
        path, linear = self._file.path, linear_weights(model)
        stored = {name: self._stored(component, name) for name in parameters}
        missing = {name for name, _ in stored.values()} - set(self._shapes)
        if missing:
            raise InputError(f"{path}: lacks {len(missing)} weights of the {component} (first: {min(missing)})")
        for name, (key, third) in stored.items():
            value = self._file.array(key)
            if third is not None:
                value = value[third * len(value) // 3 : (third + 1) * len(value) // 3]
            if name in linear:
                value = value.reshape(value.shape[:2]).T  # 1 x 1 convolutions in the file's VAE
            set_weight(parameters[name], value, f"{path}: {key}")

    def _stored(self, component: str, name: str) -> tuple[str, int | None]:
        if component == "text_encoder" and self.is_v2:
            return compvis.open_clip_name(name)
        return stored_name(component, name, self.configs[component]), None

    def _read_configs(self) -> dict[str, dict]:
        if text := self._file.metadata.get(CONFIGS_KEY):
            return json.loads(text)
        try:
            return {
                "unet": _unet_config(self._shapes),
                "vae": _vae_config(self._shapes),
                "text_encoder": (_open_clip_config if self.is_v2 else _text_config)(self._shapes),
            }
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"{self._file.path}: no model of v1's or v2's layout (lacks {error})") from None


def stored_name(component: str, name: str, config: dict) -> str:
    """The name in a v1 file of a component's weight."""
    if component == "text_encoder":
        return compvis.TEXT_V1 + name
    return {"unet": compvis.unet_name, "vae": compvis.vae_name}[component](name, config)


def _count(shapes: dict, pattern: str) -> int:
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _unet_config(shapes: dict[str, tuple]) -> dict:
    """From the shapes of the UNet's weights; 32 groups, and 8 heads (v1) or heads of 64 channels (v2)."""
    root = compvis.UNET
    levels: list[list[tuple[int, bool]]] = [[]]  # (channels, attention) of each residual block, level by level
    for number in range(1, _count(shapes, rf"{re.escape(root)}input_blocks\.(\d+)\.")):
        block = f"{root}input_blocks.{number}."
        if block + "0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append((shapes[block + "0.in_layers.2.weight"][0], block + "1.norm.weight" in shapes))
    channels = [level[-1][0] for level in levels]
    attention = [level[-1][1] for level in levels]
    inner = next(name for name in shapes if name.startswith(root) and name.endswith("attn2.to_k.weight"))
    is_linear = len(shapes[inner.partition("transformer_blocks")[0] + "proj_in.weight"]) == 2
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)]
    return {
        "sample_size": 64,
        "in_channels": shapes[root + "input_blocks.0.0.weight"][1],
        "out_channels": shapes[root + "out.2.weight"][0],
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": shapes[inner][1],
        "attention_head_dim": [width // 64 for width in channels] if is_linear else 8,
        "use_linear_projection": is_linear,
    }


def _vae_config(shapes: dict[str, tuple]) -> dict:
    """From the shapes of the VAE's weights; 32 groups and the scaling of v1 and v2."""
    root = re.escape(compvis.VAE)
    levels = _count(shapes, rf"{root}encoder\.down\.(\d+)\.")
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [
            shapes[f"{compvis.VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": _count(shapes, rf"{root}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes[compvis.VAE + "post_quant_conv.weight"][0],
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def _text_config(shapes: dict[str, tuple]) -> dict:
    root = compvis.TEXT_V1 + "text_model."
    vocabulary, width = shapes[root + "embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[root + "encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(root)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes[root + "embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
    }


def _open_clip_config(shapes: dict[str, tuple]) -> dict:
    """v2 takes the states before open_clip's last block, so that one is left out, as in its published folders."""
    root = compvis.TEXT_V2
    vocabulary, width = shapes[root + "token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[root + "transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(root)}transformer\.resblocks\.(\d+)\.") - 1,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes[root + "positional_embedding"][0],
        "hidden_act": "gelu",
        "projection_dim": 512,
    }
