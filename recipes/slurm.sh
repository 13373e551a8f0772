#!/bin/bash
# Slurm: one task a machine, which starts a process for each of its GPUs; restarts by itself and after a requeue.
#   sbatch --nodes 2 recipes/slurm.sh --file_list DATA/filelist/custom_dataset.filelist.list --output_dir /shared/out
# --output_dir lies on storage that all machines share. Nothing here has run on a GPU.
#SBATCH --job-name=stable-diffusion
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# sbatch runs a copy of this file from a folder of its own; the checkout is where the job was submitted.
cd "${SLURM_SUBMIT_DIR:-.}"
master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of the job's own: two jobs may share a machine.
export LAUNCH="--master $master:$((20000 + SLURM_JOB_ID % 20000)) --nnodes $SLURM_JOB_NUM_NODES"
export RESTARTS="${RESTARTS:-10}"

# SIGTERM, 300 s before the time limit, reaches every task: it saves, and the requeued job resumes from there.
exec srun --kill-on-bad-exit=0 sh train_multi.sh "$@"
