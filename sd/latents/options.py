"""The options of a caching run, checked before any work starts."""

from dataclasses import dataclass

from sd.data.parts.moments import CROPS
from sd.errors import InputError
from sd.flags.arguments import INTERPOLATIONS, SDDataArguments, SDModelArguments
from sd.flags.aspect import parse_aspect_buckets, parse_sizes
from sd.flags.idle import idle_flags

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class CacheOptions:
    """The flags of precompute_latents.py; the names of the models are those of training."""

    file_list: str
    output_path: str
    output_name: str = "custom_dataset"
    pretrained_model_name_or_path: str = SDModelArguments.pretrained_model_name_or_path
    vae_name_or_path: str | None = None
    text_encoder_name_or_path: str | None = None
    tokenizer_name: str | None = None
    unet_name_or_path: str | None = None
    resolution: int = SDDataArguments.resolution
    data_filter: str | None = None
    enlarge: bool = False
    aspect_buckets: str | None = None
    aspect_group_size: int = 1
    crop: str = "random"
    num_crops: int = 1
    flip: bool = False
    interpolation: str = SDDataArguments.interpolation
    seed: int = 23
    cache_text: bool = False
    model_max_length: int = SDModelArguments.model_max_length
    batch_size: int = 16
    num_workers: int | None = None
    device: str | None = None
    max_bad_fraction: float = 0.05
    data_cache_bytes: int = SDDataArguments.data_cache_bytes
    overwrite: bool = False
    engine: str = "local"
    ray_address: str | None = None
    check: int = 0

    def __post_init__(self):
        for name in ("resolution", "num_crops", "batch_size", "aspect_group_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("check", "data_cache_bytes"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("num_workers", self.num_workers is None or self.num_workers >= 0, "at least 0")
        self._require("model_max_length", self.model_max_length >= 2, "at least 2")
        self._require("max_bad_fraction", 0 <= self.max_bad_fraction <= 1, "from 0 to 1")
        self._require("crop", self.crop in CROPS, f"one of {CROPS}")
        self._require("interpolation", self.interpolation in INTERPOLATIONS, f"one of {INTERPOLATIONS}")
        self._require("engine", self.engine in ENGINES, f"one of {ENGINES}")
        self._require("output_name", self.output_name and "/" not in self.output_name, "a file name without a slash")
        if self.crop == "centre" and self.num_crops > 1:
            raise InputError(
                f"--num_crops {self.num_crops} with --crop centre, of which there is one; use --crop random"
            )
        if self.aspect_buckets is not None:
            parse_aspect_buckets(self.aspect_buckets)
        elif self.aspect_group_size > 1:
            raise InputError(f"--aspect_group_size {self.aspect_group_size} needs --aspect_buckets")
        if self.ray_address and self.engine != "ray":
            raise InputError(f"--ray_address {self.ray_address} needs --engine ray")

    @property
    def sizes(self) -> tuple[tuple[int, int], ...] | None:
        """(width, height) of each bucket, once the table is known (`sd.latents.plan.with_table`); None for squares."""
        return None if self.aspect_buckets is None else parse_sizes(self.aspect_buckets)

    def idle(self) -> list[str]:
        """Lines on flags without an effect: notes, since the flags of training name all models."""
        text = "model_max_length text_encoder_name_or_path tokenizer_name"
        rules = [
            (self.cache_text, text, "without --cache_text"),
            (self.crop != "centre", "seed", "with --crop centre, which draws nothing"),
        ]
        return list(idle_flags(self, rules))

    def _require(self, name, condition, expected):
        if not condition:
            raise InputError(f"--{name} {getattr(self, name)}; expected {expected}")
