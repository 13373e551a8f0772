"""The flags of training as dataclasses that check themselves. Paddle is imported only for `SDTrainingArguments`."""
# ruff: noqa: UP045  (PdArgumentParser understands Optional[X], not X | None)

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from sd.errors import ArgumentError, InputError
from sd.flags.aspect import parse_aspect_buckets
from sd.flags.captions import CaptionFlags, parse_shares, parse_sources

PREDICTION_TYPES = ("epsilon", "v_prediction")
ENGINES = ("local", "ray")  # what runs the tasks of a command
INTERPOLATIONS = ("lanczos", "bilinear", "linear", "bicubic", "box", "hamming", "nearest")


def __getattr__(name):
    """Import `SDTrainingArguments`, and paddlenlp with it, on first use."""
    if name == "SDTrainingArguments":
        return importlib.import_module("sd.flags.training").SDTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def flag(default: Any, help_text: str) -> Any:
    """A dataclass field with its line of `--help`."""
    return field(default=default, metadata={"help": help_text})


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise InputError unless value is one of choices."""
    if value not in choices:
        raise ArgumentError(name, value, f"; expected one of {tuple(choices)}")


def check_range(
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise InputError unless low <= value <= high and above < value < below; a bound that is None does not count."""
    fits = (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
        and value == value  # NaN is in no range
    )
    if not fits:
        parts = [
            f"above {above}" if above is not None else "",
            f"at least {low}" if low is not None else "",
            f"at most {high}" if high is not None else "",
            f"below {below}" if below is not None else "",
        ]
        raise ArgumentError(name, value, f"; expected {' and '.join(part for part in parts if part)}")


def check_ranges(options: object, names: str, **bounds: float) -> None:
    """`check_range` of several attributes, their names with blanks between them; None is in every range."""
    for name in names.split():
        if (value := getattr(options, name)) is not None:
            check_range(name, value, **bounds)


def check_engine(engine: str, ray_address: str | None) -> None:
    """Raise InputError for an unknown engine, and for the address of a Ray cluster without Ray."""
    check_choice("engine", engine, ENGINES)
    if ray_address and engine != "ray":
        raise InputError(f"--ray_address {ray_address} needs --engine ray")


def refuse_empty(options: Any, allowed: str = "") -> None:
    """Raise InputError for a text of a dataclass that is empty, as of a shell's variable that is not set: taken for a
    flag that is not given, it would choose another model or other data. allowed: the name of one that may be."""
    for each in fields(options):
        if each.name != allowed and getattr(options, each.name) == "":
            raise ArgumentError(each.name, "", "; expected a value, not an empty text")


def check_file_name(name: str, value: str) -> None:
    """Raise InputError unless value can be a file's name."""
    if not value or "/" in value:
        raise ArgumentError(name, value, "; expected a file name without a slash")


def check_path(name: str, value: str) -> None:
    """Raise InputError for an empty path."""
    if not value:
        raise ArgumentError(name, value, "; expected a path, not an empty text")


def check_output(output_path: str, output_name: str) -> None:
    """Raise InputError unless file lists can name what is written to `output_path`, and be named `output_name`."""
    check_file_name("output_name", output_name)
    check_path("output_path", output_path)
    for name, value in (("output_path", output_path), ("output_name", output_name)):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ArgumentError(name, value, "; expected a path in UTF-8, as file lists are") from None


def check_file(name: str, value: str) -> None:
    """Raise InputError unless value can be the path of a file."""
    if not Path(value).name:
        raise ArgumentError(name, value, "; expected the path of a file")


@dataclass
class SDModelArguments:
    """Which models are trained, and on which objective."""

    pretrained_model_name_or_path: str = flag(
        "CompVis/stable-diffusion-v1-4", "Model whose sub-folders are used for what the four flags below leave open."
    )
    vae_name_or_path: Optional[str] = flag(None, "Name or folder of the VAE.")
    text_encoder_name_or_path: Optional[str] = flag(None, "Name or folder of the text encoder.")
    unet_name_or_path: Optional[str] = flag(
        None, "Name or folder of the UNet; a config file (.json) starts it from random weights."
    )
    tokenizer_name: Optional[str] = flag(None, "Name or folder of the tokenizer.")
    unet_data_format: str = flag("NCHW", "Layout in which the UNet convolves: NCHW, or NHWC for tensor cores (GPU).")
    model_max_length: int = flag(77, "Longest caption in tokens; longer ones are cut.")
    prediction_type: str = flag("epsilon", "What the UNet predicts: epsilon or v_prediction.")
    num_inference_steps: int = flag(50, "Denoising steps of the logged images.")
    train_text_encoder: bool = flag(False, "Train the text encoder too.")
    noise_offset: float = flag(0.0, "Strength of a noise offset per image and channel; 0 turns it off.")
    snr_gamma: Optional[float] = flag(
        None,
        "Gamma of min-SNR loss weighting (arXiv 2303.09556), 5.0 advised; with rescale_betas_zero_snr an SNR below 1 "
        "counts as 1 (arXiv 2202.00512), or the timestep where sampling starts would have weight 0.",
    )
    input_perturbation: float = flag(0.0, "Strength of input perturbation; 0 turns it off, 0.1 advised.")
    rescale_betas_zero_snr: bool = flag(
        False, "Rescale the noise schedule to zero terminal SNR (arXiv 2305.08891); needs v_prediction."
    )

    def __post_init__(self):
        refuse_empty(self)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("unet_data_format", self.unet_data_format, ("NCHW", "NHWC"))
        check_range("model_max_length", self.model_max_length, low=2)
        check_range("num_inference_steps", self.num_inference_steps, low=1, high=999)  # 1000, less DDIM's offset of 1
        check_ranges(self, "noise_offset input_perturbation", low=0, below=math.inf)
        check_ranges(self, "snr_gamma", above=0)
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise InputError(
                "--rescale_betas_zero_snr True with --prediction_type epsilon; at zero SNR the noise says nothing "
                "about the image, use --prediction_type v_prediction"
            )


