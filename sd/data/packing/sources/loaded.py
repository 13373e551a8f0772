"""What a loader gives for an item: its captions, each with the key that it stood under, its image and its fields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sd.data.packing.outcomes import BadRow

Captions = tuple[tuple[str, str], ...]  # (key, text), in the order of the keys that were asked for


@dataclass(frozen=True)
class Loaded:
    """captions: at least one. image: the bytes of its file. fields: the other values that stood with them, by name, all
    of them text where the input has no types."""

    captions: Captions
    image: bytes
    fields: Mapping[str, Any] = field(default_factory=dict)
    has_types: bool = True


def captions_of(fields: Any, keys: Sequence[str]) -> Captions:
    """The texts, or lists of texts, that an object of JSON or a row has under the keys; some may be missing.

    Raises BadRow where it has none.
    """
    if not isinstance(fields, dict):
        raise BadRow("not a JSON object", type(fields).__name__)
    captions = tuple((key, text) for key in keys for text in _texts(fields, key))
    if not captions:
        present = [key for key in keys if key in fields]
        if present:
            raise BadRow(f"{present[0]!r} is not text", repr(fields[present[0]]))
        named = f"no key {keys[0]!r}" if len(keys) == 1 else f"none of the keys {', '.join(keys)}"
        raise BadRow(named, f"keys: {', '.join(map(str, fields))}")
    return captions


def captions_beside(
    fields: Any, keys: Sequence[str], files: Mapping[str, Any], plain: Sequence[str], read: Callable[[str], list[str]]
) -> Captions | None:
    """The captions of an image with files beside it; None where there is neither JSON nor a text.

    fields: of its JSON, None without one. files: those of its name, by suffix; a key is also the suffix of a file. For
    the first key, where nothing else has it, stands the first of the suffixes `plain` that is there. read: gives the
    texts of the file with a suffix. Raises BadRow.
    """
    captions: list[tuple[str, str]] = []
    for number, key in enumerate(keys):
        texts = _texts(fields, key, strict=False) if isinstance(fields, dict) else []
        suffixes = (key, *plain) if number == 0 else (key,)
        suffix = next((suffix for suffix in suffixes if suffix in files and suffix != "json"), None)
        if not texts and suffix:
            texts = read(suffix)
        captions += [(key, text) for text in texts]
    if captions:
        return tuple(captions)
    return None if fields is None else captions_of(fields, keys)


def _texts(fields, key, strict=True):
    """The texts under a key; none where it is missing, or not `strict` and something else. Raises BadRow."""
    value = fields.get(key)
    texts = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if all(isinstance(text, str) for text in texts):
        return list(texts)
    if strict:
        raise BadRow(f"{key!r} is not text", repr(value))
    return []
