#!/bin/sh
# From a fresh machine to a picture, on CPU: installs, draws captioned shapes, packs them, trains a small
# Stable Diffusion on them, resumes it once, samples 108 captions and scores them. What is there is skipped.
# STEPS=4000 sh quickstart.sh trains longer.
set -eu
. "$(dirname "$0")/no_arguments.sh"
cd "$(dirname "$0")"
out=quickstart_out
steps=${STEPS:-600}
half=$((steps / 2))

more=
. ./setup_env.sh
PATH="$PWD/.venv/bin:$PATH"
export PATH

if [ ! -e "$out/shapes/shapes.jsonl" ]; then
    echo "== 1/5 drawing captioned shapes"
    python -m demo.shapes --output "$out/shapes"
fi

echo "== 2/5 packing them"
python create_pretraining_data.py --input_path "$out/shapes/shapes.jsonl" --output_path "$out/processed_data" \
    --caption_key caption --image_key image --per_part_file_num 1000 --num_repeat 100 --save_gzip_file

train() {
    sh train.sh @recipes/demo.args --output_dir "$out/model" --max_steps "$1" --save_steps "$half" \
        --file_list "$out/processed_data/filelist/custom_dataset.filelist.list"
}
if [ ! -e "$out/model/checkpoint-$steps" ]; then
    if [ ! -e "$out/model/checkpoint-$half" ]; then
        echo "== 3/5 training, steps 1 to $half"
        train "$half"
    fi
    echo "== 4/5 resuming from $out/model/checkpoint-$half to step $steps"
    train "$steps"
fi

echo "== 5/5 drawing 108 pictures: 36 captions, 3 of each"
python eval.py --unet "$out/model/checkpoint-$steps/unet" --variant ema --pretrained_model demo/tiny_sd \
    --prompts_file demo/captions.txt --num_images 3 --guidance_scale 2 --num_inference_steps 20 --batch_size 36 \
    --device cpu --output "$out/samples"

echo
echo "share of the pictures that show what their caption says:"
python -m demo.classify "$out/samples"
echo "look at $out/samples/grid.png, and at the run with: visualdl --logdir $out/model"
echo "in a new terminal, before python and visualdl: . .venv/bin/activate"
