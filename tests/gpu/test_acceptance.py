"""What is to hold on a card before a long run: `sh run_tests.sh -m gpu`, ten minutes on one, a few more on two.

Each test takes the device as an argument and runs on a CPU in the ordinary suite, in float32 where it names a half
precision. What is compared with is NumPy in float64, a run in float32, or a run that was not disturbed.
"""

import json
import re
import signal
import time

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from sd import devices
from sd.latents.options import CacheOptions
from sd.latents.run import precompute
from sd.models.attention import KERNELS, find_kernel
from sd.runs import checkpoint as ck
from sd.sampling.models import load_models
from sd.sampling.pipeline import draw_images
from sd.training import ema
from sd.training.optimizer import FusedAdamW
from sd.training.step import StepRunner
from tests.gpu.report import Report
from tests.training.test_optimizer import adamw
from tests.training_harness import EMA, UNET, weights

PRECISIONS = {
    "fp32": [],
    "bf16 O1": ["--bf16", "True"],
    "bf16 O2": ["--bf16", "True", "--fp16_opt_level", "O2"],
    "fp16 O1": ["--fp16", "True"],
    "fp16 O2": ["--fp16", "True", "--fp16_opt_level", "O2"],
}
EPSILON = {"float32": 2**-24, "bfloat16": 2**-9, "float16": 2**-11}


def precision_flags(device, precision):
    """The flags of a precision that the device has kernels for; a CPU has float32 alone, and runs each test once."""
    if device == "cpu":
        if precision != "fp32":
            pytest.skip("a CPU has float32 alone")
        return []
    kind = precision.partition(" ")[0]
    try:
        devices.check_precision(devices.current(), kind)
    except ValueError as error:
        pytest.skip(str(error))
    return PRECISIONS[precision]


def half_flags(device):
    """The flags of half precision, of the kind that the card has; none on a CPU."""
    if device == "cpu":
        return []
    has_bfloat16 = paddle.device.cuda.get_device_capability() >= devices.CAPABILITY_NEEDED["bf16"]
    return PRECISIONS["bf16 O2" if has_bfloat16 else "fp16 O2"]


def losses(text):
    """The losses that were logged, in order."""
    return [float(actual) for actual in re.findall(r"step \d+/\d+ \| loss ([\d.naif]+)", text)]


# Kernels against float64.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_kernel_equals_adamw(device, figures, dtype):
    """20 steps; each rounds the weight and its change: 8 x 2^-24 of the largest weight a step, and the cast at the end.

    Two tensors of sizes that fill no vector, one of a million numbers that fills many blocks.
    """
    rng = np.random.default_rng(1)
    layer = paddle.nn.Sequential(paddle.nn.Linear(7, 5), paddle.nn.Linear(1024, 1030))
    layer.to(dtype=dtype)
    optimizer = FusedAdamW(1e-3, parameters=layer.parameters(), weight_decay=0.1, multi_precision=True)
    start = [weight.astype("float32").numpy() for weight in layer.parameters()]
    gradients = [[rng.standard_normal(array.shape, dtype=np.float32) for array in start] for _ in range(20)]
    for each in gradients:
        tensors = [paddle.to_tensor(array) for array in each]
        optimizer._apply_optimize(None, None, list(zip(layer.parameters(), tensors, strict=True)))
    worst = 0.0
    for number, weight in enumerate(layer.parameters()):
        expected = adamw(start[number], [each[number].astype(np.float64) for each in gradients], 1e-3, 0.1)
        master = optimizer._master_weights.get(weight.name, weight)
        assert master.dtype == paddle.float32
        worst = max(worst, np.abs(master.numpy() - expected).max() / np.abs(expected).max())
        rounded = master.astype(dtype).astype("float32").numpy()
        assert np.array_equal(weight.astype("float32").numpy(), rounded)
    figures["largest difference of the largest weight"] = float(worst)
    assert worst <= 20 * 8 * 2**-24


