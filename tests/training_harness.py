"""Training runs for tests: on tiny models and data, in this process or as a command of its own."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sd.flags.command_line import parse_arguments
from tests.data_maker import make_data
from tests.holding import Hold, wait_for
from tests.tiny import make_tiny_repository

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "train_txt2img_laion400m_trainer.py"
UNET, EMA = "unet/diffusion_paddle_model.safetensors", "unet/diffusion_paddle_model.ema.safetensors"


class Workshop:
    """A folder with tiny models and data, in which runs are made."""

    def __init__(self, folder):
        self.folder = Path(folder)
        make_tiny_repository(self.folder / "models")
        self.file_list = make_data(self.folder / "data", [12, 12, 9])

    def flags(self, output_dir, *more):
        """A command line that trains quickly; `more` wins."""
        values = {
            "output_dir": self.folder / output_dir,
            "pretrained_model_name_or_path": self.folder / "models",
            "unet_name_or_path": self.folder / "models/unet_config.json",
            "file_list": self.file_list,
            "device": "cpu",
            "resolution": 32,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "lr_scheduler_type": "constant",
            "max_steps": 4,
            "logging_steps": 2,
            "save_steps": 1000,
            "max_grad_norm": -1,
            "seed": 23,
            "report_to": "none",
            "disable_tqdm": True,
        }
        flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return ["--do_train", *flags, *map(str, more)]

    def train(self, output_dir, *more):
        """Train in this process. Returns the output folder."""
        from sd.training.run import train

        logging.getLogger("sd").setLevel(logging.INFO)
        self.stopped_by = train(*parse_arguments(self.flags(output_dir, *more), environ={}))
        return self.folder / output_dir

    def start(self, output_dir, *more, ranks=None, launch=(), hold=None, script=SCRIPT):
        """Start training as a process of its own, its output in <output_dir>.log. hold: a Hold of its processes."""
        log = self.folder / f"{output_dir}.log"
        command = [sys.executable, "-u", str(script)]
        if ranks:
            launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks), *map(str, launch)]
            command[2:2] = [*launcher, "--log_dir", str(self.folder / f"{output_dir}.ranks")]
        with log.open("a") as file:
            return subprocess.Popen(
                [*command, *self.flags(output_dir, *more)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | (hold.variables() if hold else {}),
                start_new_session=True,
            )

    def hold(self, name, step, **environ):
        """A Hold after a step; environ names the processes, as PADDLE_TRAINER_ID="1" does."""
        return Hold(self.folder / f"{name}.hold", "steps", step, **environ)

    def log(self, output_dir):
        """What such processes have written."""
        path = self.folder / f"{output_dir}.log"
        return path.read_text() if path.exists() else ""


def weights(checkpoint, name=UNET):
    """All weights of a checkpoint's file as one float32 vector."""
    tensors = load_file(Path(checkpoint) / name)
    return np.concatenate([tensors[key].ravel() for key in sorted(tensors)])


def checksums(checkpoint):
    """File name -> checksum, of every file of a checkpoint."""
    files = json.loads((Path(checkpoint) / "manifest.json").read_text())["files"]
    return {name: entry["xxh3_128"] for name, entry in files.items()}


def processes_of(output_dir):
    """Ids of the processes whose command line names output_dir."""
    actual = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(output_dir).encode() in words and path.parent.name != str(os.getpid()):
            actual.append(int(path.parent.name))
    return actual


def wait_until_gone(workshop, name):
    """Until no process of a run is left."""
    wait_for(
        lambda: not processes_of(workshop.folder / name), f"processes of {name} gone", log=lambda: workshop.log(name)
    )
