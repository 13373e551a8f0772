#!/bin/sh
# From an emoji font to pictures of its names: renders it, packs, makes a VAE and a text encoder, caches their output,
# trains a UNet of 17 M weights from random ones, draws 300 of the captions and 50 mixtures that no font has.
#
#     sh examples/emoji/run.sh
#
# Time: 25 minutes for the models and 80 for the UNet, on two cores. What is there is skipped, so that a stopped
# run goes on. STEPS=20000 trains longer; OUT=folder writes elsewhere; VAE_STEPS, TEXT_STEPS and CAPTIONS are for a trial.
# On a GPU: UNET=examples/emoji/unet_large.json, of 98 M weights.
set -eu
. "$(dirname "$0")/../../no_arguments.sh"
cd "$(dirname "$0")/../.."
out=${OUT:-emoji_out}
steps=${STEPS:-7000}
unet=${UNET:-examples/emoji/unet_config.json}
. ./setup_env.sh
PATH="$PWD/.venv/bin:$PATH"
export PATH

echo "== 1/6 rendering the font"
[ -e "$out/pictures/emoji.jsonl" ] || python -m examples.emoji.pictures --output "$out/pictures"

echo "== 2/6 packing"
python create_pretraining_data.py --input_path "$out/pictures/emoji.jsonl" --output_path "$out/processed_data" \
    --caption_key caption --image_key image --keep_columns code_point --save_gzip_file
list=filelist/custom_dataset.filelist.list
python -m sd.data.inspect "$out/processed_data/$list" --resolution 64 --output "$out/inspect.png"

echo "== 3/6 VAE, tokenizer and text encoder"
make_models() { python -m examples.emoji.make_models --pictures "$out/pictures/emoji.jsonl" --output "$out/models" "$@"; }
[ -e "$out/models/vae" ] || make_models --parts vae --vae_steps "${VAE_STEPS:-4000}"
[ -e "$out/models/text_encoder" ] || make_models --parts text --text_encoder_steps "${TEXT_STEPS:-400}"

echo "== 4/6 caching latents and texts"
python precompute_latents.py --file_list "$out/processed_data/$list" --pretrained_model_name_or_path "$out/models" \
    --model_max_length 16 --resolution 64 --num_crops 4 --cache_text --output_path "$out/cache"

echo "== 5/6 training"
[ -e "$out/model/checkpoint-$steps" ] ||
    sh train.sh @examples/emoji/emoji.args --output_dir "$out/model" --file_list "$out/cache/$list" \
        --pretrained_model_name_or_path "$out/models" --unet_name_or_path "$unet" \
        --max_steps "$steps" --save_steps "$((steps < 500 ? steps : 500))"

echo "== 6/6 drawing"
python -m examples.emoji.measure --captions "${CAPTIONS:-300}" --pictures "$out/pictures/emoji.jsonl" >"$out/captions.txt"
for prompts in "$out/captions.txt" examples/emoji/mixtures.txt; do
    python eval.py --unet "$out/model/checkpoint-$steps" --variant ema --pretrained_model "$out/models" \
        --prompts_file "$prompts" --guidance_scale 3 --num_inference_steps 30 --batch_size 50 --output "$out/samples_$(basename "$prompts" .txt)"
done
python -m examples.emoji.measure --samples "$out/samples_captions" --pictures "$out/pictures/emoji.jsonl" \
    --vae "$out/models/vae"
echo "look at $out/samples_*/grid.png"
