"""Multiply-adds of a training step, counted from the layers' real shapes: what share of it a cache saves.

    python bench/operations.py

builds the published v1-4 shapes (VAE encoder, CLIP text encoder, UNet) as programs that are never run, so it needs
neither a GPU nor the memory of the weights, and adds up every convolution and matrix product in them, those of the
attention too. Element-wise work is not counted. The backward pass of a layer counts as twice its forward pass.
"""

import functools
import json
import math
import sys
from pathlib import Path
from unittest import mock

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.real_size import TEXT_CONFIG, VAE_CONFIG  # noqa: E402

UNET_CONFIG = ROOT / "sd" / "unet_config.json"
TEXT_LENGTH = 77
# What the name of an operation that multiplies matrices has in it; one that is not counted must not go unseen.
MULTIPLYING = ("conv", "matmul", "linear", "gemm", "attn", "attention", "addmm", "bmm", "einsum")
BACKWARD = 2  # times the forward pass: gradients with respect to the weights, and to the inputs
# 1e9 multiply-adds at 512 px as BK-SDM (arXiv 2305.15798) publishes them, without the attention's own products.
PUBLISHED = {"unet": 339, "text_encoder": 6.5}


def count_program(build, attention=True):
    """Multiply-adds of what `build()` computes in Paddle's static mode, where shapes are known and nothing is run.

    `build` makes its layers and inputs (`paddle.static.data`) itself. attention=False leaves out the products that
    have no weight among their factors, as many published counts do. Raises ValueError for a shape that is not known,
    and for an operation that multiplies matrices but is none of those counted here.
    """
    import paddle

    program = paddle.static.Program()
    static_before = not paddle.in_dynamic_mode()
    paddle.enable_static()
    try:
        # A layer that reads a shape as a tensor would lose it here, where nothing is run.
        with (
            mock.patch.object(paddle, "shape", lambda tensor: list(tensor.shape)),
            paddle.static.program_guard(program, paddle.static.Program()),
        ):
            build()
    finally:
        if not static_before:
            paddle.disable_static()
    return sum(_count_operation(operation, attention) for operation in program.global_block().ops)


def _count_operation(operation, attention):
    name = operation.name().removeprefix("pd_op.")
    if name in ("matmul", "conv2d", "linear_v2"):  # the last is F.linear in the GPU build
        factor = operation.operands()[1].source().get_defining_op().name()
        if factor != "builtin.parameter" and not attention:
            return 0
        first, second = (list(operand.source().shape) for operand in operation.operands()[:2])
        wanted = list(operation.results()[0].shape)
        if min(first + second + wanted) < 0:
            raise ValueError(f"{name} of shapes {first} and {second}: give every input its whole shape")
        if name == "conv2d":  # second: [channels out, channels in of a group, height, width]
            return math.prod(wanted) * math.prod(second[1:])
        if name == "linear_v2":
            return math.prod(wanted) * first[-1]
        return math.prod(wanted) * first[-2 if operation.attrs()["transpose_x"] else -1]
    if any(word in name for word in MULTIPLYING) and "interp" not in name:  # bilinear_interp multiplies no matrices
        raise ValueError(f"operation {name} multiplies matrices and is not counted")
    return 0


@functools.lru_cache(maxsize=64)
def part_macs(part, resolution, length=TEXT_LENGTH, unet_config=str(UNET_CONFIG), attention=True):
    """Multiply-adds of one forward call for one image: part is "vae" (its encoder), "text_encoder" or "unet".

    resolution: pixels a side; length: tokens of a caption; unet_config: a JSON file; attention: as in `count_program`.
    """
    return count_program(functools.partial(_build_part, part, resolution, length, unet_config), attention)


def _build_part(part, resolution, length, unet_config):
    import paddle
    import ppdiffusers
    from ppdiffusers.models.attention_processor import AttnProcessor
    from ppdiffusers.transformers.clip.configuration import CLIPTextConfig
    from ppdiffusers.transformers.clip.modeling import CLIPEncoder

    if part == "vae":
        images = paddle.static.data("images", [1, 3, resolution, resolution])
        vae = ppdiffusers.AutoencoderKL(**VAE_CONFIG)
        vae.set_attn_processor(AttnProcessor())  # on a GPU a fused operation might stand in its place
        vae.quant_conv(vae.encoder(images))
    elif part == "text_encoder":
        embeddings = paddle.static.data("embeddings", [1, length, TEXT_CONFIG["hidden_size"]])
        CLIPEncoder(CLIPTextConfig(**TEXT_CONFIG))(inputs_embeds=embeddings)  # what comes before is looked up
    else:
        config = json.loads(Path(unet_config).read_text())
        side = resolution // 2 ** (len(VAE_CONFIG["block_out_channels"]) - 1)
        unet = ppdiffusers.UNet2DConditionModel.from_config(config)
        unet.set_attn_processor(AttnProcessor())
        unet(
            paddle.static.data("latents", [1, config["in_channels"], side, side]),
            paddle.static.data("timestep", [1], "int64"),
            paddle.static.data("states", [1, length, config["cross_attention_dim"]]),
            return_dict=False,
        )


def step_flops(resolution, batch_size=1, *, vae=True, text_encoder=True, train_text_encoder=False, **shapes):
    """Floating-point operations (two a multiply-add) of one training step: forward passes of all parts, backward of
    those that are trained. vae=False: latents from a cache; text_encoder=False: text states from it too.

    shapes: `length` and `unet_config` as in `part_macs`. Recomputed activations do not count.
    """
    macs = (1 + BACKWARD) * part_macs("unet", resolution, **shapes)
    if vae:
        macs += part_macs("vae", resolution)
    if text_encoder:
        times = 1 + BACKWARD if train_text_encoder else 1
        macs += times * part_macs("text_encoder", 0, length=shapes.get("length", TEXT_LENGTH))
    return 2 * macs * batch_size


def main():
    from sd.logs import import_quietly

    import_quietly()
    print(
        "1e9 multiply-adds of one image, batch 1; UNet forward and backward together are three times its forward pass"
    )
    print(f"{'px':>4} {'VAE encoder':>12} {'text encoder':>13} {'UNet forward':>13} {'step':>9}   saved by caching")
    for resolution in (256, 512):
        vae, text, unet = (part_macs(part, resolution) / 1e9 for part in ("vae", "text_encoder", "unet"))
        whole = step_flops(resolution) / 2e9
        latents = 1 - step_flops(resolution, vae=False) / 2e9 / whole
        both = 1 - step_flops(resolution, vae=False, text_encoder=False) / 2e9 / whole
        print(
            f"{resolution:>4} {vae:>12.1f} {text:>13.2f} {unet:>13.1f} {whole:>9.1f}   "
            f"latents {latents:.1%} ({1 / (1 - latents):.2f} x), with text {both:.1%} ({1 / (1 - both):.2f} x)"
        )
    print("as published for 512 px, the attention's own products left out:")
    for part, published in PUBLISHED.items():
        print(f"{part:>20} {part_macs(part, 512, attention=False) / 1e9:.1f}, published {published}")


if __name__ == "__main__":
    main()
