#!/bin/sh
# What a second caption is worth: each shape has a short caption, "a red circle", and a long one that names the background
# too. The same packed data trains two models: on both captions, and on the short ones alone.
#
#     sh recipes/long_captions.sh
#
# Expected: prompts of either kind right in over 95% of the pictures of the model of both, long ones in half of the
# other's, which draws the background at random (docs/recipes.md). Time: some 20 minutes on two cores for 1,800 steps each.
# STEPS=600 trains a model that loses the shape of one short prompt in three; OUT=folder writes elsewhere.
set -eu
. "$(dirname "$0")/../no_arguments.sh"
cd "$(dirname "$0")/.."
out=${OUT:-long_captions_out}
steps=${STEPS:-1800}
. ./setup_env.sh
PATH="$PWD/.venv/bin:$PATH"
export PATH

if [ ! -e "$out/shapes/shapes.jsonl" ]; then
    python -m demo.shapes --output "$out/shapes" --long_captions
fi
python create_pretraining_data.py --input_path "$out/shapes/shapes.jsonl" --output_path "$out/processed_data" \
    --caption_key caption,long_caption --save_gzip_file
cut -d " " -f 1-3 demo/captions.txt | sort -u >"$out/short.txt"

for shares in caption=0.5,long_caption=0.5 caption=1; do
    name=$(echo "$shares" | tr "=,." "___")
    sh train.sh @recipes/demo.args --output_dir "$out/$name" --max_steps "$steps" --save_steps "$steps" \
        --file_list "$out/processed_data/filelist/custom_dataset.filelist.list" --caption_shares "$shares" \
        --image_logging_steps -1
    for prompts in "$out/short.txt" demo/captions.txt; do
        number=$((108 / $(wc -l <"$prompts")))
        samples=$out/$name/samples_$(basename "$prompts" .txt)
        python eval.py --unet "$out/$name" --variant ema --pretrained_model demo/tiny_sd --prompts_file "$prompts" \
            --num_images "$number" --guidance_scale 2 --num_inference_steps 20 --batch_size 36 --device cpu \
            --output "$samples"
        echo "trained on $shares, prompts as '$(head -n 1 "$prompts")':"
        python -m demo.classify "$samples" | tee -a "$out/scores.txt"
    done
done
echo "look at $out/*/samples_*/grid.png"
