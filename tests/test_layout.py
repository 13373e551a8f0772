"""The layout's rules, read off the source: imports go one way, data workers need no Paddle, files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(ROOT.glob("sd/**/*.py")) + sorted(ROOT.glob("*.py"))

# A module may import from its own layer and from those above it in this list.
LAYERS = [
    {"devices", "entry", "errors", "files", "fonts", "home", "logs", "runtime", "text", "text_layout", "versions"},
    {"flags", "processes"},
    {"data", "models", "cpu"},
    {"diffusion"},
    {"runs"},
    {"sampling"},
    {"latents", "metrics", "web"},
    {"training"},
    {"commands", "doctor"},
]
PADDLE_FREE = [
    "sd.data.packing.packer",
    "sd.data.streaming.order",
    "sd.data.streaming.sample",
    "sd.data.parts.moments",
    "sd.data.parts.part",
    "sd.diffusion.schedule",
    "sd.commands.cache",  # the scripts answer wrong values before the machine is set up for Paddle
    "sd.commands.export",
    "sd.commands.sample",
    "sd.commands.serve",
    "sd.commands.train",
]


def layer(module):
    name = module.split(".")[1]
    actual = [number for number, names in enumerate(LAYERS) if name in names]
    assert actual, f"sd.{name} has no layer; name it in LAYERS"
    return actual[0]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            if node.module == "sd":
                yield from (f"sd.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_imports_go_one_way():
    checked = 0
    for path in ROOT.glob("sd/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            continue
        for name in imported(ast.parse(path.read_text())):
            if name.startswith("sd."):
                assert layer(name) <= layer(".".join(parts)), f"{path.name} imports {name}"
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("module", PADDLE_FREE)
def test_data_workers_need_no_paddle(module):
    program = f"import sys, {module}; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_no_file_is_over_350_lines():
    long = {path.name: count for path in SOURCES if (count := len(path.read_text().splitlines())) > 350}
    assert SOURCES and long == {}


@pytest.mark.defect(18)
def test_defect_18_importing_the_package_changes_nothing():
    program = (
        "import paddle; linear = paddle.nn.Linear; names = set(__import__('sys').modules); import sd; "
        "assert paddle.nn.Linear is linear; "
        "new = set(__import__('sys').modules) - names; assert new == {'sd'}, new; "
        "assert sd.__all__ and all(name in sd._HOME for name in sd.__all__)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_public_names_are_the_documented_seven():
    import sd

    assert set(sd.__all__) == {
        "SDModelArguments",
        "SDDataArguments",
        "SDTrainingArguments",
        "StableDiffusionModel",
        "StableDiffusionTrainer",
        "TextImagePair",
        "worker_init_fn",
    }
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        sd.Trainer  # noqa: B018


def unannotated(tree):
    """Public functions and methods with a parameter or a result that has no annotation."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (f"{node.name}.{name}" for name in unannotated(node))
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            bare = [each.arg for each in named if each and each.annotation is None and each.arg not in ("self", "cls")]
            if bare or (node.returns is None and node.name != "__init__"):
                yield f"{node.name}({', '.join(bare)})"


def test_every_public_function_is_annotated():
    actual = {
        str(path.relative_to(ROOT)): names for path in SOURCES if (names := [*unannotated(ast.parse(path.read_text()))])
    }
    assert actual == {}
