"""A model card (README.md) of an exported checkpoint, from what its run and its measurement wrote down."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sd.errors import ArgumentError, InputError
from sd.runs.locate import run_settings
from sd.sampling.files import written

if TYPE_CHECKING:
    from sd.sampling.models import Models

_SETTINGS = (
    "resolution",
    "prediction_type",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "snr_gamma",
    "noise_offset",
    "input_perturbation",
    "caption_dropout",
    "use_ema",
    "ema_decay",
    "bf16",
    "fp16",
    "seed",
)


def write_card(
    checkpoint: Path | None,
    exported: Path,
    models: "Models",
    scores: str | Path | None = None,
    picture: str | Path | None = None,
) -> Path:
    """Write the card into the exported folder as README.md, or beside the exported file under its name with `.md`.

    checkpoint: output_dir/checkpoint-N, whose run.json is read; None for a model that was not trained here.
    scores: metrics.json of `eval.py --metrics`. picture: a grid, which is copied beside the card.
    Raises InputError if scores or picture cannot be read.
    """
    from huggingface_hub import ModelCardData

    folder = exported if exported.is_dir() else exported.parent
    card = folder / "README.md" if exported.is_dir() else exported.with_suffix(".md")
    head = ModelCardData(
        license="other",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "text-to-image", "paddlepaddle"],
    )
    paragraphs = [f"---\n{head.to_yaml()}\n---", f"# {models.label}", _summary(checkpoint, models)]
    if checkpoint:
        paragraphs += _training(checkpoint)
    if scores:
        paragraphs += ["## Scores", _score_table(Path(scores))]
    if picture:
        paragraphs += ["## Pictures", f"![pictures drawn by {models.label}]({_copied(Path(picture), folder).name})"]
    paragraphs += ["## Licence", "TODO: name the licence of these weights, and in `license:` above."]
    with written(card) as temporary:
        temporary.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return card


def check_files(scores: str | Path | None, picture: str | Path | None) -> None:
    """Raise InputError for scores that cannot be read and for a picture that is not there."""
    if scores:
        _score_table(Path(scores))
    if picture and not Path(picture).is_file():
        raise InputError(f"--picture {picture}: no such file")


def check_free(exported: Path, picture: str | Path | None) -> None:
    """Raise InputError if beside an exported file there is a card or a picture already, of another export perhaps."""
    copy = exported.parent / Path(picture).name if picture else None
    for path in filter(None, (exported.with_suffix(".md"), copy)):
        if path.exists() and not (picture and path.samefile(picture)):
            raise ArgumentError("output", str(exported), f": {path} is there already; move it or choose another folder")


def _summary(checkpoint: Path | None, models: "Models") -> str:
    millions = sum(parameter.size for parameter in models.unet.parameters()) / 1e6
    steps = f", trained for {checkpoint.name.rpartition('-')[2]} steps" if checkpoint else ""
    return (
        f"A Stable Diffusion with a UNet of {millions:,.1f} million weights{steps}, for pictures of "
        f"{models.side} x {models.side} pixels ({models.schedule.get('prediction_type', 'epsilon')} prediction)."
    )


def _training(checkpoint: Path) -> list[str]:
    run, settings = _read_json(checkpoint.parent / "run.json"), run_settings(checkpoint)
    ranks = run.get("environment", {}).get("PADDLE_TRAINERS_NUM", "1")
    rows = [(name, settings[name]) for name in _SETTINGS if settings.get(name) not in (None, False)]
    rows += [("ranks", ranks), ("machine", run.get("machine", "?")), ("starts", 1 + len(run.get("earlier_starts", [])))]
    rows += [(name, version) for name, version in run.get("versions", {}).items()]
    data = [f"File list `{settings.get('file_list')}`, fingerprint `{settings.get('file_list_fingerprint')}`"]
    if settings.get("data_filter"):
        data.append(f"filtered by `{settings['data_filter']}`")
    return ["## Data", "; ".join(data) + ". TODO: say what it holds and where it is from.", "## Training", _table(rows)]


def _score_table(path: Path) -> str:
    report = _read_json(path)
    try:
        rows = [(r["guidance_scale"], r["fid"], r["clip_score"]) for r in report["results"]]
        source = f"{report['pictures']} pictures of `{report['prompts_file']}` for each guidance scale."
    except (KeyError, TypeError) as error:
        raise InputError(f"--scores {path}: lacks {error}; expected metrics.json of eval.py --metrics") from None
    return _table(rows, ("guidance scale", "FID", "CLIP score")) + "\n\n" + source


def _table(rows: list[tuple], headings: tuple[str, ...] = ("setting", "value")) -> str:
    lines = [headings, ["---"] * len(headings), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _copied(picture: Path, folder: Path) -> Path:
    target = folder / picture.name
    try:
        if picture.resolve() != target.resolve():
            shutil.copyfile(picture, target)
    except OSError as error:
        raise InputError(f"--picture {picture} cannot be copied ({error.strerror})") from None
    return target


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
