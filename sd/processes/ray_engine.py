"""Packing and caching over a Ray cluster: in order, the same bytes as on one machine, retries after node failures."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sd
from sd.errors import InputError, RunError, first_line

_MAX_RETRIES = 8  # a part whose node dies is packed elsewhere, to the same bytes


def run_on_ray(
    function: Callable[[Any], Any], tasks: Iterable[Any], address: str | None, *, on_gpus: bool = False
) -> Generator[Any, None, None]:
    """Yield `function(task)` for each task, in order, at most two for each CPU of the cluster in hand.

    on_gpus: each task has a GPU to itself where the cluster has any, and two for each GPU are in hand. Inputs and
    outputs must be reachable from every node under the same path. `address` None starts Ray on this machine. Raises
    InputError without Ray or a cluster, RunError if a part cannot be made on any node.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install -r requirements-ray.txt") from error
    with _connected(ray, address):
        gpus = int(ray.cluster_resources().get("GPU", 0)) if on_gpus else 0
        remote = ray.remote(num_cpus=1, num_gpus=min(1, gpus), max_retries=_MAX_RETRIES)(_in_folder)
        pending, folder = deque(), str(Path.cwd())
        try:
            for task in tasks:
                pending.append(remote.remote(folder, function, task))
                if len(pending) >= 2 * max(1, gpus or int(ray.cluster_resources().get("CPU", 1))):
                    yield ray.get(pending.popleft())
            while pending:
                yield ray.get(pending.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray: {first_line(error)}; the same command resumes") from error


def _in_folder(folder, function, task):
    os.chdir(folder)  # the user's relative paths start here
    return function(task)


@contextmanager
def _connected(ray, address):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {} if address else {"include_dashboard": False}
    code = {"py_modules": [str(Path(sd.__file__).parent)]}
    try:
        ray.init(address=address or "local", runtime_env=code, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RaySystemError) as error:
        raise InputError(f"--ray_address {address}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
