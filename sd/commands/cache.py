"""Compute the VAE's moments, and with --cache_text the text encoder's states, of a file list once, for training."""

import logging
import sys
from collections.abc import Sequence

from sd import devices, runtime
from sd.flags.files import expand
from sd.flags.options import parse
from sd.latents.options import CacheOptions
from sd.latents.plan import check_inputs
from sd.logs import import_quietly, set_up_logging
from sd.processes.pool import die_with_launcher


def parse_arguments(argv: Sequence[str] | None = None) -> CacheOptions:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    words = expand(sys.argv[1:] if argv is None else argv)
    return parse(CacheOptions, words, description=__doc__)


def main() -> None:
    """Read the flags, set the machine up, cache, check."""
    options = parse_arguments()
    for line in options.idle():
        print(f"note: {line}", file=sys.stderr, flush=True)
    devices.check_flags(options.device)
    check_inputs(options)
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
