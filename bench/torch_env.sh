#!/bin/sh
# Makes a Python environment with PyTorch, Hugging Face diffusers and other data loaders in a new temporary folder, runs
# `python ARGUMENTS` in it and removes it. KEEP=folder makes it there and leaves it for the next run.
#   sh bench/torch_env.sh bench/torch_step.py --write tests/fixtures/torch_step.json
set -eu
PYTHON=${PYTHON:-python3.11}
if [ -n "${KEEP:-}" ]; then
    folder=$KEEP
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
if [ ! -f "$folder/ready" ]; then
    echo "making an environment with PyTorch and diffusers in $folder" >&2
    "$PYTHON" -m venv "$folder"
    "$folder/bin/pip" install -q 'torch==2.13.0' 'diffusers==0.42.1' 'transformers==5.23.0' \
        'webdataset==1.0.2' 'datasets==5.2.0' \
        zstd brotli python-snappy boto3 catalogue xxhash >&2
    # It asks for older transformers, NumPy and xxhash, which it imports without complaint.
    "$folder/bin/pip" install -q --no-deps 'mosaicml-streaming==0.13.0' >&2
    touch "$folder/ready"
fi
"$folder/bin/python" "$@"
