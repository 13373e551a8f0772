"""The options of a caching run, checked before any work starts."""

from dataclasses import dataclass

from sd.data.parts.moments import CROPS
from sd.errors import InputError
from sd.flags.arguments import (
    ENGINES,
    INTERPOLATIONS,
    SDDataArguments,
    SDModelArguments,
    check_choice,
    check_engine,
    check_output,
    check_range,
    check_ranges,
)
from sd.flags.aspect import parse_aspect_buckets, parse_sizes
from sd.flags.idle import idle_flags
from sd.flags.options import REQUIRED, option


@dataclass(frozen=True)
class CacheOptions:
    """The flags of precompute_latents.py; the names of the models are those of training."""

    file_list: str = option(REQUIRED, "list of filelists of images, as training takes it")
    output_path: str = option(REQUIRED, "folder for parts, file lists and report")
    output_name: str = option("custom_dataset", "name of the file list")
    resolution: int = option(SDDataArguments.resolution, "side of the training images in pixels")
    data_filter: str | None = option(None, "rows to cache, by their columns, as in training (docs/data.md)")

    enlarge: bool = option(
        False, "take images that are smaller than the resolution too, enlarged, as in training", truth_value=True
    )
    pretrained_model_name_or_path: str = option(
        SDModelArguments.pretrained_model_name_or_path,
        "model whose sub-folders are used for what is not named below",
        group="models, by the flags of training",
    )
    vae_name_or_path: str | None = option(None, "name or folder of the VAE")
    text_encoder_name_or_path: str | None = option(None, "name or folder of the text encoder")
    tokenizer_name: str | None = option(None, "name or folder of the tokenizer")
    cache_text: bool = option(False, "cache the captions' text states too")
    model_max_length: int = option(SDModelArguments.model_max_length, "longest caption in tokens, with --cache_text")

    aspect_buckets: str | None = option(
        None,
        "how many, or their sizes (default: every image is cut to a square)",
        group="aspect-ratio buckets, as in training",
    )
    aspect_group_size: int = option(1, "buckets with fewer rows are merged: ranks x batch of the training")
    unet_name_or_path: str | None = option(
        None,
        "the UNet whose configuration says what sides must be multiples of (default: the pretrained model's)",
    )

    crop: str = option(
        "random",
        "where the square is cut, once for all passes",
        choices=CROPS,
        group="crops, which training from the cache no longer draws",
    )
    num_crops: int = option(1, "random crops of each image")
    flip: bool = option(False, "cache the mirror image of each crop too")
    interpolation: str = option(SDDataArguments.interpolation, "how images are resized, as in training")
    seed: int = option(23, "seed of the random crops")

    batch_size: int = option(16, "crops in one call of the VAE", group="work")
    num_workers: int | None = option(None, "processes that decode (default: the cores, shared by the ranks here)")
    device: str | None = option(None, "cpu, gpu or gpu:N (default: a GPU if there is one)")
    max_bad_fraction: float = option(0.05, "fail if a larger share of the rows is bad")
    data_cache_bytes: int = option(SDDataArguments.data_cache_bytes, "size of the local copies of remote parts")
    overwrite: bool = option(False, "replace parts of other settings or another source")
    engine: str = option("local", "this process and its ranks, or a Ray cluster", choices=ENGINES)
    ray_address: str | None = option(None, "address of the Ray cluster (default: start one here)")
    check: int = option(
        0, "decode so many rows of the cache, compare with the images, fail on a difference", metavar="N"
    )

    def __post_init__(self):
        check_ranges(self, "resolution num_crops batch_size aspect_group_size", low=1)
        check_ranges(self, "check data_cache_bytes num_workers seed", low=0)
        check_range("model_max_length", self.model_max_length, low=2)
        check_range("max_bad_fraction", self.max_bad_fraction, low=0, high=1)
        for name, choices in (("crop", CROPS), ("interpolation", INTERPOLATIONS)):
            check_choice(name, getattr(self, name), choices)
        check_engine(self.engine, self.ray_address)
        check_output(self.output_path, self.output_name)
        if self.crop == "centre" and self.num_crops > 1:
            raise InputError(
                f"--num_crops {self.num_crops} with --crop centre, of which there is one; use --crop random"
            )
        if self.aspect_buckets is not None:
            parse_aspect_buckets(self.aspect_buckets)
        elif self.aspect_group_size > 1:
            raise InputError(f"--aspect_group_size {self.aspect_group_size} needs --aspect_buckets")

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
