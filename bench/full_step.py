"""One optimizer step of the full UNet (860 M weights, 256 px, batch 1) as Paddle's wheel comes, as this toolkit takes
it, and in PyTorch with diffusers: seconds and peak memory, in turn, in one run.

    KEEP=/tmp/torch_env python bench/full_step.py

A step is forward, backward and AdamW on given latents and text states; the median of the steps after the second
counts, since the first take their memory from the system. KEEP names the folder in which bench/torch_env.sh makes, or
finds, the environment with PyTorch.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

ROOT = Path(__file__).resolve().parent.parent
PLAIN, OURS, TORCH = "Paddle's wheel as it comes", "this toolkit", "PyTorch + diffusers"
WARM_UP = 2


def config():
    """The UNet's configuration, without its marks."""
    loaded = json.loads((ROOT / "sd/unet_config.json").read_text())
    return {name: value for name, value in loaded.items() if not name.startswith("_")}


def inputs():
    """Latents, text states, timestep of one sample, from a fixed generator."""
    import numpy as np

    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 32, 32), dtype=np.float32)
    return latents, rng.standard_normal((1, 77, 768), dtype=np.float32), np.array([500])


def paddle_step(prepared):
    """A function that takes one step."""
    sys.path.insert(0, str(ROOT))
    if prepared:
        from sd import runtime

        runtime.prepare()
    import paddle
    from ppdiffusers import UNet2DConditionModel

    from sd.training.optimizer import FusedAdamW
    from sd.training.step import sum_of_squares

    unet = UNet2DConditionModel(**config())
    if prepared:
        from sd.cpu.layers import speed_up

        speed_up(unet)
    optimizer_class = FusedAdamW if prepared else paddle.optimizer.AdamW
    optimizer = optimizer_class(learning_rate=1e-4, parameters=unet.parameters(), weight_decay=0.01)
    latents, states, timestep = (paddle.to_tensor(array) for array in inputs())

    def step():
        loss = ((unet(latents, timestep, states, return_dict=False)[0] - latents) ** 2).mean()
        loss.backward()
        if prepared:  # the check that each step of training makes
            float(sum_of_squares(parameter.grad for parameter in unet.parameters()))
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)

    return step


def torch_step():
    """The same in PyTorch."""
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**config()).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.01)
    latents, states, timestep = (torch.from_numpy(array) for array in inputs())

    def step():
        loss = ((unet(latents, timestep, states, return_dict=False)[0] - latents) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contend(name, num_steps):
    """Take steps and print what they took as one line of JSON."""
    step = torch_step() if name == TORCH else paddle_step(prepared=name == OURS)
    seconds = []
    for _ in range(WARM_UP + num_steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds[WARM_UP:], "peak": peak}), flush=True)


def measure(name, num_steps):
    """Run a contender in a process of its own. Returns (seconds of its steps, GiB at the peak)."""
    program = ["sh", str(ROOT / "bench/torch_env.sh")] if name == TORCH else [sys.executable]
    command = [*program, __file__, "--contender", name, "--steps", str(num_steps)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    return found["seconds"], found["peak"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=(PLAIN, OURS, TORCH), help="take the steps of this one alone")
    parser.add_argument("--steps", type=int, default=3, help="steps that count, a round (default 3)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each has its turn (default 2)")
    args = parser.parse_args()
    if args.contender:
        return contend(args.contender, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("KEEP", f"{folder}/torch")
        seconds, peaks = {name: [] for name in (PLAIN, OURS, TORCH)}, {}
        for _ in range(args.rounds):
            for name in seconds:
                taken, peaks[name] = measure(name, args.steps)
                seconds[name] += taken
    ours = statistics.median(seconds[OURS])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name:28s} {middle:6.2f} s a step ({middle / ours:.2f} x ours), peak {peaks[name]:.1f} GiB")


if __name__ == "__main__":
    main()
