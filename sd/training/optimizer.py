"""AdamW for this trainer: a step that the device itself can cancel, taken in the backward pass where nothing speaks
against it, and its state under the weights' own names."""

import functools

import paddle
from paddle import _C_ops
from paddle.base import framework
from paddle.optimizer import AdamW

LARGE = 2**18  # numbers of a weight whose gradient is worth freeing at once
MOMENTS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")


class CancellableAdamW(AdamW):
    """AdamW that leaves weights and moments as they are where `cancel`, a bool tensor on the device, is true.

    So a loss that is no number stops its step without the host having to wait for the loss at every step.
    """

    cancel = None
    _moves_in_backward = _is_last_pass = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._states = {}  # name of a weight -> (its moments and powers of beta, its master weight or None)
        self._rates = {}  # factor of a weight -> the tensor of its learning rate in this step

    def move_in_backward(self):
        """Move a large weight when its gradient is whole, and free that, so that they are never held all at once.

        From then on call `begin_last_pass` before the last backward pass of each step. Not with clipping, loss scaling
        or gradients to be reduced over ranks, all of which want the gradients first.
        """
        self._moves_in_backward = True
        for parameter in held_parameters(self):
            if parameter.size >= LARGE:
                parameter._register_backward_hook(functools.partial(self._move, parameter))

    def begin_last_pass(self):
        """Gradients of the backward pass that follows complete those of the step; `cancel` is known."""
        self._is_last_pass = self._moves_in_backward
        if self._is_last_pass:
            self._create_optimization_pass([])  # makes the tensor of the learning rate

    def _move(self, parameter):
        if self._is_last_pass:
            if parameter.name not in self._states:
                self._create_accumulators(framework.default_main_program().global_block(), [parameter])
            self._append_optimize_op(None, (parameter, parameter.grad))
            parameter.clear_gradient(False)

    def step(self):
        """Move the weights that have not moved in the backward pass."""
        self._is_last_pass = False
        super().step()

    def _append_optimize_op(self, block, param_and_grad):
        if isinstance(param_and_grad, dict):
            param_and_grad = self._update_param_group(param_and_grad)
        param, grad = param_and_grad
        moments, master = self._states.get(param.name) or self._find_state(param)
        _C_ops.adamw_(
            param,
            grad,
            self._rate(param),
            moments[0],
            moments[1],
            None,
            moments[2],
            moments[3],
            master,
            self.cancel,
            self._beta1,
            self._beta2,
            self._epsilon,
            1.0,
            self._weight_decay,
            self._apply_decay_param_fun is None or self._apply_decay_param_fun(param.name),
            self._lazy_mode,
            1000,
            master is not None,
            False,
            False,
        )

    def _create_global_learning_rate(self):
        super()._create_global_learning_rate()
        self._rates.clear()

    def _rate(self, param):
        factor = param.optimize_attr["learning_rate"]
        if factor not in self._rates:
            with paddle.no_grad():
                self._rates[factor] = self._create_param_lr((param, None))
        return self._rates[factor]

    def _find_state(self, param):
        moments = [self._get_accumulator_master(getattr(self, f"_{name}_str"), param) for name in _ACCUMULATORS]
        master = self._master_weights[param.name] if self._has_master(param) else None
        self._states[param.name] = moments, master
        return moments, master

    def set_state_dict(self, state_dict):
        """As AdamW's; the tensors of the state may be others from here on."""
        self._states.clear()
        super().set_state_dict(state_dict)

    def _has_master(self, param):
        return self._multi_precision and self._is_dtype_fp16_or_bf16(param.dtype)


_ACCUMULATORS = ("moment1_acc", "moment2_acc", "beta1_pow_acc", "beta2_pow_acc")


def innermost(optimizer):
    """The optimizer inside the wrappers that sharding and mixed precision put around it."""
    while inner := getattr(optimizer, "_inner_opt", None) or getattr(optimizer, "_optim", None):
        optimizer = inner
    return optimizer


def held_parameters(optimizer):
    """The parameters that an optimizer moves; under sharding those of this rank."""
    entries = innermost(optimizer)._parameter_list
    return [p for entry in entries for p in (entry["params"] if isinstance(entry, dict) else [entry])]


def named_state(optimizer, names):
    """The state as {"<weight>/<what>": tensor}, without copies; what: moments, powers of beta, `master`.

    names: Paddle's parameter name -> the weight's name in the model. (Paddle's own names count the layers made so far
    in the process, so they differ from run to run.)
    """
    state = {}
    optimizer = innermost(optimizer)
    for key, tensor in optimizer.state_dict().items():
        if key == "master_weights":
            state.update({f"{names[name]}/master": master for name, master in tensor.items()})
        elif key != "LR_Scheduler":
            name, what = _split(key)
            state[f"{names[name]}/{what}"] = tensor
    return state


def _split(key):
    """`conv2d_3.w_0_moment1_0` -> (`conv2d_3.w_0`, `moment1`); master weights add `_fp32_master_0` to the name."""
    for what in MOMENTS:
        head, found, tail = key.rpartition(f"_{what}_")
        if found and tail.isdigit():
            return head.partition("_fp32_master")[0], what
    raise KeyError(key)


def paddle_state(optimizer, names, state):
    """The inverse of `named_state`: what the optimizer's own `set_state_dict` takes, for the weights it holds.

    names as in `named_state`. state: {"<weight>/<what>": tensor}. Returns None before the first step was taken.
    """
    optimizer = innermost(optimizer)
    ours = {}
    for parameter in held_parameters(optimizer):
        weight = names[parameter.name]
        has_master = f"{weight}/master" in state
        stem = parameter.name + ("_fp32_master_0" if has_master else "")
        for what in MOMENTS:
            if f"{weight}/{what}" in state:
                ours[f"{stem}_{what}_0"] = state[f"{weight}/{what}"]
        if has_master:
            ours.setdefault("master_weights", {})[parameter.name] = state[f"{weight}/master"]
    return ours or None
