#!/bin/sh
# Train on all visible cards with the flags of train.sh; further ones win: sh train_multi.sh --max_steps 100
# Some of them:           GPUS=0,1 sh train_multi.sh
# Several machines, the same command on each:  LAUNCH="--ips IP1,IP2" sh train_multi.sh
#   (or LAUNCH="--master IP1:PORT --nnodes 2"); output_dir on storage that they share.
# No GPU, two processes:  NPROC=2 sh train_multi.sh --device cpu
set -eu

# The launcher takes cards for GPUs and a number of processes for CPUs.
case " $* " in *" --device cpu "* | *" --device=cpu "*) NPROC="${NPROC:-2}" ;; esac
if [ -n "${NPROC:-}" ]; then
    processes="--nproc_per_node $NPROC"
else
    processes="${GPUS:+--gpus $GPUS}"  # the launcher takes all visible cards where none are named
fi

# The launcher chooses ports that rank 0 takes seconds later. The kernel gives those from 32768 on to whoever connects in
# between, and Paddle then aborts in libuv's uv__finish_close.
export PORT_RANGE="${PORT_RANGE:-20000:32767}"

# Paddle's launcher, whose end by Ctrl-C says whether something was saved.
here=$(dirname -- "$0")
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
export LAUNCHER="-m sd.processes.launch $processes ${LAUNCH:-}"
exec sh "$here/train.sh" "$@"
