"""FusedAdamW moves weights as Paddle's AdamW does, in few calls, and its state survives new parameter names."""

from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

import sd.training.optimizer as optimizer_module
from sd.training.optimizer import FusedAdamW, local_parameters, named_state, paddle_state

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def make_layer():
    paddle.seed(0)
    return paddle.nn.Sequential(paddle.nn.Linear(4, 5), paddle.nn.LayerNorm(5), paddle.nn.Linear(5, 2))


def make(optimizer_class, **options):
    layer = make_layer()
    parameters = layer.parameters()
    groups = [{"params": parameters[:3], "learning_rate": 0.3}, {"params": parameters[3:]}]
    return layer, optimizer_class(learning_rate=1e-2, parameters=groups, weight_decay=0.1, **options)


def take_steps(layer, optimizer, batches):
    for batch in batches:
        (layer(paddle.to_tensor(batch)) ** 2).mean().backward()
        optimizer.step()
        optimizer.clear_grad()


def weights(layer):
    return np.concatenate([parameter.numpy().ravel() for parameter in layer.parameters()])


def names(layer):
    return {parameter.name: name for name, parameter in layer.named_parameters()}


@pytest.fixture
def batches():
    return list(np.random.default_rng(0).standard_normal((6, 3, 4), dtype=np.float32))


@pytest.fixture
def calls(monkeypatch):
    """Names of the operators that the optimizer calls, with their positional arguments."""
    actual = []

    class Recorded:
        def __getattr__(self, name):
            operator = getattr(paddle._C_ops, name)
            return lambda *arguments: (actual.append((name, arguments)), operator(*arguments))[1]

    monkeypatch.setattr(optimizer_module, "_C_ops", Recorded())
    return actual


@pytest.mark.parametrize("clip", [None, 0.01])
def test_steps_are_those_of_paddles_adamw_to_the_last_bit(batches, clip):
    options = {"grad_clip": paddle.nn.ClipGradByGlobalNorm(clip)} if clip else {}
    ours, theirs = make(FusedAdamW, **options), make(paddle.optimizer.AdamW, **options)
    take_steps(*ours, batches)
    take_steps(*theirs, batches)
    assert np.array_equal(weights(ours[0]), weights(theirs[0]))


def test_a_step_is_one_call_for_each_learning_rate_and_reads_nothing_back(batches, calls):
    layer = make_layer()
    for number, parameter in enumerate(layer.parameters()):
        parameter.optimize_attr["learning_rate"] = 0.3 if number < 3 else 1.0
    optimizer = FusedAdamW(learning_rate=1e-2, parameters=layer.parameters())
    take_steps(layer, optimizer, batches[:2])
    fused = [arguments for name, arguments in calls if name == "fused_adam_"]
    assert [name for name, _ in calls if "adam" in name] == ["fused_adam_"] * 4
    assert [len(arguments[0]) for arguments in fused] == [3, 3, 3, 3]
    # The flag that skips a step is copied to the host by the GPU's kernel, and waits for the device.
    assert all(arguments[9] is None for arguments in fused)
    # Powers of beta on the CPU are arguments of the GPU's kernel; on the card they are a launch more.
    assert all(power.place.is_cpu_place() for arguments in fused for power in (*arguments[6], *arguments[7]))


def test_a_component_trained_later_is_a_call_of_its_own(batches, calls):
    """The GPU's kernel corrects the bias of all weights of a call by the powers of beta of its first weight."""
    pairs = []
    for optimizer_class in (FusedAdamW, paddle.optimizer.AdamW):
        layer = make_layer()
        optimizer = optimizer_class(learning_rate=1e-2, parameters=layer.parameters())
        for parameter in layer[0].parameters():
            parameter.stop_gradient = True
        take_steps(layer, optimizer, batches[:3])
        for parameter in layer[0].parameters():
            parameter.stop_gradient = False
        take_steps(layer, optimizer, batches[3:])
        pairs.append(weights(layer))
    assert [len(arguments[0]) for name, arguments in calls if name == "fused_adam_"] == [4] * 3 + [2, 4] * 3
    assert np.array_equal(*pairs)


def adamw(weight, gradients, rate, decay):
    """AdamW in float64 (arXiv 1711.05101, algorithm 2), as Paddle writes it: epsilon beside the corrected root."""
    weight, first, second = weight.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight = weight * (1 - rate * decay)
        weight = weight - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weight


@pytest.mark.parametrize("gradient_dtype", ["float32", "bfloat16"])
def test_half_weights_move_as_float32_masters(gradient_dtype):
    """Masters against float64. In a step the product with 1 - rate x decay, the quotient and their sum round: 8 x 2^-24
    of the weight and of the step, and as much comes from each of beta's powers in float32.
    """
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal((5, 7)), rng.standard_normal((20, 5, 7)).astype(np.float32)
    weight = paddle.nn.Linear(5, 7).to(dtype="bfloat16").weight
    weight.set_value(paddle.to_tensor(start, "float32").astype("bfloat16"))
    start = weight.astype("float32").numpy()
    optimizer = FusedAdamW(1e-3, parameters=[weight], weight_decay=0.1, multi_precision=True)
    given = [paddle.to_tensor(gradient).astype(gradient_dtype) for gradient in gradients]
    for gradient in given:
        optimizer._apply_optimize(None, None, [(weight, gradient)])
    master = optimizer._master_weights[weight.name]
    expected = adamw(start, [gradient.astype("float32").numpy().astype(np.float64) for gradient in given], 1e-3, 0.1)
    assert master.dtype == paddle.float32 and weight.dtype == paddle.bfloat16
    assert np.abs(master.numpy() - expected).max() <= 20 * 8 * 2**-24 * np.abs(expected).max()
    assert np.array_equal(weight.astype("float32").numpy(), master.astype("bfloat16").astype("float32").numpy())


