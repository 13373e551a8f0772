"""Pack captioned images into parts for training: folders, tables, JSONL, shards in, parts and file lists out."""

import sys
from collections.abc import Iterator, Sequence

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.packing.sources.pairs import find_kohya_folders
from sd.data.parts import storage
from sd.data.parts.part import load_header
from sd.data.streaming.captions import by_source, describe_truncation, sample_records
from sd.data.streaming.catalog import Catalog
from sd.flags.arguments import SDModelArguments
from sd.flags.files import expand
from sd.flags.options import parse

TEXT_LENGTH = SDModelArguments.model_max_length


def parse_arguments(argv: Sequence[str] | None = None) -> PackOptions:
    """The flags."""
    return parse(PackOptions, expand(sys.argv[1:] if argv is None else argv), description=__doc__)


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
