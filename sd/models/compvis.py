"""Names of weights in the one-file layout of CompVis (Stable Diffusion v1) and Stability AI (v2).

Each function gives the name in the file for a name in a component's state dict; reading and writing use the same map.
The layout is that of https://github.com/CompVis/stable-diffusion (ldm/modules/diffusionmodules, ldm/models/autoencoder)
and, for v2's text encoder, of open_clip's text transformer.
"""

import re

UNET, VAE, TEXT_V1, TEXT_V2 = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, config: dict) -> str:
    """The name in the file of a UNet's weight. config: the UNet's (layers_per_block and up_block_types are read)."""
    per_level = config["layers_per_block"] + 1  # a level's residual blocks and its change of size are numbered through
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        prefix = next(old for old in _UNET_ENDS if name.startswith(old + "."))
        inner = name.removeprefix(prefix + ".")
        return UNET + _UNET_ENDS[prefix] + "." + (_renamed(inner, _RESNET) if "resnets" in prefix else inner)
    way, level, kind, number, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"{UNET}input_blocks.{per_level * (level + 1)}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        slot = 2 if "CrossAttn" in config["up_block_types"][level] else 1  # behind the attention, where there is one
        return f"{UNET}output_blocks.{per_level * (level + 1) - 1}.{slot}.{inner}"
    number += per_level * level
    block = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
    return f"{UNET}{block}.{'0.' + _renamed(inner, _RESNET) if kind == 'resnets' else '1.' + inner}"


def vae_name(name: str, config: dict) -> str:
    """The name in the file of a VAE's weight. config: the VAE's, of which the number of levels counts."""
    levels = len(config["block_out_channels"])
    match = re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets\.(\d+)|(down|up)samplers\.0)\.(.+)", name)
    if match:
        way, level, inner = match[2], int(match[3]), match[7].replace("conv_shortcut", "nin_shortcut")
        level = level if way == "down" else levels - 1 - level  # the file counts levels from the largest pictures
        return f"{VAE}{match[1]}.{way}.{level}." + (f"block.{match[5]}.{inner}" if match[5] else f"{way}sample.{inner}")
    name = name.replace("conv_norm_out", "norm_out").replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda block: f"mid.block_{int(block[1]) + 1}", name)
    if ".attn_1." in name:
        head, inner = name.split("attn_1.")
        name = f"{head}attn_1.{_renamed(inner, _VAE_ATTENTION)}"
    return VAE + name


def open_clip_name(name: str) -> tuple[str, int | None]:
    """(name in a v2 file, third of it or None): open_clip keeps query, key and value in one matrix."""
    ends = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    if name in ends:
        return TEXT_V2 + ends[name], None
    number, inner = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
    block = f"{TEXT_V2}transformer.resblocks.{number}."
    if part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", inner):
        return f"{block}attn.in_proj_{part[2]}", "qkv".index(part[1])
    return block + _renamed(inner, _OPEN_CLIP), None


def _renamed(inner: str, table: dict[str, str]) -> str:
    head, _, last = inner.rpartition(".")
    return f"{table.get(head, head)}.{last}"
