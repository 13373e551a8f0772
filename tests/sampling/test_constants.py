"""What is computed once for a drawing gives what the UNet gives by itself, and leaves the UNet as it was."""

import json
from pathlib import Path

import paddle
import pytest

from sd.models.loading import random_unet
from sd.sampling.constants import computed_once
from tests.numeric import roundings

ROWS, TEXTS = 4, 5


DEMO = Path("demo/unet_config.json")
PLAIN_FIRST = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
OTHER_FIRST = {"down_block_types": ["SimpleCrossAttnDownBlock2D"], "up_block_types": ["SimpleCrossAttnUpBlock2D"]}


def make_unet(config):
    paddle.seed(0)
    unet = random_unet(config)
    for parameter in unet.parameters():  # zeros to begin with would hide a wrong branch
        if not parameter.abs().max():
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    unet.eval()
    return unet


@pytest.fixture(scope="module")
def unet():
    return make_unet(DEMO)


def rows_seen(layer):
    """A list that grows by the rows of a layer's result at each call, and the hook's handle."""
    rows = []
    return rows, layer.register_forward_post_hook(lambda _, inputs, output: rows.append(output.shape[0]))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("change", [{}, {"only_cross_attention": True}, PLAIN_FIRST, OTHER_FIRST], ids=str)
def test_every_step_is_the_unets_own(change, guided, tmp_path):
    config = tmp_path / "unet_config.json"
    config.write_text(json.dumps(json.loads(DEMO.read_text()) | change))
    unet, exact = make_unet(config), random_unet(config)
    exact.set_state_dict(unet.state_dict())
    exact = exact.to(dtype="float64")
    exact.eval()
    noise = paddle.randn([ROWS, 4, 4, 4])
    if guided:
        noise[ROWS // 2 :] = noise[: ROWS // 2]
    with paddle.no_grad():
        for texts in (paddle.randn([ROWS, TEXTS, 64]), paddle.randn([ROWS, TEXTS, 64])):  # two drawings
            with computed_once(unet, guided):
                drawn = [unet(noise, paddle.to_tensor(t), texts).sample.numpy() for t in (980, 500, 1)]
            for timestep, ours in zip((980, 500, 1), drawn, strict=True):
                expected = exact(noise.astype("float64"), paddle.to_tensor(timestep), texts.astype("float64")).sample
                own = unet(noise, paddle.to_tensor(timestep), texts).sample
                # As near to float64 as the UNet itself is, to a factor for another order of sums.
                assert roundings(ours, expected.numpy()) <= 4 * roundings(own.numpy(), expected.numpy()) + 16


@pytest.mark.parametrize("guided", [False, True])
def test_what_comes_before_the_text_is_computed_for_one_half(unet, guided):
    block = unet.down_blocks[0]
    first, later = block.resnets[0].conv1, unet.mid_block.resnets[0].conv1
    attention = block.attentions[0].transformer_blocks[0]
    seen, handles = zip(
        *(rows_seen(layer) for layer in (first, attention.attn1.to_q, attention.attn2.to_q, later)), strict=True
    )
    with paddle.no_grad(), computed_once(unet, guided):
        unet(paddle.randn([ROWS, 4, 4, 4]), paddle.to_tensor(5), paddle.randn([ROWS, TEXTS, 64]))
    for handle in handles:
        handle.remove()
    few = ROWS // 2 if guided else ROWS
    assert list(seen) == [[few], [few], [ROWS], [ROWS]]


def test_the_unet_is_itself_again_even_after_an_error(unet):
    before = {name: layer.forward for name, layer in unet.named_sublayers() if "forward" in layer.__dict__}
    with pytest.raises(RuntimeError), computed_once(unet):
        assert "forward" in unet.time_proj.__dict__
        raise RuntimeError("cancelled")
    assert {name for name, layer in unet.named_sublayers() if "forward" in layer.__dict__} == set(before)


def test_the_text_is_projected_once_a_drawing_and_the_timestep_for_one_row(unet):
    calls = []
    layers = {"text": unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k, "time": unet.time_embedding}
    hooks = [
        layer.register_forward_post_hook(lambda _, inputs, output, name=name: calls.append((name, output.shape[0])))
        for name, layer in layers.items()
    ]
    counted = []
    own = layers["text"].forward

    def count(*arguments, **options):
        counted.append(1)
        return own(*arguments, **options)

    layers["text"].__dict__["forward"] = count
    try:
        with paddle.no_grad(), computed_once(unet):
            for timestep in (900, 500, 100):
                unet(paddle.randn([ROWS, 4, 4, 4]), paddle.to_tensor(timestep), paddle.randn([ROWS, TEXTS, 64]))
    finally:
        layers["text"].__dict__.pop("forward", None)
        for hook in hooks:
            hook.remove()
    assert len(counted) == 1 and [rows for name, rows in calls if name == "time"] == [1, 1, 1]
