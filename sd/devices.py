"""Which device computes: `cpu`, `gpu` or `gpu:N`, with one meaning in all scripts. Standard library until `select`.

`prepare` comes before Paddle's import, where the choice of a CPU can still hide the cards; `select` comes after it,
checks that the card is there, and sets Paddle's device. What a card cannot do is an error that names the remedy.
"""

import os
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd.errors import ArgumentError, InputError, last_line
from sd.versions import has_gpu_paddle

GIB = 2**30
# Compute capability from which Paddle has the kernels of a half precision; below it autocast switches itself off.
CAPABILITY_NEEDED = {"bf16": (8, 0), "fp16": (7, 0)}
PRECISIONS = ("fp32", *CAPABILITY_NEEDED)
_INSTALL_GPU = "install the GPU build into an environment of its own (`pip install -r requirements-gpu.txt`)"


@dataclass(frozen=True)
class Device:
    """A device as Paddle computes on it. kind: `cpu` or `gpu`; index: the card's number among the visible ones."""

    kind: str
    index: int | None = None

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def parse(text: str) -> Device:
    """A Device from `cpu`, `gpu` or `gpu:N`. Raises InputError for anything else."""
    match = re.fullmatch(r"(cpu|gpu)(?::(\d+))?", text)
    if match is None or (match[1] == "cpu" and match[2]):
        raise InputError(f"--device {text}; expected cpu, gpu or gpu:N")
    return Device(match[1], int(match[2]) if match[2] else None)


def requested(argv: Sequence[str]) -> str | None:
    """The last `--device` of a command line, None if there is none."""
    value = None
    for position, word in enumerate(argv):
        if word == "--device":
            value = argv[position + 1] if position + 1 < len(argv) else value
        elif word.startswith("--device="):
            value = word.partition("=")[2]
    return value


def check_flags(device: str | None, precision: str = "fp32") -> None:
    """Raise InputError for a device, or a precision (`fp32`, `fp16`, `bf16`) on it, that are wrong by what is known
    before Paddle is imported: their names, and for what the installed Paddle is built."""
    built_for_gpu = has_gpu_paddle()
    named = parse(device) if device is not None else None if built_for_gpu else Device("cpu")
    if named and named.kind == "gpu" and not built_for_gpu:
        raise _cpu_build(named)
    _check_precision_name(precision)
    if named and named.kind == "cpu" and precision != "fp32":
        raise _no_half_on_cpu(precision)


