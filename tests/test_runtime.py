"""The processor's settings: chosen from what it lists, never over the user's own."""

import os
import subprocess
import sys

import pytest

from sd import runtime

ALL_AVX512 = "avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl"


def cpuinfo(vendor, flags):
    return f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu sse2 {flags}\n\nprocessor\t: 1\nvendor_id\t: other\n"


@pytest.mark.parametrize(
    ("vendor", "flags", "path"),
    [
        ("AuthenticAMD", ALL_AVX512, "7"),
        ("HygonGenuine", "avx2 fma", "5"),
        ("AuthenticAMD", ALL_AVX512.replace("avx512dq ", ""), "5"),
        ("AuthenticAMD", "avx2", None),
        ("AuthenticAMD", "avx", None),
        ("GenuineIntel", ALL_AVX512, None),
    ],
)
def test_a_path_is_named_only_if_the_processor_lists_all_it_needs(vendor, flags, path):
    assert runtime.mkl_path(cpuinfo(vendor, flags)) == path


def test_an_unreadable_processor_list_names_no_path():
    assert runtime.mkl_path("") is None


def test_ranks_of_one_machine_share_its_cores():
    amd = cpuinfo("AuthenticAMD", ALL_AVX512)
    assert runtime.settings(amd, 8, {"PADDLE_LOCAL_SIZE": "2"}) == {"MKL_NUM_THREADS": "4", "MKL_DEBUG_CPU_TYPE": "7"}
    assert runtime.settings(amd, 2, {"PADDLE_LOCAL_SIZE": "8"})["MKL_NUM_THREADS"] == "1"


def test_variables_set_by_the_user_are_not_changed():
    amd = cpuinfo("AuthenticAMD", ALL_AVX512)
    assert runtime.settings(amd, 8, {"MKL_NUM_THREADS": "3"}) == {"MKL_DEBUG_CPU_TYPE": "7"}
    assert runtime.settings(amd, 8, {"SD_RUNTIME": "off"}) == {}


def test_cores_respect_the_affinity_mask():
    program = "from sd import runtime; print(runtime.usable_cores())"
    one = min(os.sched_getaffinity(0))
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
    )
    assert result.stdout.strip() == "1"


def test_prepare_refuses_to_come_too_late():
    program = "import sys; sys.modules['paddle'] = sys; from sd import runtime; runtime.prepare()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode != 0
    assert "came after Paddle's import" in result.stderr


def test_this_processors_settings_run_a_matrix_product():
    program = (
        "from sd import runtime; runtime.prepare(); import os, paddle; "
        "x = paddle.ones([64, 64]); print(float((x @ x).sum()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == str(64.0**3)
    assert "MKL_NUM_THREADS=" in result.stderr or "MKL_NUM_THREADS" in os.environ


TAKE_AND_FREE = """
import ctypes, resource, sys
from sd import runtime
runtime.prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(256 << 20)
    ctypes.memset(block, 1, 256 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run(
        [sys.executable, "-c", TAKE_AND_FREE], capture_output=True, text=True, check=True, env=clean | environ
    )
    return int(result.stdout), result.stderr


def test_a_freed_block_is_taken_again_without_new_pages():
    faults, reported = page_faults()
    assert faults < 100
    assert "freed memory is kept" in reported


@pytest.mark.parametrize("environ", [{"SD_RUNTIME": "off"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_memory_goes_back_if_the_user_wants_that(environ):
    faults, reported = page_faults(**environ)
    assert faults > 100  # 128 with pages of 2 MB, 65,536 with pages of 4 KB
    assert "freed memory" not in reported
