"""eval.py as a command: its defaults, its quick help, its exit codes."""

import subprocess
import sys
from pathlib import Path

from sd.commands import sample as script
from sd.sampling import run

ROOT = Path(__file__).resolve().parents[2]


def test_no_arguments_draw_what_the_reference_draws(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    monkeypatch.setattr(script.runtime, "prepare", lambda device: None)
    monkeypatch.setattr(run, "run", seen.append)
    script.main()
    assert seen[0].prompt == ["a photo of an astronaut riding a horse on mars"]
    assert seen[0].output == "astronaut_rides_horse.png"
    assert (seen[0].guidance_scale, seen[0].num_inference_steps, seen[0].num_images) == (7.5, 50, 1)
    assert seen[0].unet is seen[0].pretrained_model is seen[0].scheduler is seen[0].variant is None


def test_flags_of_training_name_the_same_components():
    short = ["--unet", "u", "--pretrained_model", "p", "--text_encoder", "t", "--vae", "v", "--tokenizer", "k"]
    long = [name + "_name_or_path" if name.startswith("--") else name for name in short[:-2]]
    assert script.parse_arguments(short) == script.parse_arguments([*long, "--tokenizer_name", "k"])


def test_help_needs_no_paddle():
    program = (
        "import sys; from sd.commands.sample import parse_arguments; parse_arguments(['--prompt', 'a', 'b']); "
        "sys.exit('paddle' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(ROOT / "eval.py"), "--prompt", "a", "--unet", "out/checkpoint-5", "--device", "cpu"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: out/checkpoint-5: no UNet there")
    assert list(tmp_path.iterdir()) == []
