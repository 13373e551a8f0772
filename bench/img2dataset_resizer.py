"""img2dataset's Resizer on the JPEGs of a folder: a contender of bench/resizing.py, in an environment with img2dataset.

python bench/img2dataset_resizer.py FOLDER SHORT_SIDE QUALITY

Prints a line of JSON: processor seconds of a pass, and the bytes of all that it made.
"""

import io
import json
import sys
import time
from pathlib import Path

from img2dataset.resizer import Resizer


def main():
    folder, side, quality = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resizer = Resizer(side, "keep_ratio", resize_only_if_bigger=True, encode_quality=quality)
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    best, num_bytes = float("inf"), 0
    for _ in range(2):
        started, sizes = time.process_time(), []
        for data in files:
            image, *_, error = resizer(io.BytesIO(data))
            if error:
                raise SystemExit(error)
            sizes.append(len(image))
        best, num_bytes = min(best, time.process_time() - started), sum(sizes)
    print(json.dumps([best, num_bytes]))


if __name__ == "__main__":
    main()