def test_the_average_moves_by_one_call_as_in_the_formula(device, figures):
    """Each update rounds two products and their sum: 3 x 2^-24 of the largest operand."""
    layer = paddle.nn.Sequential(paddle.nn.Linear(7, 5), paddle.nn.Linear(512, 515))
    average = ema.EMA(layer, decay=0.9, merged=True)
    average.updates = 1000
    decay = float(np.float32(0.9))
    expected = {name: tensor.numpy().astype(np.float64) for name, tensor in average.average.items()}
    rng = np.random.default_rng(0)
    for step in range(1, 21):
        for name, weight in layer.named_parameters():
            array = rng.standard_normal(weight.shape, dtype=np.float32)
            weight.set_value(array)
            expected[name] = decay * expected[name] + (1 - decay) * array
        average.update(step)
    worst = max(np.abs(average.average[name].numpy() - expected[name]).max() for name in expected)
    figures["largest difference"] = float(worst)
    assert worst <= 20 * 3 * 2**-24 * 6


@pytest.mark.parametrize("head_size", [40, 80, 160])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_chosen_attention_is_attention(device, figures, dtype, head_size):
    """Against float64, from inputs rounded to the dtype: some roundings of the result's size, 16 of them allowed."""
    name = find_kernel(dtype, [head_size])
    figures["kernel"] = name or "plain operators"
    if name is None:
        assert (
            device == "cpu"
            or dtype != "bfloat16"
            or devices.CAPABILITY_NEEDED["bf16"] > (paddle.device.cuda.get_device_capability())
        )
        return
    rng = np.random.default_rng(0)
    tensors = [paddle.to_tensor(rng.standard_normal((2, 77, 8, head_size), dtype=np.float32)) for _ in range(3)]
    tensors = [tensor.astype(dtype) for tensor in tensors]
    query, key, value = (tensor.astype("float32").numpy().astype(np.float64) for tensor in tensors)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(head_size)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(axis=-1, keepdims=True), value)
    actual = KERNELS[name](*tensors).astype("float32").numpy()
    worst = np.abs(actual - expected).max() / np.abs(expected).max()
    figures["largest difference"] = float(worst)
    # TensorFloat-32 products are rounded as float16 is.
    assert worst <= 16 * max(EPSILON[dtype], EPSILON["float16"])


# Training.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_falls(device, workshop, caplog, figures, precision):
    caplog.set_level("INFO", logger="sd")
    steps, count = (60, 20) if device == "gpu" else (24, 8)
    flags = ["--device", device, *precision_flags(device, precision), "--max_steps", steps, "--logging_steps", 1]
    folder = workshop.train(f"falls_{device}_{precision}", *flags, "--learning_rate", 3e-3, "--use_ema")
    actual = losses(caplog.text)
    assert len(actual) == steps and np.isfinite(actual).all()
    figures["mean of the first and last steps"] = [float(np.mean(actual[:count])), float(np.mean(actual[-count:]))]
    assert np.mean(actual[-count:]) < np.mean(actual[:count]) - 0.02
    tensors = load_file(folder / f"checkpoint-{steps}" / UNET)
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    numbers = np.concatenate([array.ravel() for array in tensors.values()])
    low_bits = numbers.view(np.uint32) & 0xFFFF
    assert (low_bits != 0).mean() > 0.9, "the masters are rounded to half precision"


@pytest.mark.parametrize("precision", ["fp32", "bf16 O2", "fp16 O2"])
def test_a_resumed_run_is_the_uninterrupted_one(device, workshop, figures, precision):
    """To the last bit on a CPU. On a card nearest upsampling and flash attention add in any order: then the runs are to
    differ by less than a hundredth of what the weights have moved."""
    if device == "gpu":
        paddle.set_flags({"FLAGS_cudnn_deterministic": True})
    name = f"{device}_{precision}"
    flags = ["--device", device, *precision_flags(device, precision), "--use_ema", "--save_steps", 5]
    flags += ["--enable_xformers_memory_efficient_attention", "False"]
    whole = workshop.train(f"whole_{name}", *flags, "--max_steps", 10)
    workshop.train(f"half_{name}", *flags, "--max_steps", 5)
    half = workshop.train(f"half_{name}", *flags, "--max_steps", 10)
    for file in (UNET, EMA):
        one, other = weights(whole / "checkpoint-10", file), weights(half / "checkpoint-10", file)
        moved = np.abs(one - weights(whole / "checkpoint-5", file)).max()
        figures[f"{file}: difference of what moved"] = float(np.abs(one - other).max() / moved)
        assert np.array_equal(one, other) or (device == "gpu" and np.abs(one - other).max() < 0.01 * moved)


