"""The moving average against NumPy, its warm-up, its start and the exchange with the weights."""

import numpy as np
import paddle
import pytest

from sd.training import ema as ema_module
from sd.training.ema import EMA
from tests.numeric import assert_close


@pytest.fixture
def layer():
    paddle.seed(3)
    return paddle.nn.Linear(3, 2)


def set_weights(layer, value):
    for parameter in layer.parameters():
        parameter.set_value(np.full(parameter.shape, value, np.float32))


def test_it_follows_the_formula_with_warm_up(layer):
    ema = EMA(layer, decay=0.25)
    expected = layer.weight.numpy().astype(np.float64)
    for step, value in enumerate([1.0, -2.0, 4.0, 0.5], start=1):
        set_weights(layer, value)
        decay = min(0.25, step / (9 + step))
        expected = decay * expected + (1 - decay) * value
        ema.update(step)
    assert ema.updates == 4
    assert_close(ema.average["weight"].numpy(), expected, 4 * 3)  # four steps of a difference, a product and a sum


def test_the_warm_up_ends_at_the_decay(layer):
    ema = EMA(layer, decay=0.9999)
    decays = []
    for ema.updates in (0, 1, 90, 1_000, 89_989, 89_990, 10**6):
        decays.append(ema.decay_now())
    assert decays == pytest.approx([0.1, 2 / 11, 0.91, 1001 / 1010, 0.9999, 0.9999, 0.9999], abs=1e-8)


def test_until_its_start_it_is_a_copy(layer):
    ema = EMA(layer, decay=0.9, start_step=2)
    for step, value in enumerate([5.0, 7.0], start=1):
        set_weights(layer, value)
        ema.update(step)
        assert ema.average["weight"].numpy() == pytest.approx(value)
    set_weights(layer, 17.0)
    ema.update(3)
    assert ema.updates == 1 and ema.average["weight"].numpy() == pytest.approx(0.1 * 7 + 0.9 * 17)


@pytest.mark.parametrize("decay", [0.9999, 0.3])
def test_one_merged_call_gives_the_formula_and_leaves_the_weights(decay):
    """Against float64. Each update rounds two products and their sum: below 3 x 2^-24 of the larger of the operands."""
    paddle.seed(4)
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.Conv2D(2, 5, 3), paddle.nn.LayerNorm(7))
    ema = EMA(layer, decay=decay, merged=True)
    ema.updates = 10**6  # past the warm-up
    rng = np.random.default_rng(0)
    expected = {name: average.numpy().astype(np.float64) for name, average in ema.average.items()}
    rounded = float(np.float32(decay))
    for step in range(1, 30):
        for parameter in layer.parameters():
            parameter.set_value(rng.standard_normal(parameter.shape, dtype=np.float32))
        before = {name: parameter.numpy() for name, parameter in layer.named_parameters()}
        ema.update(step)
        for name, parameter in layer.named_parameters():
            assert np.array_equal(parameter.numpy(), before[name])
            expected[name] = rounded * expected[name] + (1 - rounded) * before[name]
    for name, average in ema.average.items():
        assert np.abs(average.numpy() - expected[name]).max() <= 30 * 3 * 2**-24 * 5


@pytest.mark.parametrize("decay", [0.9999, 0.999, 0.3, 0.0])
def test_the_factors_of_the_merged_call_sum_to_one(decay, monkeypatch):
    """As float32 numbers, in which the operator takes them; 0.9999 and 0.0001 rounded each by itself miss one by
    1.7e-8, a share of what a step moves."""
    calls = []
    monkeypatch.setattr(ema_module._C_ops, "merged_momentum_", lambda *arguments: calls.append(arguments))
    ema = EMA(paddle.nn.Linear(3, 2), decay=decay, merged=True)
    ema.updates = 10**6
    ema.update(1)
    (arguments,) = calls
    keep, share = np.float32(arguments[5]), np.float32(arguments[10])
    assert float(keep) + float(share) == 1 and keep == np.float32(decay)


def test_the_merged_call_is_a_copy_until_its_start(layer):
    ema = EMA(layer, decay=0.9, start_step=2, merged=True)
    for step, value in enumerate([5.0, 7.0], start=1):
        set_weights(layer, value)
        ema.update(step)
        assert (ema.average["weight"].numpy() == value).all()


def test_swapped_in_and_out_again_changes_nothing(layer):
    ema = EMA(layer, decay=0.5)
    set_weights(layer, 2.0)
    ema.update(1)
    average = ema.average["weight"].numpy().copy()
    with pytest.raises(RuntimeError), ema.swapped_in():
        assert np.array_equal(layer.weight.numpy(), average)
        raise RuntimeError
    assert (layer.weight.numpy() == 2.0).all() and np.array_equal(ema.average["weight"].numpy(), average)


def test_half_precision_weights_do_not_round_the_average(layer):
    layer.to(dtype="bfloat16")
    ema = EMA(layer, decay=0.9)
    master = {layer.weight.name: paddle.full([3, 2], 1.001), layer.bias.name: paddle.full([2], 1.001)}
    ema.update(1, masters=master)
    average = ema.average["weight"].numpy().copy()
    weights = layer.weight.astype("float32").numpy().copy()
    with ema.swapped_in():
        assert layer.weight.dtype == paddle.bfloat16
        assert np.allclose(layer.weight.astype("float32").numpy(), average, atol=1e-2)
    assert np.array_equal(ema.average["weight"].numpy(), average)
    assert np.array_equal(layer.weight.astype("float32").numpy(), weights)


def test_a_saved_average_resumes(layer):
    ema, other = EMA(layer, decay=0.9), EMA(paddle.nn.Linear(3, 2), decay=0.9)
    for step in range(1, 6):
        set_weights(layer, float(step))
        ema.update(step)
    other.load(((name, tensor.numpy()) for name, tensor in ema.average.items()), ema.updates)
    for each in (ema, other):
        set_weights(each.layer, 6.0)
        each.update(6)
    assert np.array_equal(ema.average["bias"].numpy(), other.average["bias"].numpy())
