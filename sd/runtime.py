"""Environment variables for Paddle's MKL and for malloc, set before Paddle is imported. Standard library only.

Paddle's wheel computes on one thread, its MKL takes a slow path on processors that are not Intel's, and its large
tensors go back to the system when freed, to be paged in anew at every step. `SD_RUNTIME=off` leaves everything as it
is; a variable that the user has set is never changed.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from sd import devices
from sd.home import ensure_writable_home

# MKL_DEBUG_CPU_TYPE -> the instruction sets its code path uses. Type 8 and above need what no AMD processor has.
_MKL_PATHS = {"7": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}, "5": {"avx2", "fma"}}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def mkl_path(cpuinfo: str) -> str | None:
    """The fastest safe MKL_DEBUG_CPU_TYPE for a processor, or None where MKL chooses well by itself.

    cpuinfo: the text of /proc/cpuinfo. A path is named only if every instruction set that it uses is listed there:
    a wrong one ends the process by an illegal instruction.
    """
    fields = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    if fields.get("vendor_id") not in ("AuthenticAMD", "HygonGenuine"):
        return None
    flags = set(fields.get("flags", "").split())
    return next((path for path, needed in _MKL_PATHS.items() if needed <= flags), None)


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut to the container's quota (cgroup 2 or 1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = " ".join((Path("/sys/fs/cgroup") / name).read_text() for name in files).split()
        except OSError:
            continue
        if len(words) == 2 and words[0] not in ("max", "-1"):
            cores = min(cores, max(1, round(int(words[0]) / int(words[1]))))
    return cores


def is_off(environ: Mapping[str, str]) -> bool:
    """Whether SD_RUNTIME switches all settings off."""
    return environ.get("SD_RUNTIME", "").lower() in ("0", "off")


def settings(cpuinfo: str, cores: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables to set, as a dict: threads shared out over this machine's ranks, and the MKL path."""
    if is_off(environ):
        return {}
    ranks_here = int(environ.get("PADDLE_LOCAL_SIZE") or 1)
    variables = {"MKL_NUM_THREADS": str(max(1, cores // ranks_here)), "MKL_DEBUG_CPU_TYPE": mkl_path(cpuinfo)}
    return {name: value for name, value in variables.items() if value is not None and name not in environ}


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation of any size. Returns whether it was set.

    A full-size step frees and takes some 14 GB, whose pages cost as much time as half of its arithmetic.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or any(
        name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
    ):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1))


def prepare(device: str | None = None) -> None:
    """Set what helps and say so in one line on stderr (rank 0 alone). Call it before Paddle is imported.

    device: the `--device` that was given, see sd.devices.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("sd.runtime.prepare() came after Paddle's import, when its variables are no longer read")
    devices.prepare(device)
    ensure_writable_home(os.environ)
    cpuinfo = Path("/proc/cpuinfo")
    chosen = settings(cpuinfo.read_text() if cpuinfo.exists() else "", usable_cores(), os.environ)
    os.environ.update(chosen)
    settings_shown = [f"{name}={value}" for name, value in chosen.items()]
    if not is_off(os.environ) and keep_freed_memory():
        settings_shown.append("freed memory is kept")
    if settings_shown and os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        print(f"runtime: {', '.join(settings_shown)} (SD_RUNTIME=off leaves all as it is)", file=sys.stderr, flush=True)
