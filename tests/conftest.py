"""Every test process computes with the settings of the scripts: results are equal bit for bit only under the same.

Only with one thread, unless the environment says otherwise: the models of the tests are too small to gain by a second
one, and on a busy machine two threads wait for each other. test_environments.py runs what is numeric with two as well.
"""

import os
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings

from sd import runtime

# The same examples in every run: a test fails for who changed the code, not for who came next.
settings.register_profile("any load", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("PORT_RANGE", "20000:32767")  # of Paddle's launcher, as train_multi.sh sets it and why
runtime.prepare()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell without job control starts what is to run beside it, and the processes of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What takes longest, most of it starts of processes, in the order in which it is handed to the workers of pytest-xdist:
# one that came to such a file last would work on alone.
_LONGEST = [
    "training/test_training_processes.py",
    "training/test_trainer.py",
    "latents/test_precompute_processes.py",
    "metrics/test_watch.py",
    "training/test_bucket_training.py",
    "models/test_hub.py",
    "training/test_doctor.py",
    "data/streaming/test_data_workers.py",
    "test_errors.py",
    "gpu/test_acceptance.py",
    "training/test_resume.py",
    "latents/test_latent_training.py",
    "demo/test_demo_classify.py",
    "test_train_step_bench.py",
    "training/test_step.py",
]


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
