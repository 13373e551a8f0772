"""The doctor's questions on where a run begins: its folder, its checkpoint, and whether its settings are the same."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd.errors import InputError, as_typed
from sd.flags.arguments import SDDataArguments, SDModelArguments

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments


def answer(question: str, text: Any, bad: Any = False) -> bool:
    """Print one line; returns bad."""
    print(f"{'PROBLEM' if bad else 'ok':8}{question:10}{text}", flush=True)
    return bad


def report_start(training_args: "SDTrainingArguments") -> tuple[bool, Any]:
    """Report whether the run begins or resumes, and whether its folder and its prompts can be used. Returns (bad, the
    checkpoint that it resumes from or None)."""
    from sd.runs.checkpoint import list_checkpoints
    from sd.sampling.prompts import read_prompts
    from sd.training.run import find_start, is_finished

    output_dir = training_args.output_dir
    folder = existing_folder(output_dir)
    try:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir {output_dir}: {folder} cannot be written; choose another")
        checkpoint = find_start(training_args, only_look=True)
        if training_args.validation_prompts:
            read_prompts(training_args.validation_prompts, flag="validation_prompts")
    except InputError as error:
        return answer("start", as_typed(error), bad=True), None
    there = len(list_checkpoints(output_dir))
    if checkpoint is None:
        removed = f", and removes the {there} checkpoints in {output_dir}" if training_args.overwrite_output_dir else ""
        return answer("start", f"begins anew{removed if there else ''}"), None
    done = is_finished(checkpoint, training_args)
    return answer("start", f"nothing to do after {checkpoint}" if done else f"resumes from {checkpoint}"), checkpoint


def report_resume(
    model: Any,
    model_args: SDModelArguments,
    data_args: SDDataArguments,
    training_args: "SDTrainingArguments",
    checkpoint: str | Path,
    dataset: Any,
) -> bool:
    """Report whether the checkpoint was made with the same settings."""
    from sd.runs.settings import check_same_run, checkpoint_settings
    from sd.training.identity import component_hashes, settings_of
    from sd.training.setup import keep_global_batch

    before = checkpoint_settings(checkpoint)
    try:
        if training_args.allow_fewer_ranks:
            keep_global_batch(training_args, before.get("global_batch_size"))
        hashes = component_hashes(model, model_args, dataset.catalog.manifest)
        now = settings_of(model_args, data_args, training_args, dataset, hashes)
        changed = check_same_run(before, now, checkpoint, training_args.allow_changed_resume, data_args.file_list)
    except InputError as error:
        return answer("resume", as_typed(error), bad=True)
    return answer("resume", f"changed settings, accepted: {changed}" if changed else "the settings of the checkpoint")


def existing_folder(path: str | Path) -> Path:
    """The path, or the nearest one above it that is there."""
    whole = Path(path).resolve()
    return next(parent for parent in (whole, *whole.parents) if parent.exists())
