"""AdamW in as few operator calls as there are learning rates, and its state under the weights' own names."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor, _C_ops
from paddle.base import framework
from paddle.base.layer_helper import LayerHelper
from paddle.optimizer import AdamW

MOMENTS = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")
CHUNK = 2048 * 32  # numbers of a weight that one block of the GPU's kernel moves


class FusedAdamW(AdamW):
    """Paddle's AdamW with one call of `fused_adam_` for all weights of one learning rate. All decay alike.

    On a CPU the results equal those of Paddle's AdamW to the last bit, on a GPU to the rounding of one step. Nothing is
    read back from the device: whether the step is taken is the caller's decision.

    Weights in half precision move as float32 masters, by float32 gradients (half ones are converted), and are rounded
    from the masters afterwards.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._names: tuple[str, ...] = ()  # of the weights that moved in the last step
        self._groups: list[list[int]] = []  # their positions among these, by call
        self._steps = 0  # taken with these groups
        self._moves: Counter[str] = Counter()  # steps of each weight before these groups
        self._loaded: dict[str, float] = {}  # power of beta1 of each weight in the state that was loaded

    @paddle.no_grad()
    def _create_optimization_pass(
        self, parameters_and_grads: list[tuple[Tensor, Tensor]] | dict[str, Any], param_group_idx: int = 0
    ) -> None:
        self.helper = self.helper or LayerHelper(type(self).__name__)
        self._create_global_learning_rate()
        entries: Any = parameters_and_grads
        if isinstance(entries, dict):
            entries = self._update_param_group(entries)
        pairs = [(weight, grad) for weight, grad in entries if grad is not None]
        if self._names != (names := tuple(weight.name for weight, _ in pairs)):
            self._regroup([weight for weight, _ in pairs], names)
        self._steps += 1
        for positions in self._groups:
            self._move([pairs[position] for position in positions])

    def _regroup(self, weights: list[Tensor], names: tuple[str, ...]) -> None:
        """Choose the calls: weights of one learning rate that have taken equally many steps.

        The GPU's kernel takes the powers of beta of a call's first weight for all of them, and a part that is trained
        later than another has others.
        """
        self._create_accumulators(framework.default_main_program().global_block(), weights)
        for name in self._names:
            self._moves[name] += self._steps
        groups: dict[tuple, list[int]] = {}
        for position, weight in enumerate(weights):
            history = self._loaded.get(weight.name), self._moves[weight.name]
            groups.setdefault((weight.optimize_attr["learning_rate"], history), []).append(position)
        self._names, self._groups, self._steps = names, list(groups.values()), 0

    def _move(self, members: list[tuple[Tensor, Tensor]]) -> None:
        weights = [weight for weight, _ in members]
        halves = [weight for weight in weights if self._has_master(weight)]
        moved = [self._master_weights[weight.name] if self._has_master(weight) else weight for weight in weights]
        grads = [
            grad if grad.dtype == target.dtype else grad.astype(target.dtype)
            for (_, grad), target in zip(members, moved, strict=True)
        ]
        moment1, moment2, beta1_power, beta2_power = (
            [self._get_accumulator_master(name, weight) for weight in weights]
            for name in (
                self._moment1_acc_str,
                self._moment2_acc_str,
                self._beta1_pow_acc_str,
                self._beta2_pow_acc_str,
            )
        )
        _C_ops.fused_adam_(
            moved,
            grads,
            self._create_param_lr(members[0]),
            moment1,
            moment2,
            None,
            beta1_power,
            beta2_power,
            None,  # the masters are what moves here, so that float32 gradients fit them
            None,
            self._beta1,
            self._beta2,
            self._epsilon,
            CHUNK,
            self._weight_decay,
            True,
            False,
            False,
            False,
        )
        for weight in halves:
            weight.copy_(self._master_weights[weight.name].astype(weight.dtype), False)

    def set_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As AdamW's."""
        powers = {key: value for key, value in state_dict.items() if key not in ("master_weights", "LR_Scheduler")}
        split = {_split(key): value for key, value in powers.items()}
        self._loaded = {name: value.item() for (name, kind), value in split.items() if kind == "beta1_pow_acc"}
        self._names, self._moves = (), Counter()
        super().set_state_dict(state_dict)

    def _has_master(self, weight: Tensor) -> bool:
        return needs_master(self, weight)


def innermost(optimizer: Any) -> Any:
    """The optimizer inside the wrappers that sharding and mixed precision put around it."""
    while inner := getattr(optimizer, "_inner_opt", None) or getattr(optimizer, "_optim", None):
        optimizer = inner
    return optimizer


def local_parameters(optimizer: Any) -> list[Tensor]:
    """The parameters that an optimizer moves; under sharding those of this rank."""
    entries = innermost(optimizer)._parameter_list
    return [p for entry in entries for p in (entry["params"] if isinstance(entry, dict) else [entry])]


def needs_master(optimizer: Any, parameter: Tensor) -> bool:
    """Whether the optimizer moves this parameter as a float32 master weight."""
    inner = innermost(optimizer)
    return bool(getattr(inner, "_multi_precision", False)) and inner._is_dtype_fp16_or_bf16(parameter.dtype)


def named_state(optimizer: Any, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The state as {"<weight>/<kind>": tensor}, without copies; kind: moments, powers of beta, `master`.

    names: Paddle's parameter name -> the weight's name in the model. (Paddle's own names count the layers made so far
    in the process, so they differ from run to run.)
    """
    state = {}
    optimizer = innermost(optimizer)
    for key, tensor in optimizer.state_dict().items():
        if key == "master_weights":
            state.update({f"{names[name]}/master": master for name, master in tensor.items()})
        elif key != "LR_Scheduler":
            name, kind = _split(key)
            state[f"{names[name]}/{kind}"] = tensor
    return state


def _split(key: str) -> tuple[str, str]:
    """`conv2d_3.w_0_moment1_0` -> (`conv2d_3.w_0`, `moment1`); master weights add `_fp32_master_0` to the name."""
    for kind in MOMENTS:
        head, separator, tail = key.rpartition(f"_{kind}_")
        if separator and tail.isdigit():
            return head.partition("_fp32_master")[0], kind
    raise KeyError(key)


def paddle_state(optimizer: Any, names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The inverse of `named_state`: what the optimizer's own `set_state_dict` takes, for the weights it holds.

    names as in `named_state`. state: {"<weight>/<kind>": tensor}. Returns None before the first step was taken. Whether
    there are masters is this run's affair: of a weight in float32 the state's is left out.
    """
    optimizer = innermost(optimizer)
    ours = {}
    for parameter in local_parameters(optimizer):
        weight = names[parameter.name]
        has_master = f"{weight}/master" in state and needs_master(optimizer, parameter)
        stem = parameter.name + ("_fp32_master_0" if has_master else "")
        for kind in MOMENTS:
            if f"{weight}/{kind}" in state:
                ours[f"{stem}_{kind}_0"] = state[f"{weight}/{kind}"]
        if has_master:
            master = state[f"{weight}/master"]
            master.name = stem  # after which the optimizer looks for the moments
            ours.setdefault("master_weights", {})[parameter.name] = master
    return ours or None
