"""The end of a caching run: when every part is there, and only then, the reports, the manifests and the lists."""

import json
from dataclasses import replace
from functools import partial

from tqdm import tqdm

from sd.data.packing.outcomes import BAD
from sd.data.packing.part import PartResult
from sd.data.packing.report import Tally
from sd.data.parts import storage
from sd.data.parts.filelist import file_list_path, list_entry
from sd.data.parts.moments import Manifest, encode_empty_state, manifest_path
from sd.files import is_unfinished
from sd.latents.claims import Claims
from sd.latents.models import Encoders
from sd.latents.plan import LIST_FOLDER, Plan, each, finished, part_folder


def finish(plan: Plan, manifest: Manifest, encoders: Encoders, claims: Claims) -> tuple[str, dict] | None:
    """(path of the `.filelist.list`, report); None while parts are missing that other processes are making.

    Raises InputError if no row was good, RunError if too many were bad; then there are reports and no lists.
    """
    options = encoders.options
    claims.wait_to_finish()
    outcomes = each(partial(_outcome, manifest=manifest), plan.tasks)
    if missing := outcomes.count(None):
        tqdm.write(
            f"{missing} of {len(outcomes)} parts are in progress in other processes; the last of them writes the lists"
        )
        return None
    _tidy(options)
    tally = _report(outcomes, plan.unreadable, options)
    report = tally.report({"cache": manifest.id} | manifest.settings())
    path = storage.join(options.output_path, "report.json")
    storage.write_atomic(path, json.dumps(report, indent=2).encode() + b"\n")
    tally.check(options.file_list, options)
    return _write_lists(plan, outcomes, manifest, encoders), report


def _outcome(task, manifest):
    """What became of the rows of a part, as its index says; None while it is not there."""
    index = finished(task, manifest)
    if index is None:
        return None
    rejected = [{"part": task.source} | row for row in index.notes["rejected"]]
    num_filtered = index.notes.get("filtered", 0)
    return PartResult(
        task.path,
        num_packed=index.num_rows - len(rejected) - num_filtered,
        num_bytes=index.part_bytes,
        rejected=rejected,
        num_filtered=num_filtered,
    )


def _tidy(options):
    """Remove temporary files of killed processes."""
    for folder in (part_folder(options), storage.join(options.output_path, LIST_FOLDER), options.output_path):
        for name in storage.list_folder(folder):
            if is_unfinished(name):
                storage.remove(storage.join(folder, name))


def _report(outcomes, unreadable, options):
    """The Tally of all rows; those that are not cached go into rejected.jsonl."""
    lost = [
        PartResult(
            path, rejected=[{"part": path, "row": None, "outcome": BAD, "reason": "part unreadable", "detail": reason}]
        )
        for path, reason in unreadable.items()
    ]
    tally = Tally("cached")
    with storage.AtomicFile(storage.join(options.output_path, "rejected.jsonl")) as file:
        for outcome in outcomes + lost:
            tally.add(outcome)
            for row in outcome.rejected:
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return tally


def _write_lists(plan, outcomes, manifest, encoders):
    """A filelist with its manifest for each source, then the list of them, as the source's weighs them."""
    options, folder = encoders.options, storage.join(encoders.options.output_path, LIST_FOLDER)
    if manifest.empty_state:
        empty = encode_empty_state(encoders.text_states([""])[0])
        storage.write_atomic(storage.join(folder, manifest.empty_state), empty)
    by_path = {outcome.path: outcome for outcome in outcomes}
    entries = []
    for number, (weight, tasks) in enumerate(plan.sources, 1):
        if not tasks:  # none of its parts could be read, as rejected.jsonl says
            continue
        name = options.output_name if len(plan.sources) == 1 else f"{options.output_name}-{number}"
        path = storage.join(folder, f"{name}.filelist")
        of_source = [by_path[part] for part in dict.fromkeys(task.path for task in tasks)]
        rejected = [row for outcome in of_source for row in outcome.rejected]
        own = replace(
            manifest,
            num_rows=sum(outcome.num_packed + outcome.num_filtered for outcome in of_source) + len(rejected),
            num_bad=sum(row["outcome"] == BAD for row in rejected),
        )
        storage.write_atomic(manifest_path(path), own.to_bytes())
        storage.write_atomic(path, "".join(f"{task.path}\n" for task in tasks).encode())
        entries.append(list_entry(path, weight))
    whole = file_list_path(folder, options.output_name)
    storage.write_atomic(whole, "".join(f"{entry}\n" for entry in entries).encode())
    return whole
