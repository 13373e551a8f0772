"""Components of models published on the Hugging Face hub, for what Paddle's own store (BOS) does not have.

HF_ENDPOINT names a mirror, HF_HOME the cache, HF_HUB_OFFLINE=1 forbids the network: they are huggingface_hub's own.
"""

import re
from pathlib import Path

from sd.models.weights import WEIGHT_NAMES

_DESCRIPTION = ("*.json", "*.txt")


def is_published_name(name: str) -> bool:
    """Whether a name may be `model`, `owner/model` or `owner/model/folder`, and not a path alone."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", name) is not None and not name.startswith(".")


def fetch_component(name: str, subfolder: str | None, variant: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a component of `owner/model[/folder]`, downloaded unless the cache has it.

    safetensors are preferred; PyTorch's pickles are fetched only where there are none (plain arrays are read from
    them, nothing is run). weights=False fetches the configuration alone. An interrupted download goes on where it was.
    Raises what huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    owner, model, *inner = name.split("/")
    folder = "/".join([*inner, *([subfolder] if subfolder else [])])
    prefix = f"{folder}/" if folder else ""
    dot_variant = f".{variant}" if variant else ""
    for suffix in (".safetensors", ".bin"):
        files = [f"{stem}{dot_variant}{suffix}" for stem in WEIGHT_NAMES] if weights else []
        patterns = [prefix + pattern for pattern in (*_DESCRIPTION, *files)]
        local = Path(snapshot_download(f"{owner}/{model}", allow_patterns=patterns), folder)
        if not weights or any((local / file).is_file() for file in files):
            break
    if not local.is_dir():
        raise FileNotFoundError(f"the repository has no folder {folder!r}")
    return local