@pytest.mark.parametrize("precision", ["fp32", "bf16 O2", "fp16 O1"])
def test_validation_and_previews_are_written(device, workshop, caplog, figures, precision):
    caplog.set_level("INFO", logger="sd")
    flags = ["--device", device, *precision_flags(device, precision), "--max_steps", 2, "--report_to", "visualdl"]
    flags += ["--eval_file_list", workshop.file_list, "--eval_steps", 2, "--image_logging_steps", 2]
    folder = workshop.train(f"seen_{device}_{precision}", *flags, "--num_inference_steps", 2, "--use_ema")
    actual = [float(value) for value in re.findall(r"eval_loss\W+([\d.]+)", caplog.text)]
    figures["validation loss"] = actual
    assert actual and 0.2 < actual[-1] < 5
    assert [path for path in folder.rglob("vdlrecords*") if path.stat().st_size > 10_000]


def test_training_from_a_cache_lowers_the_loss(device, workshop, figures):
    options = CacheOptions(
        file_list=str(workshop.file_list),
        output_path=str(workshop.folder / f"cache_{device}"),
        pretrained_model_name_or_path=str(workshop.folder / "models"),
        resolution=32,
        cache_text=True,
        device=device,
        num_workers=0,
    )
    file_list, report = precompute(options)
    figures["rows"] = report["rows"]
    flags = [
        "--device",
        device,
        *half_flags(device),
        "--file_list",
        file_list,
        "--max_steps",
        3,
    ]
    folder = workshop.train(f"cached_{device}", *flags)
    assert np.isfinite(weights(folder / "checkpoint-3")).all()


def test_a_step_reads_one_value_back(device, workshop, monkeypatch, figures, tmp_path):
    """Counted by Paddle's profiler: copies from the device to the host within five steps, after three to warm up."""
    profiler = paddle.profiler.Profiler(
        on_trace_ready=paddle.profiler.export_chrome_tracing(str(tmp_path)), timer_only=False
    )
    take, state = StepRunner.run, {"steps": 0}

    def profiled(self, *arguments):
        state["steps"] += 1
        if state["steps"] == 4:
            profiler.start()
        outcome = take(self, *arguments)
        if state["steps"] == 8:
            profiler.stop()
        return outcome

    monkeypatch.setattr(StepRunner, "run", profiled)
    flags = [
        "--device",
        device,
        *half_flags(device),
        "--max_steps",
        15,
        "--logging_steps",
        100,
    ]
    workshop.train(f"reads_{device}", *flags, "--use_ema", "--gradient_accumulation_steps", 2)
    (path,) = tmp_path.glob("*.json")
    names = [str(event.get("name", "")) for event in json.loads(path.read_text())["traceEvents"]]
    copies = [name for name in names if re.search(r"DtoH|Device ?-> ?Host|D2H", name)]
    figures["copies to the host in 5 steps"] = len(copies)
    assert len(names) > 100 and len(copies) <= 5


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_killed_run_resumes_to_the_undisturbed_end(device, workshop):
    name = f"killed_{device}"
    flags = ["--device", device, "--max_steps", 14, "--save_steps", 3, "--logging_steps", 1]
    run = workshop.start(name, *flags)
    end = time.monotonic() + 300
    while "step 7/" not in workshop.log(name):
        assert time.monotonic() < end and run.poll() is None, workshop.log(name)[-2000:]
        time.sleep(0.05)
    run.kill()
    run.wait()
    newest = ck.checkpoint_step(ck.newest_intact_checkpoint(workshop.folder / name))
    assert newest in (6, 9, 12)
    assert workshop.start(name, *flags).wait(300) == 0, workshop.log(name)[-2000:]
    assert f"resuming from {workshop.folder / name}/checkpoint-{newest}" in workshop.log(name)
    assert ck.find_problem(workshop.folder / name / "checkpoint-14") is None


