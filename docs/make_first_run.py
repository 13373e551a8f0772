"""Write docs/first_run.md: the transcript of a new user's walk, made by walking it in a fresh clone.

    python docs/make_first_run.py [--steps 600] [--output docs/first_run.md] [--folder FOLDER]

Needs no network: the clone takes this environment as its .venv. Ends with an error where a command's exit code is not
the expected one.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/first_run.md"
LIST = "processed_data/filelist/custom_dataset.filelist.list"
MODELS = "--vae_name_or_path demo/tiny_sd/vae --pretrained_model_name_or_path demo/tiny_sd --resolution 32"
TRAIN = f"sh train.sh @recipes/demo.args --output_dir out --file_list {LIST} --save_steps 20 --image_logging_steps -1"
INTRODUCTION = """\
# First run

The transcript of two walks through a fresh clone, made by `python docs/make_first_run.py` on two CPU cores, whose load
was {load:.1f} before it began; progress bars and the installation, a download of some minutes, are left out. The
quickstart took STEPS training steps{short}.
"""
SHORT = ", not 600, so its model draws no shapes yet"
# Title, what is told, and pairs (command, expected exit code).
WALK = [
    (
        "On a laptop",
        "The quickstart, then a look at what it made.",
        [
            ("sh quickstart.sh", 0),
            (". .venv/bin/activate", 0),
            (f"python -m sd.data.inspect quickstart_out/{LIST} --resolution 32 --output inspect.png", 0),
            (
                'python eval.py --unet quickstart_out/model --prompt "a blue square" --num_images 2 --guidance_scale 2',
                0,
            ),
            (
                "python eval.py --metrics --unet quickstart_out/model --variant ema --prompts_file demo/captions.txt "
                "--guidance_scales 1 2 3 --num_inference_steps 10 --clip_model demo/tiny_clip "
                f"--fid_model demo/tiny_clip --fid_reference quickstart_out/{LIST}",
                0,
            ),
            ("python export.py --checkpoint quickstart_out/model --output my_pipeline --format diffusers", 0),
        ],
    ),
    (
        "Your own pictures",
        "Here `my_pictures` holds drawn shapes, each with its caption in a text file beside it.",
        [("ls my_pictures | head -n 4", 0), ("STEPS=100 sh recipes/own_pictures.sh my_pictures", 0)],
    ),
    (
        "With PaddleMIX's commands",
        "Here `coco_data` holds drawn shapes in the place of COCO's pictures, and the demo's small models train.",
        [
            (
                "python create_pretraining_data.py --input_path coco_data/coco_data.jsonl "
                "--output_path ./processed_data --caption_key caption --image_key image --per_part_file_num 1000 "
                "--num_repeat 100 --save_gzip_file",
                0,
            ),
            (f"{TRAIN} --max_steps 20", 0),
            (f"{TRAIN} --max_steps 40", 0),
            ('python eval.py --unet out/checkpoint-40/unet --prompt "a red circle" --num_images 2', 0),
            (f"python precompute_latents.py --file_list {LIST} {MODELS} --output_path cache_32 --check 16", 0),
            (
                "sh train.sh @recipes/demo.args --file_list cache_32/filelist/custom_dataset.filelist.list "
                "--output_dir from_cache --max_steps 20 --image_logging_steps -1",
                0,
            ),
        ],
    ),
    (
        "What mistakes look like",
        "An error is one line: value, place, remedy. Exit codes: 2 for wrong input, 1 for a run that failed.",
        [
            ("python create_pretraining_data.py --input_path no/such.jsonl --output_path elsewhere", 2),
            ("sh train.sh --learning_rat 1e-4", 2),
            (f"{TRAIN} --max_steps 60 --seed 24", 2),
            (
                "sh train.sh @recipes/demo.args --file_list cache_32/filelist/custom_dataset.filelist.list "
                "--output_dir other --resolution 64",
                2,
            ),
        ],
    ),
]


def prepare(folder: Path) -> None:
    """A fresh clone with this environment, and the data that the walk calls the user's."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    make = [sys.executable, "-m", "demo.shapes", "--output"]
    subprocess.run([*make, "coco_data", "--count", "500"], cwd=folder, check=True, capture_output=True)
    (folder / "coco_data/shapes.jsonl").rename(folder / "coco_data/coco_data.jsonl")
    subprocess.run([*make, "drawn", "--count", "60", "--seed", "1"], cwd=folder, check=True, capture_output=True)
    pictures = folder / "my_pictures"
    pictures.mkdir()
    lines = (folder / "drawn/shapes.jsonl").read_text().splitlines()
    for caption, image in re.findall(r'"caption": "([^"]*)", "image": "([^"]*)"', "\n".join(lines)):
        (folder / "drawn" / image).rename(pictures / Path(image).name)
        (pictures / Path(image).name).with_suffix(".txt").write_text(caption + "\n")


def walk_command(folder: Path, command: str, steps: int) -> tuple[int, list[str]]:
    """Exit code and cleaned lines of output of one command."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FLAG_", "MKL_", "OMP_"))}
    environ |= {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}", "STEPS": str(steps), "COLUMNS": "110"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, clean(done.stdout.replace(str(folder), "/home/you/sd"))


def clean(output: str) -> list[str]:
    """The lines that stay on a terminal: no progress bars, warnings of other packages or blank lines, few log lines."""
    lines = []
    for line in output.split("\n"):
        shown = [piece.rstrip() for piece in line.split("\r") if piece.strip()]
        line = next((piece for piece in reversed(shown) if not re.search(r"\d+%\||\[\d\d:\d\d[,<\]]", piece)), "")
        foreign = "site-packages" in line or line.startswith(
            ("  warnings.warn", "  import pkg_resources", "  full_bar")
        )
        if line and not foreign:
            lines.append(line)
    is_step = [bool(re.search(r" step \d+/\d+ \| ", line)) for line in lines]
    stored = []
    for number, line in enumerate(lines):
        if is_step[number] and 0 < number < len(lines) - 1 and is_step[number - 1] and is_step[number + 1]:
            line = "..."
        if line != "..." or stored[-1] != "...":
            stored.append(line)
    return stored


def make_page(folder: Path, steps: int) -> str:
    """Walk in a new folder, and return the page."""
    prepare(folder)
    pieces = [
        INTRODUCTION.format(short="" if steps == 600 else SHORT, load=os.getloadavg()[0]).replace("STEPS", str(steps))
    ]
    for title, reported, commands in WALK:
        pieces.append(f"## {title}\n\n{reported}\n")
        for command, expected in commands:
            print("+", command, flush=True)
            code, lines = walk_command(folder, command, steps)
            if code != expected:
                raise SystemExit("\n".join([*lines, f"exit code {code}, expected {expected}: {command}"]))
            ending = [f"(exit code {code})"] if code else []
            pieces.append("\n".join(["```console", f"$ {command}", *lines, *ending, "```\n"]))
    return "\n".join(pieces)


def main() -> None:
    """Walk and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="training steps of the quickstart")
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--folder", type=Path, help="folder for the clone, which stays (default: a temporary one)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (flags.folder or Path(temporary) / "sd").resolve()
        flags.output.write_text(make_page(folder, flags.steps), encoding="utf-8")


if __name__ == "__main__":
    main()
