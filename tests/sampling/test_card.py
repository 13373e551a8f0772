"""Model cards: YAML that huggingface_hub reads, the run's own settings, scores and picture."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard

from sd.commands import export
from sd.errors import InputError
from sd.sampling.card import check_free, write_card
from sd.sampling.files import write_png
from sd.sampling.models import load_models
from tests.checkpoints import make_output_dir
from tests.tiny import make_tiny_repository

SCORES = {
    "pictures": 30,
    "prompts_file": "prompts.txt",
    "results": [{"guidance_scale": 3.0, "fid": 81.5, "clip_score": 0.17}],
}


@pytest.fixture
def output_dir(tmp_path):
    return make_output_dir(make_tiny_repository(tmp_path / "models"), tmp_path / "output")


def test_the_script_writes_a_card_beside_one_file(output_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(SCORES))
    write_png(tmp_path / "grid.png", np.zeros([4, 4, 3], np.uint8))
    target = tmp_path / "out" / "model.safetensors"
    words = ["--checkpoint", output_dir, "--variant", "ema", "--format", "single_file", "--output", target, "--card"]
    words += ["--scores", tmp_path / "metrics.json", "--picture", tmp_path / "grid.png"]
    monkeypatch.setattr(export.runtime, "prepare", lambda device: None)
    monkeypatch.setattr(export, "set_up_logging", lambda: None)  # which would write to this test's captured stderr
    monkeypatch.setattr("sys.argv", ["export.py", *map(str, words)])
    export.main()
    assert f"model card: {target.with_suffix('.md')}" in capsys.readouterr().out
    card = ModelCard.load(target.with_suffix(".md"))
    assert card.data.pipeline_tag == "text-to-image" and "paddlepaddle" in card.data.tags
    assert "trained for 10 steps" in card.text and "24 x 24 pixels (v_prediction prediction)" in card.text
    assert "| resolution | 24 |" in card.text and "| 3.0 | 81.5 | 0.17 |" in card.text
    assert "![pictures drawn by checkpoint-10 ema](grid.png)" in card.text
    assert (target.parent / "grid.png").read_bytes() == (tmp_path / "grid.png").read_bytes()
    assert "TODO: name the licence" in card.text


@pytest.mark.parametrize("name", ["model.md", "grid.png"])
def test_what_lies_beside_an_exported_file_stays(tmp_path, name):
    """The card of an earlier export, with a licence written into it, or the picture that another card shows."""
    (tmp_path / "samples").mkdir()
    write_png(tmp_path / "samples/grid.png", np.zeros([4, 4, 3], np.uint8))
    (tmp_path / "out").mkdir()
    check_free(tmp_path / "out/model.safetensors", tmp_path / "samples/grid.png")
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} is there already; move it or choose another folder"):
        check_free(tmp_path / "out/model.safetensors", tmp_path / "samples/grid.png")


def test_scores_of_another_form_are_named(output_dir, tmp_path):
    models = load_models(str(output_dir))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"--scores .*metrics\.json: lacks 'results'; expected metrics\.json of eval"):
        write_card(output_dir / "checkpoint-10", tmp_path, models, tmp_path / "metrics.json")
    assert not (tmp_path / "README.md").exists()