@pytest.mark.parametrize("flags", [[], ["--sharding", "stage1"], ["--sharding", "stage2"]], ids=["plain", "1", "2"])
@pytest.mark.parametrize("precision", ["fp32", "fp16 O1", "bf16 O2"])
@pytest.mark.slow
def test_two_cards_give_the_weights_of_one(device, workshop, figures, flags, precision):
    """Over ten steps; gradients are summed in another order, and Adam's epsilon keeps what is next to zero small. In
    half precision the terms themselves are rounded."""
    if device == "gpu" and devices.card_count() < 2:
        pytest.skip("needs two cards")
    if device == "cpu" and ("stage2" in flags or precision != "fp32"):
        pytest.skip("a CPU has neither stage 2 nor half precision")
    half = precision_flags(device, precision)
    common = ["--device", device, *half, "--data_lanes", 1, "--max_steps", 10, "--adam_epsilon", 0.01]
    name = "_".join([device, precision.replace(" ", ""), *flags[1:]])
    run = workshop.start(f"two_{name}", *common, "--per_device_train_batch_size", 2, *flags, ranks=2)
    assert run.wait(300) == 0, workshop.log(f"two_{name}")[-3000:]
    one = weights(workshop.train(f"one_{name}", *common) / "checkpoint-10")
    still = workshop.train(f"still_{name}", *common[2:], "--device", device, "--learning_rate", 0) / "checkpoint-10"
    moved = np.abs(one - weights(still)).max()
    share = np.abs(weights(workshop.folder / f"two_{name}/checkpoint-10") - one).max() / moved
    figures["difference of what moved"] = float(share)
    assert share < (0.2 if half else 0.01)


# Sampling.


@pytest.mark.parametrize(("dtype", "levels"), [("fp32", 0), ("fp16", 2), ("bf16", 8)])
def test_pictures_in_half_precision_are_those_of_float32(device, workshop, figures, dtype, levels):
    """Mean difference in levels of 256, between the same seeds; and two calls in float32 agree."""
    models = str(workshop.folder / "models")
    if device == "gpu":
        try:
            devices.check_precision(devices.current(), dtype)
        except ValueError as error:
            pytest.skip(str(error))

    def draw(of):
        loaded = load_models(pretrained_model=models, dtype=of if device == "gpu" else "fp32")
        settings = {"height": 32, "width": 32, "num_inference_steps": 10, "scheduler": loaded.scheduler()}
        return draw_images(loaded, ["a red circle"] * 4, seeds=range(4), **settings).astype(np.float64)

    plain, half = draw("fp32"), draw(dtype)
    difference = float(np.abs(half - plain).mean())
    figures["mean difference in levels"] = difference
    assert difference <= max(levels, 0 if device == "cpu" else 0.5)


# The report.


def test_the_report_holds_machine_outcomes_and_figures(tmp_path):
    report = Report()
    report.figures["test_a[gpu]"] = {"largest difference": 1e-7}
    report.add("test_a[gpu]", "passed", 1.234)
    report.add("test_b[gpu]", "failed", 2.0, "Traceback")
    report.add("test_c[gpu]", "skipped", 0.0, "needs two cards")
    stored = json.loads(report.write(tmp_path / "report.json", {"device": "gpu:0, NVIDIA H100"}).read_text())
    assert stored["device"] == "gpu:0, NVIDIA H100"
    assert (stored["passed"], stored["failed"], stored["skipped"]) == (1, 1, 1)
    first = {"test": "test_a[gpu]", "outcome": "passed", "seconds": 1.23, "largest difference": 1e-7}
    assert stored["results"][0] == first and stored["results"][2]["reason"] == "needs two cards"
