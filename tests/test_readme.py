"""The READMEs name every flag of our own, in both languages, and link only to what is there."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sd.arguments import SDDataArguments, SDModelArguments
from sd.training_arguments import SDTrainingArguments

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README_zh.md"]


def flags_of(script):
    told = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"^ +(--\w+)", told.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", READMES)
def test_every_flag_of_training_is_in_the_readme_with_its_default(name):
    text = (ROOT / name).read_text()
    own = [field for group in (SDModelArguments, SDDataArguments) for field in dataclasses.fields(group)]
    own += [f for f in dataclasses.fields(SDTrainingArguments) if f.name in SDTrainingArguments.__annotations__]
    assert len(own) > 30
    for field in own:
        default = field.default if field.default is not dataclasses.MISSING else " ".join(field.default_factory())
        shown = default if isinstance(default, (bool, int, float)) or default is None else f"`{default}`"
        assert f"| `--{field.name}` | {shown} |" in text, field.name


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize(
    "script", ["create_pretraining_data.py", "precompute_latents.py", "eval.py", "export.py", "app.py"]
)
def test_every_flag_of_the_other_scripts_is_in_the_readme(name, script):
    flags = flags_of(script)
    assert len(flags) >= 5
    assert {flag for flag in flags if flag not in (ROOT / name).read_text()} == {"--help"} & flags


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere_and_no_figure_is_open(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert "docs/quickstart.png" in links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []
    assert "@@" not in text


def test_both_languages_hold_the_same_commands_and_flags():
    english, chinese = ((ROOT / name).read_text() for name in READMES)
    for pattern in (r"--\w+", r"python [\w./]+\.py", r"`[\w./]+\.(?:py|sh|json|txt|png)`"):
        assert set(re.findall(pattern, english)) == set(re.findall(pattern, chinese))
