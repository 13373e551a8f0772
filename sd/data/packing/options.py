"""The options of a packing run, checked before any work starts."""

from dataclasses import asdict, dataclass
from typing import Any

from sd.data.images.open import MAX_PIXELS
from sd.data.images.resize import RESIZER
from sd.data.packing.columns import ColumnSpec, parse_keep_columns
from sd.errors import InputError
from sd.flags.idle import refuse_idle
from sd.runtime import usable_cores

VERIFY = ("header", "decode", "none")
INPUT_FORMATS = ("jsonl", "webdataset", "parquet", "folder", "imagefolder", "csv", "tsv")
ENGINES = ("local", "ray")

# What decides the bytes of a part. The rest may differ when a stopped run resumes.
_PART_SETTINGS = (
    "caption_key",
    "image_key",
    "per_part_file_num",
    "save_gzip_file",
    "input_format",
    "verify",
    "min_size",
    "max_aspect_ratio",
    "min_caption_length",
    "resize",
    "quality",
    "allow_outside",
    "max_pixels",
    "caption_lines",
    "keep_columns",
)


@dataclass(frozen=True)
class PackOptions:
    """The flags of create_pretraining_data.py; `None` and 0 turn a filter off."""

    input_path: str
    output_path: str
    output_name: str = "custom_dataset"
    caption_key: str = "caption"
    image_key: str = "image"
    per_part_file_num: int = 1000
    save_gzip_file: bool = False
    num_repeat: int = 1
    num_workers: int | None = None
    input_format: str = "jsonl"
    verify: str = "header"
    min_size: int = 0
    max_aspect_ratio: float | None = None
    min_caption_length: int = 0
    resize: int | None = None
    quality: int = 95
    max_bad_fraction: float = 0.05
    allow_outside: bool = False
    max_pixels: int = MAX_PIXELS
    overwrite: bool = False
    engine: str = "local"
    ray_address: str | None = None
    kohya_folders: bool = False
    caption_lines: bool | None = None
    keep_columns: str | None = None

    def __post_init__(self):
        if self.num_workers is None:
            object.__setattr__(self, "num_workers", usable_cores())
        for name in ("per_part_file_num", "num_repeat", "num_workers", "max_pixels"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_size", "min_caption_length"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("max_aspect_ratio", self.max_aspect_ratio is None or self.max_aspect_ratio >= 1, "at least 1")
        self._require("resize", self.resize is None or self.resize >= 1, "at least 1")
        self._require("quality", 1 <= self.quality <= 100, "from 1 to 100")
        self._require("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "from 0 to 1")
        self._require("verify", self.verify in VERIFY, f"one of {VERIFY}")
        self._require("input_format", self.input_format in INPUT_FORMATS, f"one of {INPUT_FORMATS}")
        self._require("engine", self.engine in ENGINES, f"one of {ENGINES}")
        self._require("output_name", self.output_name and "/" not in self.output_name, "a file name without a slash")
        if self.verify == "none" and (self.min_size or self.max_aspect_ratio or self.resize):
            raise InputError("--verify none looks at no image; --min_size, --max_aspect_ratio and --resize need one")
        if self.max_pixels > MAX_PIXELS and not self.resize:
            raise InputError(
                f"--max_pixels {self.max_pixels} without --resize: training reads at most {MAX_PIXELS} pixels; add "
                "--resize to shrink larger images"
            )
        keys = self.caption_keys
        self._require(
            "caption_key", all(keys) and len(set(keys)) == len(keys), "different keys, with commas between them"
        )
        for name in ("kohya_folders", "caption_lines"):
            if getattr(self, name) and self.input_format != "folder":
                raise InputError(f"--{name} needs --input_format folder, not {self.input_format}")
        object.__setattr__(
            self, "caption_lines", self.caption_lines or None
        )  # None: as parts of earlier versions have it
        if self.keep_columns is not None:
            object.__setattr__(self, "keep_columns", ",".join(map(str, self.column_specs)))
        tars, folders = (self.input_format == kind for kind in ("webdataset", "folder"))
        rules = [
            (bool(self.resize), "quality", "without --resize; images are packed as they are"),
            (not (tars or folders), "image_key", f"with --input_format {self.input_format}: images go by their names"),
            (not tars, "allow_outside", "with --input_format webdataset: links out of an archive are never followed"),
        ]
        refuse_idle(self, rules)
        if self.ray_address and self.engine != "ray":
            raise InputError(f"--ray_address {self.ray_address} needs --engine ray")

    @property
    def caption_keys(self) -> tuple[str, ...]:
        """The keys of the captions, the most usual first."""
        return tuple(key.strip() for key in self.caption_key.split(","))

    @property
    def column_specs(self) -> tuple[ColumnSpec, ...]:
        """The columns that parts keep. Raises InputError."""
        return parse_keep_columns(self.keep_columns)

    def _require(self, name, condition, expected):
        if not condition:
            raise InputError(f"--{name} {getattr(self, name)}; expected {expected}")

    def part_settings(self) -> dict[str, Any]:
        """What decides the bytes of a part, as a dict for JSON."""
        settings = {name: value for name, value in asdict(self).items() if name in _PART_SETTINGS}
        return settings | ({"resizer": RESIZER} if self.resize else {})
