"""Compute the VAE's moments, and with --cache_text the text encoder's states, of a file list once, for training."""

import argparse
import logging
import sys
from collections.abc import Sequence

from sd import devices, runtime
from sd.data.parts.moments import CROPS
from sd.flags.files import expand
from sd.flags.parser import Parser, add_truth
from sd.latents.options import ENGINES, CacheOptions
from sd.logs import import_quietly, set_up_logging
from sd.processes.pool import die_with_launcher


def parse_arguments(argv: Sequence[str] | None = None) -> CacheOptions:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    unset = argparse.SUPPRESS  # CacheOptions knows, and --help says no `(default: None)`
    default = CacheOptions.__dataclass_fields__
    add = parser.add_argument
    add("--file_list", required=True, default=unset, help="list of filelists of images, as training takes it")
    add("--output_path", required=True, default=unset, help="folder for parts, file lists and report")
    add("--output_name", default=default["output_name"].default, help="name of the file list")
    add("--resolution", type=int, default=default["resolution"].default, help="side of the training images in pixels")
    add("--data_filter", default=unset, help="rows to cache, by their columns, as in training (docs/data.md)")
    add_truth(add, "enlarge", "take images that are smaller than the resolution too, enlarged, as in training")
    models = parser.add_argument_group("models, by the flags of training")
    add = models.add_argument
    add(
        "--pretrained_model_name_or_path",
        default=default["pretrained_model_name_or_path"].default,
        help="model whose sub-folders are used for what is not named below",
    )
    add("--vae_name_or_path", default=unset, help="name or folder of the VAE")
    add("--text_encoder_name_or_path", default=unset, help="name or folder of the text encoder")
    add("--tokenizer_name", default=unset, help="name or folder of the tokenizer")
    add("--cache_text", action="store_true", help="cache the captions' text states too")
    add(
        "--model_max_length",
        type=int,
        default=default["model_max_length"].default,
        help="longest caption in tokens, with --cache_text",
    )
    buckets = parser.add_argument_group("aspect-ratio buckets, as in training")
    add = buckets.add_argument
    add("--aspect_buckets", default=unset, help="how many, or their sizes (default: every image is cut to a square)")
    add(
        "--aspect_group_size",
        type=int,
        default=default["aspect_group_size"].default,
        help="buckets with fewer rows are merged: ranks x batch of the training",
    )
    add(
        "--unet_name_or_path",
        default=unset,
        help="the UNet whose configuration says what sides must be multiples of (default: the pretrained model's)",
    )
    crops = parser.add_argument_group("crops, which training from the cache no longer draws")
    add = crops.add_argument
    add("--crop", choices=CROPS, default=default["crop"].default, help="where the square is cut, once for all passes")
    add("--num_crops", type=int, default=default["num_crops"].default, help="random crops of each image")
    add("--flip", action="store_true", help="cache the mirror image of each crop too")
    add("--interpolation", default=default["interpolation"].default, help="how images are resized, as in training")
    add("--seed", type=int, default=default["seed"].default, help="seed of the random crops")
    work = parser.add_argument_group("work")
    add = work.add_argument
    add("--batch_size", type=int, default=default["batch_size"].default, help="crops in one call of the VAE")
    add(
        "--num_workers",
        type=int,
        default=unset,
        help="processes that decode (default: the cores, shared by the ranks here)",
    )
    add("--device", default=unset, help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    add(
        "--max_bad_fraction",
        type=float,
        default=default["max_bad_fraction"].default,
        help="fail if a larger share of the rows is bad",
    )
    add(
        "--data_cache_bytes",
        type=int,
        default=default["data_cache_bytes"].default,
        help="size of the local copies of remote parts",
    )
    add("--overwrite", action="store_true", help="replace parts of other settings or another source")
    add("--engine", choices=ENGINES, default="local", help="this process and its ranks, or a Ray cluster")
    add("--ray_address", default=unset, help="address of the Ray cluster (default: start one here)")
    add(
        "--check",
        type=int,
        default=0,
        metavar="N",
        help="decode so many rows of the cache, compare with the images, fail on a difference",
    )
    return CacheOptions(**vars(parser.parse_args(expand(sys.argv[1:] if argv is None else argv))))


def main() -> None:
    """Read the flags, set the machine up, cache, check."""
    options = parse_arguments()
    for line in options.idle():
        print(f"note: {line}", file=sys.stderr, flush=True)
    die_with_launcher()
    runtime.prepare(options.device)
    set_up_logging()
    import_quietly()
    from sd.latents.run import precompute

    device = devices.select(options.device)
    logging.getLogger("sd").info("device: %s", devices.describe(device))
    done = precompute(options)
    if done is None:
        return
    file_list, report = done
    outcomes = ", ".join(f"{count} {name}" for name, count in report["outcomes"].items())
    print(f"{report['rows']} rows into {report['parts']} parts: {outcomes}")
    print(f"train with --file_list {file_list}")
