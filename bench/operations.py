"""Multiply-adds of a training step, counted from the layers' real shapes, and the days of the v1 recipe by them.

    python -m bench operations
    python -m bench operations --gpus 256 --peak_tflops 989

builds the published v1-4 shapes (VAE encoder, CLIP text encoder, UNet) as programs that are never run, so it needs
neither a GPU nor the memory of the weights, and adds up every convolution and matrix product in them, those of the
attention too. Element-wise work is not counted. The backward pass of a layer counts as twice its forward pass.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from unittest import mock

from bench.full_size import TEXT_CONFIG, VAE_CONFIG
from bench.results import ROOT, Results
from sd.flags.arguments import check_range

UNET_CONFIG = ROOT / "sd" / "unet_config.json"
TEXT_LENGTH = 77
BATCH = 2048
# The steps of the v1-1 to v1-4 checkpoints, from their model cards: name, side in pixels, steps.
STAGES = [("v1-1, first part", 256, 237_000), ("v1-1, second part", 512, 194_000), ("v1-2", 512, 515_000)]
STAGES += [("v1-4 (from v1-2)", 512, 225_000)]
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
        shape = list(operation.results()[0].shape)
        if min(first + second + shape) < 0:
            raise ValueError(f"{name} of shapes {first} and {second}: give every input its whole shape")
        if name == "conv2d":  # second: [channels out, channels in of a group, height, width]
            return math.prod(shape) * math.prod(second[1:])
        if name == "linear_v2":
            return math.prod(shape) * first[-1]
        return math.prod(shape) * first[-2 if operation.attrs()["transpose_x"] else -1]
    if any(word in name for word in MULTIPLYING) and "interp" not in name:  # bilinear_interp multiplies no matrices
        raise ValueError(f"operation {name} multiplies matrices and is not counted")
    return 0


@functools.lru_cache(maxsize=64)
def component_macs(component, resolution, length=TEXT_LENGTH, unet_config=str(UNET_CONFIG), attention=True):
    """Multiply-adds of one forward call for one image: component is "vae" (its encoder), "text_encoder" or "unet".

    resolution: pixels a side; length: tokens of a caption; unet_config: a JSON file; attention: as in `count_program`.
    """
    return count_program(functools.partial(_build_component, component, resolution, length, unet_config), attention)


def _build_component(component, resolution, length, unet_config):
    import paddle
    import ppdiffusers
    from ppdiffusers.models.attention_processor import AttnProcessor
    from ppdiffusers.transformers.clip.configuration import CLIPTextConfig
    from ppdiffusers.transformers.clip.modeling import CLIPEncoder

    if component == "vae":
        images = paddle.static.data("images", [1, 3, resolution, resolution])
        vae = ppdiffusers.AutoencoderKL(**VAE_CONFIG)
        vae.set_attn_processor(AttnProcessor())  # on a GPU a fused operation might stand in its place
        vae.quant_conv(vae.encoder(images))
    elif component == "text_encoder":
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
    """Floating-point operations (two a multiply-add) of one training step: forward passes of all components, backward
    of those that are trained. vae=False: latents from a cache; text_encoder=False: text states from it too.

    shapes: `length` and `unet_config` as in `component_macs`. Recomputed activations do not count.
    """
    macs = (1 + BACKWARD) * component_macs("unet", resolution, **shapes)
    if vae:
        macs += component_macs("vae", resolution)
    if text_encoder:
        times = 1 + BACKWARD if train_text_encoder else 1
        macs += times * component_macs("text_encoder", 0, length=shapes.get("length", TEXT_LENGTH))
    return 2 * macs * batch_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--peak_tflops", type=float, default=312, help="TFLOP/s of a GPU in bf16 (default: A100)")
    parser.add_argument("--share", type=float, default=0.25, help="of the peak that training reaches")
    args = parser.parse_args()
    check_range("peak_tflops", args.peak_tflops, low=1, high=100_000)  # a card of today; 312e12 is in FLOP/s
    check_range("share", args.share, above=0, high=1)
    check_range("gpus", args.gpus, low=1)
    from sd.logs import import_quietly

    import_quietly()
    columns = ["px", "VAE encoder", "text encoder", "UNet forward", "step", "from latents", "and text"]
    table = Results("operations", columns, "1e9 multiply-adds of one image; the last two: shares of the step")
    for resolution in (256, 512):
        row = {"px": resolution, "step": step_flops(resolution) / 2e9}
        for column, component in (("VAE encoder", "vae"), ("text encoder", "text_encoder"), ("UNet forward", "unet")):
            row[column] = component_macs(component, resolution) / 1e9
        row["from latents"] = step_flops(resolution, vae=False) / step_flops(resolution)
        row["and text"] = step_flops(resolution, vae=False, text_encoder=False) / step_flops(resolution)
        table.add(**row)
    counted = f"days on {args.gpus} GPUs at {args.share:.0%} of {args.peak_tflops:g} TFLOP/s, batch {BATCH}: arithmetic"
    table = Results("recipe", ["stage", "px", "steps", "M images", "from images", "from latents"], counted)
    rate = args.peak_tflops * 1e12 * args.share * args.gpus * 86400
    for stage, resolution, steps in STAGES:
        images = steps * BATCH
        days = {"from images": images * step_flops(resolution) / rate}
        days["from latents"] = images * step_flops(resolution, vae=False) / rate
        table.add(stage=stage, px=resolution, steps=steps, **{"M images": images / 1e6}, **days)
