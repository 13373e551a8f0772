"""The training step under a table of settings: images/s, model FLOP utilisation, peak memory. One command fills it:

    python -m bench train_step --device gpu                           256 px, the table of docs/gpu.md
    python -m bench train_step --device gpu --resolution 512 --batch 16
    python -m bench train_step --device cpu --size tiny               whichever settings a CPU has

The real trainer takes the steps, on one batch of random numbers that is on the device before (so no data workers), and
weights are random. Each setting has a process of its own: one that runs out of memory is a row that says so.
Utilisation is what bench/operations.py counts, without recomputed work, over the card's published half-precision rate
(`--peak_tflops` names it; a card that is not known, and a CPU, is measured by a matrix product of 4096 x 4096 x 4096).
Rows, card, driver, versions and settings are in bench/results/DATE_train-step-CARD.json.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from bench.results import ROOT, Results, installed_versions
from sd import devices
from sd.errors import InputError

BF16_O2 = {"bf16": True, "fp16_opt_level": "O2"}
# What is shown in the table -> flags of the training command; `attention`, `source` and `batch_times` are ours.
SETTINGS = {
    "fp32": {},
    "fp32, plain attention": {"attention": "plain"},
    "bf16 O1": {"bf16": True},
    "bf16 O2": BF16_O2,
    "bf16 O2, plain attention": BF16_O2 | {"attention": "plain"},
    "bf16 O2, memory-efficient attention": BF16_O2 | {"attention": "memory_efficient"},
    "fp16 O2": {"fp16": True, "fp16_opt_level": "O2"},
    "fp32, NHWC": {"data_format": "NHWC"},
    "bf16 O2, NHWC": BF16_O2 | {"data_format": "NHWC"},
    "bf16 O2, cuDNN search": BF16_O2 | {"cudnn_exhaustive_search": True},
    "bf16 O2, NHWC, cuDNN search": BF16_O2 | {"data_format": "NHWC", "cudnn_exhaustive_search": True},
    "bf16 O2, recompute": BF16_O2 | {"recompute": True},
    "bf16 O2, recompute, batch x 4": BF16_O2 | {"recompute": True, "batch_times": 4},
    "bf16 O2, batch x 2": BF16_O2 | {"batch_times": 2},
    "bf16 O2, moving average": BF16_O2 | {"use_ema": True},
    "bf16 O2, cached latents": BF16_O2 | {"source": "latents"},
    "bf16 O2, cached latents and text": BF16_O2 | {"source": "latents and text"},
    "bf16 O2, cached latents and text, batch x 4": BF16_O2 | {"source": "latents and text", "batch_times": 4},
    "fp32, recompute": {"recompute": True},
    "fp32, cached latents and text": {"source": "latents and text"},
    "fp32, --to_static": {"to_static": True},
    "bf16 O2, --to_static": BF16_O2 | {"to_static": True},
}
OURS = ("attention", "source", "batch_times", "data_format")
# Dense half-precision matrix rates from the makers' data sheets, in 1e12 operations a second; first match wins.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "H800": 989, "A100": 312, "A800": 312, "L40S": 362}
PEAK_TFLOPS |= {"GB200": 2500, "B200": 2250, "L40": 181, "A40": 150, "A10": 125, "4090": 165, "3090": 71}
PEAK_TFLOPS |= {"V100": 125, "T4": 65}


def model_of(size, setting):
    """(StableDiffusionModel with random weights, UNet configuration as a dict, tokens of a caption)."""
    import ppdiffusers
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    from bench.full_size import TEXT_CONFIG, VAE_CONFIG
    from sd.diffusion.model import StableDiffusionModel
    from sd.flags.arguments import SDModelArguments
    from sd.models.loading import random_unet

    unet, vae, text, length = ROOT / "sd/unet_config.json", VAE_CONFIG, TEXT_CONFIG, 77
    if size == "tiny":
        folder = ROOT / "demo/tiny_sd"
        unet, length = ROOT / "demo/unet_config.json", 16
        vae, text = (json.loads((folder / part / "config.json").read_text()) for part in ("vae", "text_encoder"))
    config = json.loads(unet.read_text()) | {key: setting[key] for key in ("data_format",) if key in setting}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        parts = {"unet": random_unet(file.name), "vae": ppdiffusers.AutoencoderKL.from_config(vae)}
    parts["text_encoder"] = CLIPTextModel(CLIPTextConfig(**text))
    tokenizer = argparse.Namespace()  # no caption is read
    args = SDModelArguments(model_max_length=length, snr_gamma=5.0)
    model = StableDiffusionModel(**parts, tokenizer=tokenizer, model_args=args)
    if "latents" in setting.get("source", ""):
        del model.vae
    if "text" in setting.get("source", ""):
        del model.text_encoder
    return model, config, length


def random_batch(model, source, resolution, batch, length):
    """Everything that a step takes, as NumPy arrays."""
    rng = np.random.default_rng(0)
    shape = (batch, *model.latent_shape(resolution))
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name in ("noise", "posterior_noise")}
    arrays["timestep"] = rng.integers(0, 1000, batch)
    if "latents" in source:
        moments = rng.standard_normal((batch, 2 * shape[1], *shape[2:]))
        arrays["moments"] = moments.astype(np.float16)
    else:
        arrays["pixel_values"] = rng.integers(0, 256, (batch, 3, resolution, resolution), dtype=np.uint8)
    if "text" in source:
        width = model.unet.config.cross_attention_dim
        arrays["text_states"] = rng.standard_normal((batch, length, width)).astype(np.float16)
    else:
        arrays["input_ids"] = rng.integers(0, model.text_config.vocab_size, (batch, length))
    return arrays


def measure(args, setting):
    """Take the steps of one setting in this process. Returns its figures, a row of the table without `setting`."""
    from sd import runtime
    from sd.logs import import_quietly

    runtime.prepare(args.device)
    import_quietly()
    import paddle

    from sd.flags.command_line import parse_arguments
    from sd.models.attention import use_fastest_attention
    from sd.training.trainer import StableDiffusionTrainer

    batch = args.batch * setting.get("batch_times", 1)
    flags = {"recompute": False} | {key: value for key, value in setting.items() if key not in OURS}
    flags |= {"device": args.device, "per_device_train_batch_size": batch, "max_steps": args.warm + args.steps}
    flags |= {"logging_steps": args.warm, "report_to": "none", "max_grad_norm": -1, "disable_tqdm": True}
    flags |= {"output_dir": args.folder, "save_strategy": "no", "image_logging_steps": -1, "learning_rate": 1e-4}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    *_, training_args = parse_arguments(["--do_train", *words], environ={})
    model, _, length = model_of(args.size, setting)
    arrays = random_batch(model, setting.get("source", ""), args.resolution, batch, length)
    tensors = {name: paddle.to_tensor(value) for name, value in arrays.items()}

    class Timed(StableDiffusionTrainer):
        """Steps on the same batch; keeps the rates that it logs and writes nothing."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.logged = []

        def get_train_dataloader(self):
            return iter(lambda: tensors, None)

        def log(self, logs, **kwargs):
            self.logged.append(logs)

        def _save_checkpoint(self, model, metrics=None):
            pass

    trainer = Timed(model, training_args)
    if "attention" in setting:
        dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[training_args.precision]
        use_fastest_attention(model.unet, [dtype], setting["attention"])
    trainer.train()
    if training_args.device == "gpu":
        peak = paddle.device.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    last = trainer.logged[-1]
    rate = last["samples_per_second"]
    actual = {"images/s": rate, "peak GiB": peak / 2**30, "loss": last["loss"], "batch": batch}
    actual["data_wait_percent"] = last["data_wait_percent"]
    if args.size == "full":
        from bench.operations import step_flops

        source = setting.get("source", "")
        flops = step_flops(args.resolution, vae="latents" not in source, text_encoder="text" not in source)
        actual["utilisation"] = flops * rate / (args.peak_tflops or peak_tflops(training_args.device)) / 1e12
    return actual


