#!/bin/sh
# The figures that want a machine of their own, one after another: streaming, cached latents, packing with --resize,
# sampling beside PyTorch at both sizes. Some 14 minutes on two cores, once the two environments are made.
#   KEEP=/tmp/torch_env I2D=/tmp/i2d sh bench/quiet.sh
set -eu
cd "$(dirname "$0")/.."
: "${KEEP:?name a folder for the environment with PyTorch}" "${I2D:?name a folder for the environment with img2dataset}"
export KEEP
sh bench/torch_env.sh -c ''
if [ ! -x "$I2D/bin/python" ]; then
    "${PYTHON:-python3.11}" -m venv "$I2D"
    "$I2D/bin/pip" install -q 'img2dataset==1.47.0'
fi
python=.venv/bin/python
$python -m bench streaming --rounds 4
$python -m bench streaming --cached --images 512
$python -m bench resizing --img2dataset "$I2D/bin/python" --rounds 3
$python -m bench sampling --torch demo --device cpu
$python -m bench sampling --torch full --device cpu --rounds 2
