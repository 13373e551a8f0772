"""Fixtures of earlier revisions: what a revision packed, cached and trained, and what it read and computed from that.

    python -m tests.earlier REVISION

checks the revision out into a temporary folder, where it packs, caches and trains, and writes its files, with samples
and losses of its own, to `tests/fixtures/earlier/REVISION.tar.xz`. Make one before a file format changes.
`python -m tests.earlier models` made the models of all of them.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import xxhash

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests/fixtures/earlier"
SAMPLES = 24
SAVED, END = 2, 4  # steps: of the checkpoint in the fixture, and of the weights after it
LIST = "packed/filelist/custom_dataset.filelist.list"
CACHE_LIST = "cache/filelist/custom_dataset.filelist.list"
BUCKETS = ["--aspect_buckets", "32x32,40x24", "--aspect_group_size", "4"]
MODELS = ["--pretrained_model_name_or_path", "models", "--unet_name_or_path", "models/unet_config.json"]


def train(flags):
    """Train in this process. Returns the mean squared error of each step."""
    from sd import StableDiffusionModel

    try:
        from sd.flags.command_line import parse_arguments
        from sd.training.run import train
    except ImportError:  # before sd/ had folders
        from sd.command_line import parse_arguments

        from sd.training import train

    losses, forward = [], StableDiffusionModel.forward

    def recorded(self, *arguments, **batch):
        outputs = forward(self, *arguments, **batch)
        losses.append(float(np.mean(outputs["sample_loss"].numpy().astype(np.float64))))
        return outputs

    StableDiffusionModel.forward = recorded
    try:
        train(*parse_arguments(flags, environ={}))
    finally:
        StableDiffusionModel.forward = forward
    return losses


def train_flags(file_list, output_dir, max_steps, *more):
    """The flags of a run, relative to the fixture's folder."""
    values = {
        "output_dir": output_dir, "file_list": file_list, "device": "cpu", "resolution": 32, "model_max_length": 24,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.01, "max_steps": max_steps,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_steps": SAVED, "max_grad_norm": -1, "seed": 23,
        "caption_dropout": 0.25, "report_to": "none", "disable_tqdm": True, "use_ema": True,
    }  # fmt: skip
    return [
        "--do_train",
        *(word for name, value in values.items() for word in (f"--{name}", str(value))),
        *MODELS,
        *more,
    ]


def tokenize(text):
    """The caption's bytes, cut or filled to 40."""
    return np.frombuffer(text.encode()[:40].ljust(40, b"\0"), np.uint8).astype(np.int64)


def read_samples(file_list, state, shares=None, data_filter=None):
    """Position, caption and checksums of the samples from the state of a checkpoint (data_state.json) on."""
    from sd import TextImagePair

    options = {name: state[name] for name in ("seed", "lanes", "deal_size", "buffer_size")}
    if data_filter:
        options["data_filter"] = data_filter
    if shares:
        from sd.flags.captions import CaptionFlags, parse_shares

        options["captions"] = CaptionFlags(parse_shares(shares))
    if state.get("aspect_buckets"):
        from sd.data.streaming.buckets import BucketTable
        from sd.flags.aspect import parse_sizes

        options |= {"buckets": BucketTable(parse_sizes(state["aspect_buckets"])), "group_size": state["group_size"]}
    stream = TextImagePair(
        file_list,
        tokenize,
        resolution=32,
        batch_size=4,
        start_sample=state["samples_seen"],
        caption_dropout=0.25,
        **options,
    )
    entries = []
    for sample, _ in zip(stream, range(SAMPLES), strict=False):
        assert "error" not in sample, bytes(sample["error"])
        position = sample["position"] if "position" in sample else sample["place"]  # its name until November 2026
        entry = {"sample": int(sample["sample"]), "position": np.asarray(position).tolist()}
        if "input_ids" in sample:
            entry["caption"] = bytes(np.asarray(sample["input_ids"]).astype(np.uint8)).rstrip(b"\0").decode()
        for name in ("pixel_values", "moments", "text_states"):
            if name in sample:
                entry[name] = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(sample[name]).tobytes())
        entries.append(entry)
    return entries


def unpack(archive, folder):
    """Extract all, by the filter `data` where this Python has it: Debian 12's 3.11.2 has not."""
    archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def extract(revision, folder):
    """Unpack the models and a revision's fixture. Returns what is expected."""
    for name in ("models", revision):
        with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
            unpack(archive, folder)
    return json.loads((Path(folder) / "expected.json").read_text())


# -- making one --------------------------------------------------------------------------------------------------------