def peak_tflops(device):
    """The published half-precision rate of the card, or what a large float32 matrix product reaches."""
    import paddle

    name = paddle.device.cuda.get_device_name() if device == "gpu" else ""
    for card, rate in PEAK_TFLOPS.items():
        if card in name:
            return rate
    side, best = 4096, float("inf")
    square = paddle.ones([side, side])
    for _ in range(3):
        begin = time.perf_counter()
        float(paddle.matmul(square, square)[0, 0])
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e12


def describe(device):
    """The device and what runs on it, as a dict. Raises InputError if it cannot be used."""
    from sd import devices, runtime
    from sd.logs import import_quietly

    runtime.prepare(device)
    import_quietly()
    import paddle

    selected = devices.select(device)
    card = paddle.device.cuda.get_device_name(selected.index) if selected.kind == "gpu" else "cpu"
    versions = {"python": platform.python_version(), "driver": devices.driver_version(), **installed_versions()}
    if selected.kind == "gpu":
        versions |= {"cuda": paddle.version.cuda(), "cudnn": paddle.version.cudnn()}
    return {"card": card, "device": devices.describe(selected), "versions": versions}


def run_alone(words, argv):
    """This script with other words in a process of its own. Returns (the JSON object that it prints or None, the
    finished process)."""
    command = [sys.executable, "-m", "bench", "train_step", *argv, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    line = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    return (json.loads(line) if line else None), done


def run_setting(name, argv):
    """Measure one setting in a process of its own. Returns its figures, or why there are none."""
    figures, done = run_alone(["--one", name], argv)
    return (figures, "") if figures else (None, reason(done))


def reason(done, max_length=110):
    """Why a process printed no figures, in a few words. Out of memory may kill it anywhere."""
    full = ("ResourceExhausted", "MemoryError", "out of memory", "Out of memory")
    if done.returncode < 0 or any(word in done.stderr for word in full):
        return "out of memory"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].removeprefix("error: ")[
        :max_length
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="gpu", help="cpu, gpu or gpu:N (default: %(default)s)")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="the UNet of v1-4, or the demo's")
    parser.add_argument("--resolution", type=int, help="default 256; 32 for the demo's")
    parser.add_argument("--batch", type=int, help="default 32; on a CPU 1, or 8 for the demo's")
    parser.add_argument("--steps", type=int, help="measured steps; default 20, on a CPU 2")
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="settings whose name holds one of these")
    parser.add_argument("--peak_tflops", type=float, help="the card's half-precision rate, if it is not known here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_gpu, tiny = devices.parse(args.device).kind == "gpu", args.size == "tiny"
    args.resolution = args.resolution or (32 if tiny else 256)
    args.batch = args.batch or (32 if on_gpu else 8 if tiny else 1)
    args.warm, args.steps = (5, args.steps or 20) if on_gpu else (2, args.steps or 2)
    args.steps = -(-args.steps // args.warm) * args.warm
    if args.one:
        with tempfile.TemporaryDirectory() as args.folder:
            print(json.dumps(measure(args, SETTINGS[args.one])), flush=True)
        return
    if args.describe:
        print(json.dumps(describe(args.device)), flush=True)
        return
    machine, done = run_alone(["--describe"], sys.argv[1:])
    if machine is None:
        raise InputError(reason(done, max_length=1000))
    settings = {name: getattr(args, name) for name in ("size", "resolution", "batch", "warm", "steps", "peak_tflops")}
    chosen = [name for name in SETTINGS if not args.only or any(word in name for word in args.only)]
    counted = f"{args.size} model, {args.resolution} px, the trainer's clock of {args.steps} steps after {args.warm}"
    columns = ["setting", "batch", "images/s", "utilisation", "peak GiB", "failure"]
    table = Results(f"train_step_{machine['card']}", columns, counted, {**machine, "settings": settings})
    for name in chosen:
        figures, failure = run_setting(name, sys.argv[1:])
        table.add(setting=name, **(figures or {"failure": failure}))
    print(f"\nwritten: {table.path}")
