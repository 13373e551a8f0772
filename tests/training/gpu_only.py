"""Training on a CPU with what only a GPU turns on, so that it is seen to work without one. As a script:

    python -m tests.training.gpu_only {scaler|master} FLAGS OF THE TRAINING COMMAND

`scaler` is loss scaling as under fp16, with a GradScaler that works on a CPU; `master` are gradients summed in float32
beside the weights' own, as under O2. Weights stay float32: a CPU has no other kernels.
"""

import sys
from types import SimpleNamespace
from unittest import mock

import paddle
import paddle.amp.grad_scaler as grad_scaler

from sd.training.trainer import StableDiffusionTrainer

SCALE = 2.0**15


def live_scaler():
    """A GradScaler that multiplies and updates on a CPU too."""
    place = SimpleNamespace(is_gpu_place=lambda: True, is_xpu_place=lambda: False, is_custom_place=lambda: False)
    with mock.patch.object(grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place)):
        scaler = paddle.amp.GradScaler(init_loss_scaling=SCALE)
    grad_scaler.amp_global_state().amp_dtype = "float16"
    return scaler


def turn_on(which, patch):
    """Let trainers that are made from now on train with `which`. patch: `setattr`, or a monkeypatch's."""
    make = StableDiffusionTrainer.__init__

    def init(self, model, args, *arguments, **options):
        make(self, model, args, *arguments, **options)
        if which == "scaler":
            self.amp_dtype, self.do_grad_scaling, self.scaler = "float16", True, live_scaler()
        else:
            self.amp_dtype, args.amp_master_grad = "bfloat16", True

    patch(StableDiffusionTrainer, "__init__", init)


if __name__ == "__main__":
    from sd.commands.train import leave
    from sd.flags.command_line import parse_arguments
    from sd.training.run import train

    turn_on(sys.argv[1], setattr)
    train(*parse_arguments(sys.argv[2:], environ={}))
    leave(0)
