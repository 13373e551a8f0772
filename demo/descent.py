"""The training loop of the demo's and the examples' frozen models."""

from collections.abc import Callable, Iterable
from typing import Any

import paddle
from tqdm import tqdm


def minimise(
    loss_of: Callable[[int], tuple[Any, dict[str, Any]]],
    parameters: Iterable[Any],
    learning_rate: float,
    steps: int,
    name: str,
    **adamw: Any,
) -> None:
    """Minimise a loss by AdamW (arXiv 1711.05101) on a cosine schedule from `learning_rate` to 0.

    loss_of: step -> (loss, values for the progress bar), all of them scalar tensors. adamw: more arguments of AdamW.
    """
    rate = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    optimizer = paddle.optimizer.AdamW(rate, parameters=list(parameters), **adamw)
    progress = tqdm(range(steps), desc=name, unit="step", mininterval=2)
    for step in progress:
        loss, shown = loss_of(step)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        if step % 20 == 0:
            progress.set_postfix({key: f"{float(value):.4g}" for key, value in shown.items()}, refresh=False)
