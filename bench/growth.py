"""What a second worker or rank adds on this machine, and the order of the data at sizes that are not at hand.

    python bench/growth.py             packing, streaming, training: one against two
    python bench/growth.py --simulate  400 M records on 1,024 ranks x 8 data workers: arithmetic, in seconds

Rates are of the wall clock, the two ways in turns, the median of the rounds. Training is the demo's model, batch 32 a
rank; one rank has one core, both cores, and then two ranks have one core each.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

if __name__ == "__main__":  # before the imports below, so that a wrong Python gets one line
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from sd.entry import check

    check()

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RATE = re.compile(r"step (\d+)/\d+ \| .*?([\d.e+]+) images/s")
STEPS, WARM = 60, 20


def packing_rate(folder, workers):
    """Images/s of the packer, its start among them."""
    from bench.packing import pack_ours

    begin = time.perf_counter()
    pack_ours(folder, folder / f"packed-{time.monotonic_ns()}", 250, "--num_workers", workers)
    return 4000 / (time.perf_counter() - begin)


def streaming_rate(folder, workers, batches=48):
    """Samples/s of a DataLoader over JPEGs of 300 to 700 px, cut to 256 px, after its first batches."""
    import paddle

    from bench.streaming import BATCH, RESOLUTION, tokenize
    from sd.data.streaming.dataset import TextImagePair, collate, worker_init_fn

    data = TextImagePair(
        str(folder / "a.filelist.list"), tokenize, resolution=RESOLUTION, batch_size=BATCH, num_workers=workers
    )
    loader = paddle.io.DataLoader(
        data,
        batch_size=BATCH,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=worker_init_fn,
        use_shared_memory=False,
    )
    batch = iter(loader)
    for _ in range(4 * workers):
        next(batch)
    begin = time.perf_counter()
    for _ in range(batches):
        next(batch)
    return batches * BATCH / (time.perf_counter() - begin)


def training_rate(folder, ranks, cores):
    """Images/s over all ranks between steps WARM and STEPS, as the run's log has it."""
    words = ["--device", "cpu", "--output_dir", folder / f"run-{time.monotonic_ns()}"]
    words += ["--file_list", folder / "shapes-packed/filelist/custom_dataset.filelist.list", "--resolution", 32]
    words += ["--pretrained_model_name_or_path", "demo/tiny_sd", "--vae_name_or_path", "demo/tiny_sd/vae"]
    words += ["--text_encoder_name_or_path", "demo/tiny_sd/text_encoder", "--unet_name_or_path"]
    words += ["demo/unet_config.json", "--model_max_length", 16, "--recompute", False, "--report_to", "none"]
    words += ["--image_logging_steps", -1, "--save_strategy", "no", "--dataloader_num_workers", 0]
    words += ["--max_steps", STEPS, "--logging_steps", WARM]
    script = "train.sh" if ranks == 1 else "train_multi.sh"
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), "sh", script, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "NPROC": str(ranks)},
        capture_output=True,
        text=True,
    )
    rates = [float(rate) for step, rate in RATE.findall(done.stdout + done.stderr) if int(step) > WARM]
    if done.returncode or not rates:
        sys.exit(f"{script} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return statistics.harmonic_mean(rates)


def compare(rounds):
    """One against two of everything, in turns."""
    from bench import packing, streaming

    first, second = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packing.write_input(folder, 4000)
        streaming.make_data(folder, streaming.make_jpegs(320))
        run = lambda *words: subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)  # noqa: E731
        run("-m", "demo.shapes", "--output", folder / "shapes")
        run(
            *("create_pretraining_data.py", "--input_path", folder / "shapes/shapes.jsonl"),
            *("--output_path", folder / "shapes-packed", "--save_gzip_file"),
        )
        ways = {
            "packing, 1 worker": lambda: packing_rate(folder, 1),
            "packing, 2 workers": lambda: packing_rate(folder, 2),
            "streaming, 1 worker": lambda: streaming_rate(folder, 1),
            "streaming, 2 workers": lambda: streaming_rate(folder, 2),
            "training, 1 rank on 1 core": lambda: training_rate(folder, 1, [first]),
            "training, 1 rank on 2 cores": lambda: training_rate(folder, 1, [first, second]),
            "training, 2 ranks on a core each": lambda: training_rate(folder, 2, [first, second]),
        }
        rates = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                rates[name].append(way())
                print(f"  {name}: {rates[name][-1]:.4g}", file=sys.stderr, flush=True)
    print("\n| work | images/s | to the first of its kind |\n| --- | --- | --- |")
    for name, found in rates.items():
        base = next(rates[other] for other in rates if other.split(",")[0] == name.split(",")[0])
        rate = statistics.median(found)
        print(f"| {name} | {rate:.4g} | {rate / statistics.median(base):.2f} |")


def simulate(parts=400_000, rows=1000, ranks=1024, workers=8, batch=2):
    """The order of 400 M records for 1,024 ranks: what it costs, and that a step's samples are all different."""
    from sd.data.streaming.order import Order, worker_samples

    tracemalloc.start()
    begin = time.process_time()
    options = {"seed": 23, "lanes": ranks * workers, "deal_size": batch, "buffer_size": 1000}
    order = Order([(1.0, np.full(parts, rows))], **options)
    order.place(0)
    made, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    begin = time.process_time()
    order.place(3 * 10**9)
    resumed = time.process_time() - begin
    begin, places = time.process_time(), set()
    for rank in range(ranks):
        samples = worker_samples(10**9, batch, rank, ranks, 0, workers)
        places.update(order.place(next(samples)) for _ in range(batch))
    step = (time.process_time() - begin) / ranks
    assert len(places) == ranks * batch, "two ranks drew the same record"
    print(f"{parts * rows:,} records in {parts:,} parts; {ranks:,} ranks x {workers} data workers, batch {batch}")
    print(f"order made in {made:.2f} s and {peak / 1e6:.0f} MB; place after 3e9 samples in {resumed * 1e3:.1f} ms")
    print(
        f"a rank's first batch in {step * 1e3:.1f} ms; {len(places):,} records in a step over all ranks, all different"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--simulate", action="store_true", help="the arithmetic alone")
    args = parser.parse_args()
    if args.simulate:
        simulate()
    else:
        compare(args.rounds)


if __name__ == "__main__":
    main()