def test_state_goes_to_another_process_names(batches):
    layer, optimizer = make(FusedAdamW)
    take_steps(layer, optimizer, batches[:3])
    state = {key: tensor.numpy() for key, tensor in named_state(optimizer, names(layer)).items()}
    assert len(state) == 4 * 6 and state["0.weight/moment1"].shape == (4, 5)
    other, other_optimizer = make(FusedAdamW)
    assert {p.name for p in local_parameters(other_optimizer)}.isdisjoint(names(layer))
    other.set_state_dict(layer.state_dict())
    tensors = {key: paddle.to_tensor(array) for key, array in state.items()}
    other_optimizer.set_state_dict(paddle_state(other_optimizer, names(other), tensors))
    take_steps(layer, optimizer, batches[3:])
    take_steps(other, other_optimizer, batches[3:])
    assert np.array_equal(weights(layer), weights(other))


def test_an_optimizer_state_of_before_fusing_resumes_bit_for_bit():
    """fixtures/adamw_state.safetensors: weights and named state after three steps of one `adamw_` call a weight, and
    the weights after three more."""
    stored = load_file(FIXTURES / "adamw_state.safetensors")
    layer = make_layer()
    for number, (name, parameter) in enumerate(layer.named_parameters()):
        parameter.set_value(stored[f"weight/{name}"])
        parameter.optimize_attr["learning_rate"] = 0.3 if number < 3 else 1.0
    optimizer = FusedAdamW(learning_rate=1e-2, parameters=layer.parameters(), weight_decay=0.1)
    state = {key.partition("/")[2]: paddle.to_tensor(stored[key]) for key in stored if key.startswith("state/")}
    optimizer.set_state_dict(paddle_state(optimizer, names(layer), state))
    take_steps(layer, optimizer, stored["batches"][3:])
    for name, parameter in layer.named_parameters():
        # The fixture's processor may have multiplied matrices in another order; the moved weights show a wrong state
        # in the first digit.
        np.testing.assert_allclose(parameter.numpy(), stored[f"after/{name}"], rtol=1e-5, atol=1e-6)
    assert set(named_state(optimizer, names(layer))) == set(state)


def test_no_state_before_the_first_step():
    layer, optimizer = make(FusedAdamW)
    assert named_state(optimizer, names(layer)) == {}
    assert paddle_state(optimizer, names(layer), {}) is None


def follow(optimizer_class, schedule, batches):
    """Weights after each step under a schedule that changes with every step."""
    layer = make_layer()
    optimizer = optimizer_class(schedule(), parameters=layer.parameters(), weight_decay=0.1)
    actual = []
    for batch in batches:
        take_steps(layer, optimizer, [batch])
        optimizer._learning_rate.step()
        actual.append(weights(layer))
    return actual


@pytest.mark.parametrize(
    "schedule",
    [
        lambda: paddle.optimizer.lr.ExponentialDecay(1e-2, 0.5),
        lambda: paddle.optimizer.lr.LinearWarmup(1e-2, 3, 0.0, 1e-2),
        lambda: paddle.optimizer.lr.PiecewiseDecay([2, 4], [1e-2, 0.0, 3e-2]),
    ],
)
def test_each_step_has_the_learning_rate_that_paddles_adamw_would_give_it(batches, schedule):
    ours, theirs = follow(FusedAdamW, schedule, batches), follow(paddle.optimizer.AdamW, schedule, batches)
    for mine, expected in zip(ours, theirs, strict=True):
        assert np.array_equal(mine, expected)
    assert not np.array_equal(
        ours[-1], follow(FusedAdamW, lambda: paddle.optimizer.lr.StepDecay(1e-2, 99), batches)[-1]
    )


def test_a_second_state_loaded_in_one_process_takes_the_place_of_the_first(batches, calls):
    """A page or a notebook may resume twice: once all weights were trained alike, once the first layer came later."""

    def trained(optimizer_class, late):
        layer = make_layer()
        optimizer = optimizer_class(1e-2, parameters=layer.parameters())
        for parameter in layer[0].parameters():
            parameter.stop_gradient = late
        take_steps(layer, optimizer, batches[:2])
        for parameter in layer[0].parameters():
            parameter.stop_gradient = False
        take_steps(layer, optimizer, batches[2:3])
        state = {key: tensor.numpy().copy() for key, tensor in named_state(optimizer, names(layer)).items()}
        return {name: value.numpy().copy() for name, value in layer.state_dict().items()}, state

    ends = []
    for optimizer_class in (FusedAdamW, paddle.optimizer.AdamW):
        stored = [trained(optimizer_class, late) for late in (False, True)]
        layer = make_layer()
        optimizer = optimizer_class(1e-2, parameters=layer.parameters())
        take_steps(layer, optimizer, batches[:1])
        for state_dict, state in stored:
            calls.clear()
            layer.set_state_dict({name: paddle.to_tensor(value) for name, value in state_dict.items()})
            tensors = {key: paddle.to_tensor(array) for key, array in state.items()}
            optimizer.set_state_dict(paddle_state(optimizer, names(layer), tensors))
            take_steps(layer, optimizer, batches[3:])
            ends.append((weights(layer), [len(arguments[0]) for name, arguments in calls if name == "fused_adam_"]))
    (first, together), (second, apart), (their_first, _), (their_second, _) = ends
    assert np.array_equal(first, their_first) and np.array_equal(second, their_second)
    # On a card, weights that have taken fewer steps must not be moved by the powers of beta of the others.
    assert together == [6] * 3 and apart == [2, 4] * 3
