#!/bin/sh
# Is a run of the demo's recipe sound? 200 steps, scored at every 50th against the band of ten such runs with other seeds
# (sd/metrics/bands/demo.json). On a CPU; needs .venv (sh setup_env.sh makes it).
#
#     sh demo/golden.sh sound                  # golden_out/sound: the recipe, its scores and curves.png
#     sh demo/golden.sh zero --ema_decay 0     # the same with flags of training
#
# A new band, after a change that is meant to move it; GOLDEN= leaves out the old one:
#
#     for seed in 1 2 3 4 5 6 7 8 9 10; do GOLDEN= sh demo/golden.sh $seed --seed $seed; done
#     python -m sd.metrics.band golden_out/[1-9] golden_out/10 --guidance_scale 2 --output sd/metrics/bands/demo.json
#
# Time: 100 s a run on one core, of which 60 s are training. OUT=folder writes elsewhere.
set -eu
cd "$(dirname "$0")/.."
name=${1:?"name the run: sh demo/golden.sh sound"}
shift
out=${OUT:-golden_out}
golden=${GOLDEN-demo}
PATH="$PWD/.venv/bin:$PATH"
export PATH

if [ ! -e "$out/processed_data/filelist" ]; then
    python -m demo.shapes --output "$out/shapes"
    python create_pretraining_data.py --input_path "$out/shapes/shapes.jsonl" --output_path "$out/processed_data" \
        --per_part_file_num 1000 --save_gzip_file
    python -m demo.shapes --output "$out/real" --count 1000 --seed 1
fi
sh train.sh @recipes/demo.args --output_dir "$out/$name" --max_steps 200 --save_steps 50 --image_logging_steps -1 \
    --file_list "$out/processed_data/filelist/custom_dataset.filelist.list" "$@"
python eval.py --watch "$out/$name" --every 50 --pretrained_model demo/tiny_sd --prompts_file demo/captions.txt \
    --guidance_scale 2 --num_inference_steps 10 --batch_size 36 --clip_model demo/tiny_clip --fid_model demo/tiny_clip \
    --fid_reference "$out/real/images" --cmmd_reference "$out/real/images" --device cpu ${golden:+--golden "$golden"}
