"""CancellableAdamW moves weights as AdamW does, or not at all, and its state survives new parameter names."""

import numpy as np
import paddle
import pytest

import sd.training.optimizer as optimizer_module
from sd.training.optimizer import CancellableAdamW, held_parameters, named_state, paddle_state


def make(optimizer_class):
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Linear(4, 5), paddle.nn.LayerNorm(5), paddle.nn.Linear(5, 2))
    parameters = layer.parameters()
    groups = [{"params": parameters[:3], "learning_rate": 0.3}, {"params": parameters[3:]}]
    return layer, optimizer_class(learning_rate=1e-2, parameters=groups, weight_decay=0.1)


def take_steps(layer, optimizer, batches):
    for batch in batches:
        if isinstance(optimizer, CancellableAdamW):
            optimizer.cancel = paddle.to_tensor([not np.isfinite(batch).all()])
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


def test_uncancelled_steps_are_those_of_adamw(batches):
    ours, theirs = make(CancellableAdamW), make(paddle.optimizer.AdamW)
    take_steps(*ours, batches)
    take_steps(*theirs, batches)
    assert np.array_equal(weights(ours[0]), weights(theirs[0]))


def test_a_cancelled_step_leaves_weights_and_moments(batches):
    bad = np.full((3, 4), np.nan, np.float32)
    disturbed, undisturbed = make(CancellableAdamW), make(CancellableAdamW)
    take_steps(*disturbed, [*batches[:2], bad, bad, *batches[2:], bad])
    take_steps(*undisturbed, batches)
    assert np.array_equal(weights(disturbed[0]), weights(undisturbed[0]))


@pytest.mark.parametrize("passes", [1, 2])
def test_moving_in_the_backward_pass_gives_the_same_weights_and_holds_no_large_gradient(batches, passes, monkeypatch):
    monkeypatch.setattr(optimizer_module, "LARGE", 12)
    held, moved = make(CancellableAdamW), make(CancellableAdamW)
    moved[1].move_in_backward()
    for layer, optimizer in (held, moved):
        scheduler = paddle.optimizer.lr.ExponentialDecay(1e-2, 0.5)
        optimizer.set_lr_scheduler(scheduler)
        for number, batch in enumerate(batches):
            last = (number + 1) % passes == 0
            if last:
                optimizer.cancel = paddle.to_tensor([number == 3])
                optimizer.begin_last_pass()
            (layer(paddle.to_tensor(batch)) ** 2).mean().backward()
            if last and optimizer is moved[1]:
                assert {parameter.size >= 12 for parameter in layer.parameters()} == {True, False}
                assert all((parameter.grad is None) == (parameter.size >= 12) for parameter in layer.parameters())
            if last:
                optimizer.step()
                optimizer.clear_grad()
                scheduler.step()
    assert np.array_equal(weights(held[0]), weights(moved[0]))
    assert not np.array_equal(weights(moved[0]), weights(make(CancellableAdamW)[0]))


def test_state_goes_to_another_process_names(batches):
    layer, optimizer = make(CancellableAdamW)
    take_steps(layer, optimizer, batches[:3])
    state = {key: tensor.numpy() for key, tensor in named_state(optimizer, names(layer)).items()}
    assert len(state) == 4 * 6 and state["0.weight/moment1"].shape == (4, 5)
    other, other_optimizer = make(CancellableAdamW)
    assert {p.name for p in held_parameters(other_optimizer)}.isdisjoint(names(layer))
    other.set_state_dict(layer.state_dict())
    tensors = {key: paddle.to_tensor(array) for key, array in state.items()}
    other_optimizer.set_state_dict(paddle_state(other_optimizer, names(other), tensors))
    take_steps(layer, optimizer, batches[3:])
    take_steps(other, other_optimizer, batches[3:])
    assert np.array_equal(weights(layer), weights(other))


def test_no_state_before_the_first_step():
    layer, optimizer = make(CancellableAdamW)
    assert named_state(optimizer, names(layer)) == {}
    assert paddle_state(optimizer, names(layer), {}) is None
