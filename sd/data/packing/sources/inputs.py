"""What the kinds of input have in common: finding the files, and text by key."""

from pathlib import Path

from sd.data.packing.sources.folders import BadRow
from sd.data.parts import storage
from sd.errors import InputError


def find_inputs(path, suffix):
    """The files that `path` names, sorted: one file, all `suffix` files of a folder, or a glob. Raises InputError."""
    try:
        found = _find_remote(path, suffix) if storage.is_remote(path) else _find_local(path, suffix)
    except OSError as error:
        raise InputError(f"--input_path {path}: {error.strerror or error}") from error
    if not found:
        raise InputError(f"--input_path {path}: no such file, nor a folder or glob with *{suffix} files")
    return found


def _find_local(path, suffix):
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).glob(f"*{suffix}"))
    pattern = Path(path)
    anchor = Path(pattern.anchor)
    return sorted(str(file) for file in anchor.glob(str(pattern.relative_to(anchor))) if file.is_file())


def _find_remote(path, suffix):
    fs, name = storage.filesystem(path)
    protocol = path.partition("://")[0]
    if not any(letter in name for letter in "*?["):
        name = f"{name.rstrip('/')}/*{suffix}" if fs.isdir(name) else name
    return sorted(f"{protocol}://{file}" for file in fs.glob(name))


def text_of(fields, key):
    """The text under `key` of a JSON object. Raises BadRow."""
    if not isinstance(fields, dict):
        raise BadRow("not a JSON object", type(fields).__name__)
    if key not in fields:
        raise BadRow(f"no key {key!r}", f"keys: {', '.join(map(str, fields))}")
    if not isinstance(fields[key], str):
        raise BadRow(f"{key!r} is not text", repr(fields[key]))
    return fields[key]
