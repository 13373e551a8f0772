#!/bin/sh
# Train on a small set of your own pictures, on a CPU, without network: packing, a look at the data, training, sampling.
#
#     sh recipes/own_pictures.sh FOLDER [flags of training, which win]
#
# FOLDER holds pictures, subfolders too, each with its caption in a text file of the same name: cat.jpg, cat.txt.
# Pictures without one are counted and left out.
# The models are the demo's: pictures of 32 x 32, a VAE and a text encoder that were trained on coloured shapes. So this
# shows that your data passes through every stage, and how; the pictures are blurred, and of words that the demo does not
# know only the first 14 letters count. Expected time: 1 to 3 min for 600 steps on two cores. STEPS=2000 trains longer;
# OUT=folder writes elsewhere.
# Start it again and it continues where it was; for other pictures give another OUT.
set -eu
case ${1:-} in
-h | --help)
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
    exit 0
    ;;
esac
if [ ! -d "${1:-}" ]; then
    [ -z "${1:-}" ] || echo "error: $1: no such folder" >&2
    echo "usage: sh recipes/own_pictures.sh FOLDER [flags of training]   (cat.jpg and its caption cat.txt in FOLDER)" >&2
    exit 2
fi
pictures=$(cd "$1" && pwd)
shift
start=$PWD
cd "$(dirname "$0")/.."
out=${OUT:-own_pictures_out}
case $out in /*) ;; *) out=$start/$out ;; esac
steps=${STEPS:-600}
. ./setup_env.sh
PATH="$PWD/.venv/bin:$PATH"
export PATH

echo "== 1/4 packing $pictures"
python create_pretraining_data.py --input_path "$pictures" --input_format folder --output_path "$out/processed_data" \
    --allow_outside --max_bad_fraction 0.9 --resize 64 --save_gzip_file --overwrite

echo "== 2/4 a contact sheet of what the model will see"
list=$out/processed_data/filelist/custom_dataset.filelist.list
python -m sd.data.inspect "$list" --resolution 32 --output "$out/inspect.png"

batch=$(python -c "import json, sys; print(min(32, json.load(open(sys.argv[1]))['outcomes']['packed']))" \
    "$out/processed_data/report.json")
echo "== 3/4 training, $steps steps of $batch pictures"
sh train.sh @recipes/demo.args --output_dir "$out/model" --file_list "$list" --max_steps "$steps" \
    --per_device_train_batch_size "$batch" --image_logging_steps -1 --save_steps 200 --save_total_limit 2 "$@"

echo "== 4/4 drawing the first 12 captions, 3 pictures of each"
gzip -dc "$out/processed_data/laion400m_format_data/part-000001.gz" | cut -f 1 | head -n 12 >"$out/prompts.txt"
python eval.py --unet "$out/model" --variant ema --pretrained_model demo/tiny_sd --prompts_file "$out/prompts.txt" \
    --num_images 3 --guidance_scale 2 --num_inference_steps 20 --batch_size 36 --device cpu --output "$out/samples"
echo "look at $out/inspect.png and $out/samples/grid.png"
