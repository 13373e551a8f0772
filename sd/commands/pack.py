"""Pack captioned images into parts for training: folders, tables, JSONL, shards in, parts and file lists out."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from sd.data.packing.options import ENGINES, INPUT_FORMATS, VERIFY, PackOptions
from sd.data.packing.packer import pack
from sd.data.packing.sources.pairs import find_kohya_folders
from sd.data.parts import storage
from sd.data.parts.part import load_header
from sd.data.streaming.captions import by_source, describe_truncation, sample_records
from sd.data.streaming.catalog import Catalog
from sd.flags.arguments import SDModelArguments
from sd.flags.files import expand
from sd.flags.parser import Parser

TEXT_LENGTH = SDModelArguments.model_max_length


def parse_arguments(argv: Sequence[str] | None = None) -> PackOptions:
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--input_path", required=True, help="JSONL, one object a line; or a folder, tables, shards: see --input_format")
    add("--output_path", required=True, help="folder for parts, file lists and report")
    add("--output_name", default="custom_dataset", help="name of the file list")
    add("--caption_key", default="caption", help="key of the caption, or several: caption,long_caption,tags")
    add("--image_key", default="image", help="key of the image's path, relative to the folder of the JSONL or table")
    add(
        "--keep_columns", metavar="NAMES", help="fields to keep as columns for filters: aesthetic,url=URL,score:float64"
    )
    add("--per_part_file_num", type=int, default=1000, help="input rows a part")
    add("--save_gzip_file", action="store_true", help="gzip the parts")
    add("--num_repeat", type=int, default=1, help="how often the file list names every part")
    add("--num_workers", type=int, help="processes on this machine (default: the cores)")
    add(
        "--input_format",
        choices=INPUT_FORMATS,
        default="jsonl",
        help="what --input_path holds; folder: cat.jpg and cat.txt",
    )
    add(
        "--kohya_folders",
        action="store_true",
        help="of --input_format folder: list the parts of a folder NN_name NN times",
    )
    add("--caption_lines", action="store_true", help="of --input_format folder: every line of a text is a caption")
    add("--verify", choices=VERIFY, default="header", help="open each image, decode it whole, or neither")
    add("--min_size", type=int, default=0, help="leave out images with a shorter short side")
    add("--max_aspect_ratio", type=float, help="leave out images that are longer than this times their short side")
    add("--min_caption_length", type=int, default=0, help="leave out captions with fewer characters")
    add("--resize", type=int, metavar="SHORT_SIDE", help="shrink larger images to this short side, as JPEG")
    add("--quality", type=int, default=95, help="JPEG quality for --resize")
    add("--max_bad_fraction", type=float, default=0.05, help="fail if a larger share of the rows is bad")
    add("--allow_outside", action="store_true", help="follow image paths out of the JSONL's folder")
    add("--max_pixels", type=int, default=PackOptions.max_pixels, help="refuse larger images")
    add("--overwrite", action="store_true", help="remove the parts of an earlier run instead of resuming from them")
    add("--engine", choices=ENGINES, default="local", help="this machine, or a Ray cluster")
    add("--ray_address", help="address of the Ray cluster (default: start one here)")
    return PackOptions(**vars(parser.parse_args(expand(sys.argv[1:] if argv is None else argv))))


def main() -> None:
    options = parse_arguments()
    file_list, report = pack(options)
    outcomes = ", ".join(f"{count} {name}" for name, count in report["outcomes"].items())
    print(f"{report['rows']} rows into {report['parts']} parts: {outcomes}")
    if counts := report.get("rows_with_caption"):
        print("rows with captions: " + ", ".join(f"{count} {key}" for key, count in counts.items()))
    for name, column in report.get("columns", {}).items():
        unfit = f", {column['unfit']} of another type" if column["unfit"] else ""
        print(f"column {name}: {' and '.join(column['types']) or 'no value'}, {column['missing']} missing{unfit}")
    is_folder = options.input_format == "folder" and not options.kohya_folders
    if is_folder and (names := find_kohya_folders(options.input_path)):
        print(f"{names[0]}: if its number is a repeat of kohya's scripts, --kohya_folders takes it; now all count once")
    for line in () if storage.is_remote(file_list) else describe_exclusions(file_list):
        print(line)
    print(f"train with --file_list {file_list}")


def describe_exclusions(file_list: str) -> Iterator[str]:
    """Lines on what training would leave out of packed data: small images and the ends of long captions."""
    catalog = Catalog(file_list, 1, max_bad_fraction=1.0)
    headers = [load_header(path) for number, path in enumerate(catalog.paths) if number not in catalog.damage]
    large = {side: [header.num_usable(side) for header in headers] for side in (256, 512)}
    counted = {side: [count for count in counts if count is not None] for side, counts in large.items()}
    smaller = {
        side: catalog.num_usable - sum(counts) for side, counts in counted.items() if len(counts) == len(headers)
    }
    if excluded := [f"{count} are smaller than {side} px" for side, count in smaller.items() if count]:
        yield (
            f"of {catalog.num_usable} images {' and '.join(excluded)}; training leaves out those smaller than its "
            "--resolution, or takes them enlarged with --enlarge True"
        )
    for line in describe_truncation(by_source(sample_records(catalog)), TEXT_LENGTH):
        yield f"{line} (CLIP's words counted; python -m sd.data.inspect LIST --tokenizer_name NAME counts its tokens)"