@dataclass
class SDDataArguments:
    """What is read, and what is done to it on the way."""

    file_list: str = flag("./data/filelist/train.filelist.list", "List of filelists, one `path [weight]` a line.")
    resolution: int = flag(512, "Side of the training images in pixels.")
    interpolation: str = flag("lanczos", f"How images are resized: {', '.join(INTERPOLATIONS)}.")
    data_filter: Optional[str] = flag(
        None, 'Rows to train on, by their columns, as "aesthetic > 5 and pwatermark < 0.5" (docs/data.md).'
    )
    enlarge: bool = flag(False, "Take images that are smaller than the resolution too, enlarged.")
    aspect_buckets: Optional[str] = flag(
        None,
        "Aspect-ratio buckets of about resolution squared pixels: how many, or their sizes, as "
        "256x256,320x192,192x320; default: every image is cut to a square.",
    )
    aspect_group_size: Optional[int] = flag(
        None,
        "Consecutive samples of one bucket, a multiple of ranks x batch; a resume may have any ranks x batch that "
        "divides it. Default: that of the checkpoint, else ranks x batch.",
    )
    num_records: int = flag(10_000_000, "Records that make an epoch when max_steps is not given.")
    buffer_size: Optional[int] = flag(
        None,
        "Rows in a shuffle window; default: those of the run that is resumed, else 20,000, or as many as half of "
        "data_cache_bytes holds where parts are remote.",
    )
    shuffle_every_n_samples: int = flag(5, "Accepted and without effect: every window is shuffled whole.")
    caption_dropout: float = flag(0.1, "Share of the samples that lose their caption (classifier-free guidance).")
    caption_shares: Optional[str] = flag(
        None, "Shares of named captions, as long_caption=0.7,caption=0.3; default: every caption of a row alike."
    )
    shuffle_tags: Optional[str] = flag(
        None, "Names of captions that are lists of tags with commas; their order is drawn for each sample."
    )
    keep_tags: int = flag(0, "With shuffle_tags: so many tags stay first, and are never left out.")
    tag_dropout: float = flag(0.0, "With shuffle_tags: probability with which a tag is left out.")
    data_lanes: Optional[int] = flag(
        None, "Lanes into which the data is dealt, each shuffled by itself; default: the machines of the first start."
    )
    max_bad_fraction: float = flag(0.05, "Share of undecodable rows above which the run ends.")
    data_cache_bytes: int = flag(10 * 2**30, "Size of the local cache for remote parts, in bytes.")
    eval_file_list: Optional[str] = flag(None, "File list of held-out records for the validation loss.")

    def __post_init__(self):
        check_range("resolution", self.resolution, low=8)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_ranges(self, "num_records aspect_group_size buffer_size shuffle_every_n_samples data_lanes", low=1)
        check_ranges(self, "caption_dropout tag_dropout max_bad_fraction", low=0, high=1)
        check_ranges(self, "keep_tags data_cache_bytes", low=0)
        if self.aspect_buckets is not None:
            parse_aspect_buckets(self.aspect_buckets)
        elif self.aspect_group_size is not None:
            raise ArgumentError("aspect_group_size", self.aspect_group_size, " needs --aspect_buckets")
        if self.shuffle_tags is None and (self.keep_tags or self.tag_dropout):
            raise InputError("--keep_tags and --tag_dropout need --shuffle_tags; name the captions that are tags")
        if self.caption_shares is not None:  # in normal form, which settings and checkpoints keep
            shares = parse_shares(self.caption_shares)
            self.caption_shares = ",".join(f"{source}={share!r}" for source, share in shares)
        if self.shuffle_tags is not None:
            self.shuffle_tags = ",".join(sorted(parse_sources("shuffle_tags", self.shuffle_tags)))
        refuse_empty(self)  # what is left: others have said above what they expect

    @property
    def caption_flags(self) -> CaptionFlags:
        """How captions are drawn."""
        return CaptionFlags(
            parse_shares(self.caption_shares) if self.caption_shares else (),
            parse_sources("shuffle_tags", self.shuffle_tags) if self.shuffle_tags else (),
            self.keep_tags,
            self.tag_dropout,
        )
