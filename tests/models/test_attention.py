"""The choice of an attention kernel by trying it, and a processor that computes what ppdiffusers' plain one does.

A CPU has no fused kernel; one of plain operators stands in, of the same signature and layout.
"""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from ppdiffusers.models.attention_processor import AttnProcessor

from sd import devices
from sd.models import attention
from sd.models.loading import random_unet

DEMO = Path(__file__).resolve().parents[2] / "demo"


def stand_in(query, key, value):
    """softmax(q k / sqrt(D)) v for [B,L,heads,D], by plain operators."""
    query, key, value = (tensor.transpose([0, 2, 1, 3]) for tensor in (query, key, value))
    scores = paddle.matmul(query, key, transpose_y=True) / query.shape[-1] ** 0.5
    return paddle.matmul(paddle.nn.functional.softmax(scores), value).transpose([0, 2, 1, 3])


def refusing(query, key, value):
    raise NotImplementedError("(NotFound) The kernel is not registered.")


def wrong(query, key, value):
    return stand_in(query, key, value) * float("nan")


@pytest.fixture
def unet():
    paddle.seed(0)
    layer = random_unet(DEMO / "unet_config.json")
    for parameter in layer.parameters():  # no zeros, which would hide a difference
        parameter.set_value(
            np.random.default_rng(parameter.size).standard_normal(parameter.shape).astype("float32") / 9
        )
    return layer


@pytest.fixture
def on_card(monkeypatch):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")


def output_and_gradients(unet):
    rng = np.random.default_rng(0)
    config = unet.config
    latents = paddle.to_tensor(rng.standard_normal((2, config.in_channels, 8, 8), dtype=np.float32))
    states = paddle.to_tensor(rng.standard_normal((2, 16, config.cross_attention_dim), dtype=np.float32))
    output = unet(latents, paddle.to_tensor([3, 500]), states, return_dict=False)[0]
    output.square().mean().backward()
    gradients = [parameter.grad.numpy().ravel() for parameter in unet.parameters()]
    unet.clear_gradients()
    return output.numpy(), np.concatenate(gradients)


def test_the_processor_computes_what_the_plain_one_does(unet, on_card, monkeypatch):
    """Another order of the same products: 1e-5 of the norm, some hundred roundings of float32."""
    unet.set_attn_processor(AttnProcessor())
    plain = output_and_gradients(unet)
    calls = []
    monkeypatch.setattr(
        attention, "KERNELS", {"flash": lambda *states: (calls.append(states[0].shape), stand_in(*states))[1]}
    )
    assert attention.use_fastest_attention(unet, ["float32"]) == {"float32": "flash"}
    calls.clear()
    fused = output_and_gradients(unet)
    num_layers = len(unet.attn_processors)
    assert len(calls) == num_layers > 0 and all(len(shape) == 4 for shape in calls)
    for ours, theirs in zip(fused, plain, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_a_dtype_without_a_kernel_takes_the_plain_operators(unet, on_card, monkeypatch):
    unet.set_attn_processor(AttnProcessor())
    plain = output_and_gradients(unet)
    unet.set_attn_processor(attention.KernelAttnProcessor({paddle.float16: refusing}))
    for ours, theirs in zip(output_and_gradients(unet), plain, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("kernels", "chosen"),
    [
        ({"flash": stand_in, "memory_efficient": stand_in}, "flash"),
        ({"flash": refusing, "memory_efficient": stand_in}, "memory_efficient"),  # a card for which flash is not built
        ({"flash": wrong, "memory_efficient": stand_in}, "memory_efficient"),
        ({"flash": stand_in, "memory_efficient": refusing}, "flash"),  # Blackwell: the other kernel is no reason
        ({"flash": refusing, "memory_efficient": refusing}, None),
    ],
)
def test_the_first_kernel_that_works_is_taken(on_card, monkeypatch, kernels, chosen):
    monkeypatch.setattr(attention, "KERNELS", kernels)
    assert attention.find_kernel("float32", [8, 40]) == chosen


def test_a_kernel_must_serve_every_head_size(on_card, monkeypatch):
    def up_to_128(query, key, value):
        assert query.shape[-1] <= 128
        return stand_in(query, key, value)

    monkeypatch.setattr(attention, "KERNELS", {"flash": up_to_128})
    assert attention.find_kernel("float32", [40, 80]) == "flash"
    assert attention.find_kernel("float32", [40, 160]) is None


def test_a_cpu_takes_the_plain_operators(unet):
    assert attention.find_kernel("float32", [40]) is None
    assert attention.use_fastest_attention(unet, ["float32"]) == {"float32": "plain"}
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor}


@pytest.mark.parametrize(("switch", "fails"), [("0", False), ("1", True)])
def test_what_a_library_found_on_a_card_is_not_used_on_a_cpu(unet, monkeypatch, switch, fails):
    """ppdiffusers tries fused attention once at import, on the default device, and has no kernel for tensors on a CPU.
    sd.devices switches that choice off."""
    environ = {}
    devices.prepare("cpu", environ)
    assert environ["USE_PPXFORMERS"] == "0"
    monkeypatch.setenv("USE_PPXFORMERS", switch)
    monkeypatch.setattr("ppdiffusers.utils.import_utils._ppxformers_available", True)
    fresh = random_unet(DEMO / "unet_config.json")
    kinds = {type(processor) for processor in fresh.attn_processors.values()}
    assert (kinds != {AttnProcessor}) == fails
    if not fails:
        output_and_gradients(fresh)


def test_the_published_unet_has_the_head_sizes_that_are_tried():
    config = json.loads((DEMO.parent / "sd/unet_config.json").read_text())
    heads = config["attention_head_dim"]
    assert sorted(width // heads for width in config["block_out_channels"]) == [40, 80, 160, 160]
    small = random_unet(DEMO / "unet_config.json")
    demo = json.loads((DEMO / "unet_config.json").read_text())
    heads = demo["attention_head_dim"]
    assert attention.head_sizes(small) <= {width // heads for width in demo["block_out_channels"]} != set()
