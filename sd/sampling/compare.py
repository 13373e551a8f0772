"""What `--compare` names: each word is a column of the grid, which differs from the others in one thing."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: the UNet (as `find_unet` takes it), its variant, the guidance scale, and its heading."""

    label: str
    unet: str | None
    variant: str | None
    guidance_scale: float


def find_columns(words: Iterable[str], unet: str | None, variant: str | None, guidance_scale: float) -> list[Column]:
    """Words -> columns. A number is a guidance scale; `raw` and `ema` are weights of `unet`; anything else names a
    checkpoint, with `:ema` behind it for its moving average."""
    columns = []
    for word in words:
        if (scale := _number(word)) is not None:
            columns.append(Column(f"guidance {scale:g}", unet, variant, scale))
        elif word in ("raw", "ema"):
            columns.append(Column(word, unet, None if word == "raw" else word, guidance_scale))
        else:
            name, colon, own = word.rpartition(":")
            name, own = (name, own) if colon and own in ("ema", "raw") else (word, variant or "raw")
            columns.append(Column(_short(name, own), name, None if own == "raw" else own, guidance_scale))
    return columns


def _number(word):
    try:
        return float(word)
    except ValueError:
        return None


def _short(name, variant):
    """The last two parts of a path, enough to tell checkpoints of different runs apart."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "unet")]
    return "/".join(parts[-2:]) + (f" {variant}" if variant != "raw" else "")
