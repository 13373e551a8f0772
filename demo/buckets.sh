#!/bin/sh
# What aspect-ratio buckets are for: shapes on upright, square and lying pictures, learned once with buckets and once from
# squares cut out of them, then drawn in all three formats and judged. On a CPU; needs .venv (sh setup_env.sh makes it).
# The demo's VAE knows squares with the shape in the middle alone, so it is trained on for the three formats first.
# Time: 10 minutes for the VAE and 20 for the models, on one quiet core. STEPS=600 is enough to see the difference.
set -eu
. "$(dirname "$0")/../no_arguments.sh"
cd "$(dirname "$0")/.."
out=buckets_out
steps=${STEPS:-1800}
formats=24x40,32x32,40x24
PATH="$PWD/.venv/bin:$PATH"
export PATH

if [ ! -e "$out/shapes/shapes.jsonl" ]; then
    python -m demo.shapes --output "$out/shapes" --sizes 48x80,64x64,80x48
fi
python create_pretraining_data.py --input_path "$out/shapes/shapes.jsonl" --output_path "$out/processed_data" \
    --per_part_file_num 1000 --save_gzip_file
if [ ! -e "$out/models" ]; then
    rm -rf "$out/models.part"
    cp -R demo/tiny_sd "$out/models.part"
    python -m demo.make_models --output "$out/models.part" --parts vae --vae_start demo/tiny_sd/vae --vae_formats "$formats"
    mv "$out/models.part" "$out/models"
fi

train() {
    name=$1
    shift
    if [ ! -e "$out/$name/checkpoint-$steps" ]; then
        sh train.sh @recipes/demo.args --output_dir "$out/$name" --max_steps "$steps" --save_steps "$steps" \
            --pretrained_model_name_or_path "$out/models" --image_logging_steps -1 \
            --file_list "$out/processed_data/filelist/custom_dataset.filelist.list" "$@"
    fi
}
train buckets --aspect_buckets "$formats"
train squares

for name in buckets squares; do
    for size in $(echo "$formats" | tr , " "); do
        python eval.py --unet "$out/$name/checkpoint-$steps/unet" --variant ema --pretrained_model "$out/models" \
            --prompts_file demo/captions.txt --width "${size%x*}" --height "${size#*x}" --num_images 3 \
            --guidance_scale 2 --num_inference_steps 20 --batch_size 36 --device cpu --output "$out/$name-$size"
    done
done
python -m demo.compare_formats "$out" --vae "$out/models/vae"
