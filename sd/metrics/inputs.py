"""What the scores of eval.py read, checked before Paddle is imported: references, extractors, the watched run."""

from pathlib import Path

from sd.errors import ArgumentError
from sd.metrics.golden import load_golden
from sd.metrics.reference import check_reference
from sd.models.hub import is_published_name
from sd.sampling.options import SampleOptions

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")  # of Inception's file


def check_inputs(options: SampleOptions) -> None:
    """Raise InputError for a reference, an extractor, a band or a run that is not there, and for a filter that does not
    fit its reference."""
    if options.watch is not None and not Path(options.watch).is_dir():
        raise ArgumentError("watch", options.watch, ": no such folder; name the --output_dir of a run")
    if options.golden is not None:
        load_golden(options.golden)
    for flag in ("fid_reference", "cmmd_reference"):
        if (source := getattr(options, flag)) is not None:
            check_reference(flag, source, options.data_filter)
    for flag in ("fid_model", "clip_model"):
        if (source := getattr(options, flag)) is not None:
            _check_extractor(flag, source)


def _check_extractor(flag, source):
    path = Path(source)
    if flag == "fid_model" and path.suffix in WEIGHT_SUFFIXES:
        if not path.is_file():
            raise ArgumentError(flag, source, ": no such file; name the weights of Inception-v3, or a CLIP")
    elif not path.is_dir() and not is_published_name(source):
        raise ArgumentError(flag, source, ": no such folder; name that of a CLIP, or a published one")
