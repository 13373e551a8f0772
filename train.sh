#!/bin/sh
# Train on one card. Further arguments are passed on, and the last one wins: sh train.sh --max_steps 100
# Flags from a file, a recipe or an earlier run's: sh train.sh @recipes/v1_256.args    sh train.sh @OUT/run.json
# What the run would need, before it starts:       sh train.sh --doctor ...            All flags: sh train.sh --help
# Started again after any end that is no success:  sh train.sh --restarts 10   (or RESTARTS=10)
# On a machine without a GPU:                      sh train.sh --device cpu
set -eu

here=$(dirname -- "$0")
if [ -z "${PYTHON:-}" ]; then
    has_gpu_paddle() { "$1" -c 'from importlib.metadata import version; version("paddlepaddle-gpu")' 2>/dev/null; }
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$here/.venv/bin/python" ]; then
        # Paddle for GPUs outside .venv, as in conda's environments, goes before a .venv without it.
        if has_gpu_paddle "$here/.venv/bin/python" || ! has_gpu_paddle python; then PYTHON="$here/.venv/bin/python"; fi
    fi
fi

# The reference's switches. Of those that the caller leaves out, training takes these defaults on a GPU alone.
for name in FLAG_RECOMPUTE FLAG_XFORMERS; do
    if [ -z "$(printenv $name)" ]; then SD_GPU_DEFAULTS="${SD_GPU_DEFAULTS:-} $name"; fi
done
export SD_GPU_DEFAULTS="${SD_GPU_DEFAULTS:-}"
export FLAG_FUSED_LINEAR="${FLAG_FUSED_LINEAR:-0}"
export FLAGS_conv_workspace_size_limit="${FLAGS_conv_workspace_size_limit:-4096}"
export FLAG_USE_EMA="${FLAG_USE_EMA:-0}"
export FLAG_RECOMPUTE="${FLAG_RECOMPUTE:-1}"
export FLAG_XFORMERS="${FLAG_XFORMERS:-1}"

# What create_pretraining_data.py wrote, else the LAION-400M demo data.
if [ -z "${FILE_LIST:-}" ]; then
    FILE_LIST=./processed_data/filelist/custom_dataset.filelist.list
    if [ ! -e "$FILE_LIST" ]; then FILE_LIST=./data/filelist/train.filelist.list; fi
fi

# A model that the caller names comes with its own VAE, text encoder and UNet: the three defaults would win over it.
own_model=
restarts=${RESTARTS:-}
for word in "$@"; do
    case $word in
    --restarts | --restarts=*) restarts=1 ;;
    --pretrained_model_name_or_path | --pretrained_model_name_or_path=*) own_model=1 ;;
    @?*) if grep -qs '^[^#]*pretrained_model_name_or_path' "${word#@}"; then own_model=1; fi ;;
    --help | -h | --doctor) one=1 ;;
    esac
done
if [ -n "${one:-}" ]; then LAUNCHER='' restarts=''; fi # of these one process is enough
supervisor=
if [ -n "$restarts" ]; then
    supervisor="-m sd.processes.supervisor"
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -z "$own_model" ]; then
    set -- \
        --vae_name_or_path CompVis/stable-diffusion-v1-4/vae \
        --text_encoder_name_or_path CompVis/stable-diffusion-v1-4/text_encoder \
        --unet_name_or_path "$here/sd/unet_config.json" \
        "$@"
fi

# shellcheck disable=SC2086  # LAUNCHER, set by train_multi.sh, is a list of words
exec "$PYTHON" -u $supervisor ${LAUNCHER:-} "$here/train_txt2img_laion400m_trainer.py" \
    --do_train \
    --output_dir ./laion400m_pretrain_output_trainer \
    --per_device_train_batch_size 32 \
    --gradient_accumulation_steps 1 \
    --learning_rate 1e-4 \
    --weight_decay 0.01 \
    --max_steps 200000 \
    --lr_scheduler_type constant \
    --warmup_steps 0 \
    --image_logging_steps 1000 \
    --logging_steps 10 \
    --resolution 256 \
    --save_steps 10000 \
    --save_total_limit 20 \
    --seed 23 \
    --dataloader_num_workers 4 \
    --file_list "$FILE_LIST" \
    --model_max_length 77 \
    --max_grad_norm -1 \
    --disable_tqdm True \
    --bf16 False \
    "$@"
