"""What `python -m sd.data.inspect` is asked for."""

from dataclasses import dataclass

from sd.data.parts.moments import Manifest
from sd.data.streaming.bucketing import Bucketing
from sd.data.streaming.buckets import BucketTable
from sd.flags.arguments import INTERPOLATIONS, check_file, check_range, check_ranges
from sd.flags.aspect import parse_aspect_buckets
from sd.flags.options import REQUIRED, option


@dataclass(frozen=True)
class InspectOptions:
    """The flags of the command. Raises InputError for a value out of range."""

    file_list: str = option(REQUIRED, "a .filelist.list, as --file_list of training takes it", positional=True)
    resolution: int | None = option(None, "as in training; default 256, or that of the cache")
    data_filter: str | None = option(None, "as in training; what it leaves out has a contact sheet of its own")
    enlarge: bool = option(False, "as in training: smaller images are taken too, enlarged", truth_value=True)
    aspect_buckets: str | None = option(None, "as in training: how many buckets, or their sizes")
    aspect_group_size: int = option(1, "as in training: buckets with fewer rows are merged; default 1")
    side_multiple: int = option(
        64, "what sides must be multiples of, for a number of buckets; default 64, as v1-4's VAE and UNet need"
    )
    tokenizer_name: str | None = option(None, "folder or published name of a tokenizer that counts captions' tokens")
    model_max_length: int = option(77, "longest caption in tokens; default 77")
    interpolation: str = option("lanczos", choices=INTERPOLATIONS)
    caption_dropout: float = option(0.1)
    rows: int = option(1000, "rows to read and decode, 0 for all; default 1000")
    samples: int = option(64, "pictures on the contact sheet; default 64")
    seed: int = option(23)
    output: str = option("inspect.png", "the contact sheet; default inspect.png")
    time: bool = option(False, "print where a sample's time goes, and nothing else")

    def __post_init__(self):
        check_ranges(self, "resolution side_multiple aspect_group_size", low=1)
        check_ranges(self, "rows samples seed", low=0)
        check_range("model_max_length", self.model_max_length, low=2)
        check_range("caption_dropout", self.caption_dropout, low=0, high=1)
        check_file("output", self.output)

    def bucketing(self, resolution: int, manifest: Manifest | None) -> Bucketing | None:
        """The Bucketing of the flags, or that of a cache; None for squares. No model says here what sides must be
        multiples of, so a list of sizes is taken as it is. Raises InputError."""
        sizes = manifest.sizes if manifest is not None and manifest.aspect_buckets else None
        if sizes or self.aspect_buckets is None:
            return Bucketing(BucketTable(sizes)) if sizes else None
        multiple = self.side_multiple if isinstance(parse_aspect_buckets(self.aspect_buckets), int) else 1
        table = BucketTable.from_flag(self.aspect_buckets, resolution, multiple)
        return Bucketing(table, self.aspect_group_size, self.enlarge)