def make_input(folder):
    """Sixteen captioned images, ten of 35 x 35 pixels, whose crops of 32 need no resizing, and six of 45 x 27."""
    from PIL import Image

    folder.mkdir()
    with (folder / "data.jsonl").open("w") as lines:
        for number in range(16):
            width, height = (45, 27) if number % 8 in (1, 4, 6) else (35, 35)
            y, x = np.mgrid[:height, :width]
            channels = x * (number + 1), y * (2 * number + 1), x + y * number
            Image.fromarray((np.stack(channels, -1) % 256).astype(np.uint8)).save(folder / f"{number}.png")
            row = {"caption": f"picture {number}", "long_caption": [f"a long text of {number}", f"another of {number}"]}
            row |= {"image": f"{number}.png", "aesthetic": number / 2, "url": f"https://example.org/{number}"}
            lines.write(json.dumps(row) + "\n")


def make_models():
    """Write models.tar.xz: a UNet's configuration, and a VAE and a text encoder with random weights."""
    import paddle
    import ppdiffusers
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    from tests.tiny import UNET_CONFIG, make_tokenizer_files

    paddle.seed(7)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_tokens = make_tokenizer_files(folder / "tokenizer")
        sizes = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1}
        ends = {"bos_token_id": num_tokens - 2, "eos_token_id": num_tokens - 1, "pad_token_id": num_tokens - 1}
        config = CLIPTextConfig(
            vocab_size=num_tokens, num_attention_heads=2, max_position_embeddings=24, **sizes, **ends
        )
        CLIPTextModel(config).save_pretrained(str(folder / "text_encoder"), safe_serialization=True)
        ppdiffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 4, 4),
            norm_num_groups=2,
            sample_size=32,
        ).save_pretrained(str(folder / "vae"), safe_serialization=True)
        smaller = {"block_out_channels": [4, 8], "norm_num_groups": 2, "cross_attention_dim": 8}
        (folder / "unet_config.json").write_text(json.dumps(UNET_CONFIG | smaller) + "\n")
        write_tar("models", {"models": folder})


def write_tar(name, files):
    """Write a fixture, the same bytes for the same files. files: {name in it: path}."""

    def anonymous(member):
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    FOLDER.mkdir(exist_ok=True)
    with tarfile.open(FOLDER / f"{name}.tar.xz", "w:xz") as archive:
        for target, path in files.items():
            archive.add(path, target, filter=anonymous)


def record(has_columns):
    """In the revision's own process: train, and write expected.json."""
    from sd import runtime

    runtime.prepare()
    choice = {"data_filter": "aesthetic >= 1", "shares": "caption=0.5,long_caption=0.5"} if has_columns else {}
    flags = [*BUCKETS, "--data_filter", choice["data_filter"], "--caption_shares", choice["shares"]] if choice else []
    losses = train(train_flags(LIST, "run", END, *flags))
    state = json.loads(Path(f"run/checkpoint-{SAVED}/data_state.json").read_text())
    expected = {"flags": flags, "choice": choice, "losses": losses[SAVED:]}
    expected["samples"] = read_samples(LIST, state, **choice)
    if Path(CACHE_LIST).exists():
        expected["cached_samples"] = read_samples(CACHE_LIST, state, **choice)
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def make(revision):
    """Write the fixture of a revision."""
    with tempfile.TemporaryDirectory() as temporary:
        tree, work = Path(temporary, "tree"), Path(temporary, "work")
        tree.mkdir()
        work.mkdir()
        archive = subprocess.run(["git", "-C", ROOT, "archive", revision], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as file:
            unpack(file, tree)
        with tarfile.open(FOLDER / "models.tar.xz") as file:
            unpack(file, work)
        make_input(work / "input")
        environ = os.environ | {"PYTHONPATH": str(tree), "SD_ANY_VERSION": "1"}
        has_columns = (tree / "sd/data/columns.py").exists()

        def run(*command):
            subprocess.run([sys.executable, *command], cwd=work, env=environ, check=True)

        keys = ["--caption_key", "caption,long_caption", "--keep_columns", "aesthetic,url"] if has_columns else []
        run(
            tree / "create_pretraining_data.py", "--input_path", "input/data.jsonl", "--output_path", "packed",
            "--per_part_file_num", "6", "--save_gzip_file", *keys,
        )  # fmt: skip
        if (tree / "precompute_latents.py").exists():
            run(
                tree / "precompute_latents.py", "--file_list", LIST, "--output_path", "cache", "--resolution", "32",
                "--device", "cpu", "--cache_text", "--model_max_length", "24", *MODELS[:2],
                *(BUCKETS if has_columns else []),
            )  # fmt: skip
        run(Path(__file__), "record", str(int(has_columns)))
        names = ["expected.json", "packed", "cache", f"run/checkpoint-{SAVED}"]
        files = {name: work / name for name in names if (work / name).exists()}
        end = work / f"run/checkpoint-{END}/unet/diffusion_paddle_model.safetensors"
        write_tar(revision, {**files, "end.safetensors": end})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["models"]:
            make_models()
        case ["record", has_columns]:
            record(has_columns == "1")
        case [name]:
            make(name)
