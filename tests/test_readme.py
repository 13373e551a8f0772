"""The documentation: links and anchors lead somewhere, every flag is listed, both READMEs hold the same things."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README_zh.md"]
PAGES = [
    *READMES,
    "CHANGELOG.md",
    "bench/README.md",
    "examples/emoji/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]


def test_the_page_of_flags_equals_the_parsers():
    made = subprocess.run(
        [sys.executable, "docs/make_flags.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr


def anchors_of(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere_and_no_figure_is_open(name):
    page = ROOT / name
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link
    assert "@@" not in text


@pytest.mark.parametrize("name", PAGES)
def test_pictures_have_a_text_for_those_who_do_not_see_them(name):
    assert re.findall(r"!\[\s*\]\([^)]*\)", (ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", READMES)
def test_the_front_page_stays_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= 220


def test_every_page_is_reached_from_the_front_page():
    front = (ROOT / "README.md").read_text()
    assert [page for page in PAGES if page.startswith("docs/") and f"({page})" not in front] == []


def test_both_languages_hold_the_same_sections_commands_links_and_flags():
    english, chinese = ((ROOT / name).read_text() for name in READMES)
    assert len(re.findall(r"^## ", english, re.MULTILINE)) == len(re.findall(r"^## ", chinese, re.MULTILINE)) > 9
    for pattern in (
        r"--\w+",
        r"python [\w./]+\.py",
        r"`[\w./]+\.(?:py|sh|json|txt|png)`",
        r"\]\((?!README|#)([^)]+)\)",
    ):
        assert set(re.findall(pattern, english)) == set(re.findall(pattern, chinese))
    assert commands_of(english) == commands_of(chinese)


def commands_of(text):
    """The lines of the fenced sh blocks, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*", "", line).rstrip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_files_and_modules_that_are_named_exist(name):
    text = (ROOT / name).read_text()
    files = re.findall(r"`((?:sd|tests|bench|demo|docs|recipes)/[\w./]*)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    modules = {module.replace(".", "/") for module in re.findall(r"python -m ((?:sd|demo)[\w.]*)", text)}
    places = {module: (ROOT / f"{module}.py", ROOT / module / "__main__.py") for module in modules}
    assert [module for module, files in places.items() if not any(file.exists() for file in files)] == []


def test_the_architecture_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs/draw_architecture.py"))["draw"]().svg()
    assert (ROOT / "docs/architecture.svg").read_text() == drawn


def test_the_first_run_holds_the_commands_that_its_script_walks():
    walk = runpy.run_path(str(ROOT / "docs/make_first_run.py"))["WALK"]
    commands = [command for _, _, pairs in walk for command, _ in pairs]
    assert re.findall(r"^\$ (.*)$", (ROOT / "docs/first_run.md").read_text(), re.MULTILINE) == commands


@pytest.mark.slow
def test_the_first_run_can_be_walked(tmp_path):
    script = [sys.executable, "docs/make_first_run.py", "--steps", "20", "--output", str(tmp_path / "page.md")]
    walked = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert walked.returncode == 0, walked.stdout[-3000:] + walked.stderr[-3000:]


def test_the_versions_of_the_page_are_those_that_are_installed():
    page = (ROOT / "docs/install.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("| "))
    pinned = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert len(pinned) > 20
    assert [f"{name} {version}" for name, version in pinned if name not in table or version not in table] == []
