"""What is computed once for a drawing gives what the UNet gives by itself, and leaves the UNet as it was."""

import paddle
import pytest

from sd.models.loading import random_unet
from sd.sampling.constants import computed_once
from tests.numeric import roundings

ROWS, TEXTS = 4, 5


@pytest.fixture(scope="module")
def unet():
    paddle.seed(0)
    unet = random_unet("demo/unet_config.json")
    for parameter in unet.parameters():  # zeros to begin with would hide a wrong branch
        if not parameter.abs().max():
            parameter.set_value(paddle.randn(parameter.shape) * 0.1)
    unet.eval()
    return unet


def test_every_step_is_the_unets_own(unet):
    exact = random_unet("demo/unet_config.json")
    exact.set_state_dict(unet.state_dict())
    exact = exact.to(dtype="float64")
    exact.eval()
    noise = paddle.randn([ROWS, 4, 4, 4])
    with paddle.no_grad():
        for texts in (paddle.randn([ROWS, TEXTS, 64]), paddle.randn([ROWS, TEXTS, 64])):  # two drawings
            with computed_once(unet):
                drawn = [unet(noise, paddle.to_tensor(t), texts).sample.numpy() for t in (980, 500, 1)]
            for timestep, ours in zip((980, 500, 1), drawn, strict=True):
                expected = exact(noise.astype("float64"), paddle.to_tensor(timestep), texts.astype("float64")).sample
                own = unet(noise, paddle.to_tensor(timestep), texts).sample
                # As near to float64 as the UNet itself is, to a factor for another order of sums.
                assert roundings(ours, expected.numpy()) <= 4 * roundings(own.numpy(), expected.numpy()) + 16


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