def prepare(device: str | None, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment for `device` before Paddle is imported. Raises InputError for what is no device.

    On `cpu` the cards are hidden: libraries that try a GPU's kernels at import would find them, and then meet tensors
    on the CPU. ppdiffusers' own choice of attention kernels is off everywhere, see sd.models.attention.
    """
    environ.setdefault("USE_PPXFORMERS", "0")
    if device is not None and parse(device).kind == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
        environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        environ.pop("FLAGS_selected_gpus", None)


def has_nvidia_card() -> bool:
    """Whether the driver of this machine reports a card, whatever Paddle was built for."""
    cards = Path("/proc/driver/nvidia/gpus")
    return cards.is_dir() and any(cards.iterdir())


def driver_version() -> str | None:
    """The version of the NVIDIA driver, None where there is none."""
    try:
        match = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match[1] if match else None


def card_count() -> int:
    """Cards that Paddle can use: 0 for the CPU build, without a driver, or if all are hidden."""
    import paddle

    if not paddle.is_compiled_with_cuda():
        return 0
    try:
        return paddle.device.cuda.device_count()
    except (RuntimeError, OSError, ValueError):
        return 0


def select(name: str | None = None, precision: str = "fp32") -> Device:
    """Set Paddle's device and return it. name: `cpu`, `gpu`, `gpu:N`, or None for a card if there is one.

    precision: `fp32`, `fp16` or `bf16`, which the device must have kernels for. Under paddle.distributed.launch `gpu`
    is the card of this rank. Raises InputError for a device that is not there, and for the CPU build of Paddle beside a
    card, unless `cpu` was asked for.
    """
    import paddle

    count, built_for_gpu = card_count(), paddle.is_compiled_with_cuda()
    if name is None:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        if not built_for_gpu and has_nvidia_card() and not hidden:
            raise InputError(
                f"this machine has an NVIDIA card, but this Paddle is built for CPUs; {_INSTALL_GPU}, or use --device "
                "cpu"
            )
        name = "gpu" if count else "cpu"
    device = parse(name)
    if device.kind == "gpu":
        _check_card(device, count, built_for_gpu)
    try:
        paddle.set_device(str(device))
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"--device {device} cannot be used: {last_line(error)}") from None
    if device.kind == "gpu":
        device = current()
    check_precision(device, precision)
    return device


def _cpu_build(device: Device) -> InputError:
    return InputError(f"--device {device}: this Paddle is built for CPUs; {_INSTALL_GPU}, or use --device cpu")


def _check_card(device: Device, count: int, built_for_gpu: bool) -> None:
    if not built_for_gpu:
        raise _cpu_build(device)
    if not count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cause = f"CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else f"NVIDIA driver: {driver_version()}"
        raise InputError(f"--device {device}: Paddle sees no card ({cause}); mend that, or use --device cpu")
    if device.index is not None and int(os.environ.get("PADDLE_TRAINERS_NUM") or 1) > 1:
        raise InputError(f"--device {device} in several processes; use --device gpu, the launcher deals out the cards")
    if device.index is not None and device.index >= count:
        raise InputError(f"--device {device}: this process sees {count} card(s), gpu:0 to gpu:{count - 1}")


def shares(device: Device, processes: int) -> list[dict[str, str]]:
    """The environments of processes that share out this machine, dealt out in turn: a card for each, or on a CPU a part
    of the threads, since two teams of as many threads as there are cores stand in each other's way.

    Without its own card each process opens a context on the first one, where a library tries a kernel when it is
    imported.
    """
    if device.kind == "cpu":
        threads = os.environ.get("MKL_NUM_THREADS", "")
        return [{"MKL_NUM_THREADS": str(max(1, int(threads) // processes))}] if threads.isdecimal() else []
    visible = [label for label in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if label]
    labels = visible or [str(index) for index in range(card_count())]
    return [{"CUDA_VISIBLE_DEVICES": label} for label in labels]


def check_precision(device: Device, precision: str) -> None:
    """Raise InputError if the device has no kernels for `fp16` or `bf16`. On an old card Paddle would only warn."""
    _check_precision_name(precision)
    if precision == "fp32":
        return
    if device.kind == "cpu":
        raise _no_half_on_cpu(precision)
    import paddle

    needed, capability = CAPABILITY_NEEDED[precision], paddle.device.cuda.get_device_capability(device.index or 0)
    if tuple(capability) < needed:
        others = [name for name, minimum in CAPABILITY_NEEDED.items() if tuple(capability) >= minimum]
        card = paddle.device.cuda.get_device_name(device.index or 0)
        raise InputError(
            f"{precision} on {card} of compute capability {capability[0]}.{capability[1]}; it needs "
            f"{needed[0]}.{needed[1]}, use {' or '.join([*others, 'fp32'])}"
        )


def _check_precision_name(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ArgumentError("dtype", precision, f"; expected one of {', '.join(PRECISIONS)}")


def _no_half_on_cpu(precision: str) -> InputError:
    return InputError(f"{precision} on device 'cpu', where Paddle has no kernels for it; use fp32")


def search_convolutions() -> None:
    """Let cuDNN choose its convolutions by trying all of them, once for each shape."""
    import paddle

    paddle.set_flags({"FLAGS_cudnn_exhaustive_search": True})


def memory_bytes(device: Device) -> int:
    """The whole memory of a card, or what is available of this machine's."""
    if device.kind == "cpu":
        import psutil

        return psutil.virtual_memory().available
    import paddle

    return paddle.device.cuda.get_device_properties(device.index or 0).total_memory


def current() -> Device:
    """The device that Paddle computes on now."""
    import paddle

    return parse(paddle.device.get_device())


def describe(device: Device) -> str:
    """One line for people: the device, and of a card its name, memory, compute capability, driver and CUDA."""
    import paddle

    if device.kind == "cpu":
        from sd.runtime import usable_cores

        return f"cpu, {usable_cores()} cores, {memory_bytes(device) / GIB:.1f} GiB free"
    properties = paddle.device.cuda.get_device_properties(device.index or 0)
    capability = f"compute capability {properties.major}.{properties.minor}"
    software = f"driver {driver_version() or 'unknown'}, CUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}"
    return f"{device}, {properties.name}, {properties.total_memory / GIB:.1f} GiB, {capability}, {software}"
