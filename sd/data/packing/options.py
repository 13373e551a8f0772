"""The options of a packing run, checked before any work starts."""

from dataclasses import dataclass
from typing import Any

from sd.data.images.open import MAX_PIXELS
from sd.data.images.resize import RESIZER
from sd.data.packing.columns import ColumnSpec, parse_keep_columns
from sd.errors import ArgumentError, InputError
from sd.flags.arguments import ENGINES, check_choice, check_engine, check_output, check_path, check_range, check_ranges
from sd.flags.idle import refuse_idle
from sd.flags.options import REQUIRED, option
from sd.runtime import usable_cores

VERIFY = ("header", "decode", "none")
INPUT_FORMATS = ("jsonl", "webdataset", "parquet", "folder", "imagefolder", "csv", "tsv")

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

    input_path: str = option(REQUIRED, "JSONL, one object a line; or a folder, tables, shards: see --input_format")
    output_path: str = option(REQUIRED, "folder for parts, file lists and report")
    output_name: str = option("custom_dataset", "name of the file list")
    caption_key: str = option("caption", "key of the caption, or several: caption,long_caption,tags")
    image_key: str = option("image", "key of the image's path, relative to the folder of the JSONL or table")
    keep_columns: str | None = option(
        None, "fields to keep as columns for filters: aesthetic,url=URL,score:float64", metavar="NAMES"
    )
    per_part_file_num: int = option(1000, "input rows a part")
    save_gzip_file: bool = option(False, "gzip the parts")
    num_repeat: int = option(1, "how often the file list names every part")
    num_workers: int | None = option(None, "processes on this machine (default: the cores)")
    input_format: str = option("jsonl", "what --input_path holds; folder: cat.jpg and cat.txt", choices=INPUT_FORMATS)
    kohya_folders: bool = option(False, "of --input_format folder: list the parts of a folder NN_name NN times")
    caption_lines: bool | None = option(None, "of --input_format folder: every line of a text is a caption")
    verify: str = option("header", "open each image, decode it whole, or neither", choices=VERIFY)
    min_size: int = option(0, "leave out images with a shorter short side")
    max_aspect_ratio: float | None = option(None, "leave out images that are longer than this times their short side")
    min_caption_length: int = option(0, "leave out captions with fewer characters")
    resize: int | None = option(None, "shrink larger images to this short side, as JPEG", metavar="SHORT_SIDE")
    quality: int = option(95, "JPEG quality for --resize")
    max_bad_fraction: float = option(0.05, "fail if a larger share of the rows is bad")
    allow_outside: bool = option(False, "follow image paths out of the JSONL's folder")
    max_pixels: int = option(MAX_PIXELS, "refuse larger images")
    overwrite: bool = option(False, "remove the parts of an earlier run instead of resuming from them")
    engine: str = option("local", "this machine, or a Ray cluster", choices=ENGINES)
    ray_address: str | None = option(None, "address of the Ray cluster (default: start one here)")

    def __post_init__(self):
        if self.num_workers is None:
            object.__setattr__(self, "num_workers", usable_cores())
        check_ranges(self, "per_part_file_num num_repeat num_workers max_pixels max_aspect_ratio resize", low=1)
        check_ranges(self, "min_size min_caption_length", low=0)
        check_range("quality", self.quality, low=1, high=100)
        check_range("max_bad_fraction", self.max_bad_fraction, low=0, high=1)
        for name, choices in (("verify", VERIFY), ("input_format", INPUT_FORMATS)):
            check_choice(name, getattr(self, name), choices)
        check_engine(self.engine, self.ray_address)
        check_path("input_path", self.input_path)
        check_output(self.output_path, self.output_name)
        if self.verify == "none" and (self.min_size or self.max_aspect_ratio or self.resize):
            raise InputError("--verify none looks at no image; --min_size, --max_aspect_ratio and --resize need one")
        if self.max_pixels > MAX_PIXELS and not self.resize:
            raise InputError(
                f"--max_pixels {self.max_pixels} without --resize: training reads at most {MAX_PIXELS} pixels; add "
                "--resize to shrink larger images"
            )
        keys = self.caption_keys
        if not all(keys) or len(set(keys)) < len(keys):
            raise ArgumentError("caption_key", self.caption_key, "; expected different keys, with commas between them")
        for name in ("kohya_folders", "caption_lines"):
            if getattr(self, name) and self.input_format != "folder":
                raise InputError(f"--{name} needs --input_format folder, not {self.input_format}")
        # None: as parts of earlier versions have it
        object.__setattr__(self, "caption_lines", self.caption_lines or None)
        if self.keep_columns is not None:
            object.__setattr__(self, "keep_columns", ",".join(map(str, self.column_specs)))
        tars, folders = (self.input_format == kind for kind in ("webdataset", "folder"))
        rules = [
            (bool(self.resize), "quality", "without --resize; images are packed as they are"),
            (not (tars or folders), "image_key", f"with --input_format {self.input_format}: images go by their names"),
            (not tars, "allow_outside", "with --input_format webdataset: links out of an archive are never followed"),
        ]
        refuse_idle(self, rules)

    @property
    def caption_keys(self) -> tuple[str, ...]:
        """The keys of the captions, the most usual first."""
        return tuple(key.strip() for key in self.caption_key.split(","))

    @property
    def column_specs(self) -> tuple[ColumnSpec, ...]:
        """The columns that parts keep. Raises InputError."""
        return parse_keep_columns(self.keep_columns)

    def part_settings(self) -> dict[str, Any]:
        """What decides the bytes of a part, as a dict for JSON."""
        settings = {name: getattr(self, name) for name in _PART_SETTINGS}
        return settings | ({"resizer": RESIZER} if self.resize else {})
