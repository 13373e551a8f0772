"""A filter on a data set of LAION's size: processor time and memory of a start, bytes of the columns.

python -m bench filters                          400 million rows in 60,000 parts
python -m bench filters --parts 600 --rounds 1   in a few seconds

The parts have indexes and columns of real size and no pictures; `--distinct` of them lie on disk, the others are hard
links to these, so the files come from memory: what is counted is processor time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.results import ROOT, Results
from sd.data.parts.columns import INT, SUFFIX, Column, columns_bytes, floats, from_arrow
from sd.data.parts.index import MEMBERS, PartIndex
from sd.data.parts.index import SUFFIX as INDEX_SUFFIX

FILTER = "aesthetic > 5 and pwatermark < 0.5 and original_width >= 512 and original_height >= 512"
WAYS = {
    "no filter": (None, 256),
    "filter": (FILTER, 256),
    "filter, some pictures too small": (FILTER, 512),
    "filter on a text": (f"{FILTER} and license == 'cc0'", 256),
}
_LEAST_SIDE, _PART_BYTES = 256, 50_000_000


def write_parts(folder, num_parts, num_rows, distinct):
    """The file list of such parts, and the bytes of one part's columns and index."""
    import pyarrow as pa

    rng, paths = np.random.default_rng(0), []
    for number in range(num_parts):
        path = folder / f"part-{number:06d}.gz"
        paths.append(f"{path}\n")
        if number >= distinct:
            model = folder / f"part-{number % distinct:06d}.gz"
            for suffix in ("", INDEX_SUFFIX, SUFFIX):
                os.link(f"{model}{suffix}", f"{path}{suffix}")
            continue
        sides = rng.integers(_LEAST_SIDE, 1024, (2, num_rows)).astype(np.int32)
        lengths, crcs = rng.integers(5000, 9000, (2, num_rows)).astype(np.uint32)
        index = PartIndex(str(path), MEMBERS, lengths, *sides, crcs, _PART_BYTES, number)
        columns = {name: _score(rng, num_rows, 4, 7) for name in ("aesthetic",)}
        columns |= {name: _score(rng, num_rows, 0, 1) for name in ("pwatermark", "punsafe", "similarity")}
        for name in ("original_width", "original_height"):
            columns[name] = Column(INT, rng.integers(256, 3000, num_rows))
        columns["url"] = from_arrow(pa.array([f"https://images.example.com/{n:>040d}/{n:>020d}.jpg" for n in sides[0]]))
        columns["license"] = from_arrow(pa.array(np.array(["?", "cc0", "cc-by"])[rng.integers(3, size=num_rows)]))
        with path.open("wb") as file:
            file.truncate(_PART_BYTES)
        Path(f"{path}{INDEX_SUFFIX}").write_bytes(index.to_bytes())
        Path(f"{path}{SUFFIX}").write_bytes(columns_bytes(index, columns))
    (folder / "all.filelist").write_text("".join(paths))
    (folder / "all.filelist.list").write_text(f"{folder}/all.filelist\n")
    sizes = [Path(f"{folder}/part-000000.gz{suffix}").stat().st_size for suffix in (SUFFIX, INDEX_SUFFIX)]
    return f"{folder}/all.filelist.list", *sizes


def _score(rng, num_rows, low, high):
    return floats(np.where(rng.random(num_rows) < 0.02, np.nan, rng.uniform(low, high, num_rows)))


def start(file_list, way):
    """Read the catalog as a run does; prints what it took as JSON. Runs in a process of its own."""
    from sd.data.streaming.catalog import Catalog
    from sd.data.streaming.order import Order

    data_filter, resolution = WAYS[way]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor, wall = time.process_time(), time.perf_counter()
    catalog = Catalog(file_list, resolution, data_filter=data_filter)
    order = Order(catalog.sources, seed=23, lanes=1, deal_size=2048, buffer_size=20_000)
    order.position(0)
    print(
        json.dumps(
            {
                "processor s": round(time.process_time() - processor, 2),
                "wall s": round(time.perf_counter() - wall, 2),
                "MB before": memory // 1024,
                "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "rows used": catalog.num_usable,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=6_667, help="of a part")
    parser.add_argument("--distinct", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2, help="the least of them counts")
    parser.add_argument("--folder", help="for the parts; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file_list, columns, index = write_parts(Path(folder), options.parts, options.rows, options.distinct)
        facts = {"rows": options.parts * options.rows, "parts": options.parts}
        facts |= {"bytes of columns a row": round(columns / options.rows, 1)}
        facts |= {"bytes of the index a row": round(index / options.rows, 1)}
        print(facts)
        columns = ("start", "processor s", "wall s", "MB before", "MB", "rows used")
        table = Results("filters", columns, "a start: catalog and order; least of the rounds", facts)
        for way in WAYS:
            actual = [_measured(file_list, way) for _ in range(options.rounds)]
            table.add(**{"start": way, **min(actual, key=lambda one: one["processor s"])})


def _measured(file_list, way):
    program = f"from bench.filters import start; start({file_list!r}, {way!r})"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
