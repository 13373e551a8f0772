"""Draw pictures from a trained checkpoint or from published weights."""

import argparse
from collections.abc import Sequence

from sd import runtime
from sd.flags.idle import refuse_idle
from sd.flags.parser import Parser
from sd.logs import import_quietly, set_up_logging

ASTRONAUT = "a photo of an astronaut riding a horse on mars"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags. They are read before Paddle is imported, so that `--help` is quick."""
    parser = Parser(
        description="Draw pictures from a checkpoint or from published weights: PNG files that hold their prompt and "
        "settings, and a labelled grid of them. With no arguments the published Stable Diffusion v1-4 draws "
        f"{ASTRONAUT!r}, 512 x 512, into astronaut_rides_horse.png.",
    )
    add = parser.add_argument
    add("--prompt", nargs="+", metavar="TEXT", help=f"one or several prompts (default: {ASTRONAUT})")
    add("--prompts_file", metavar="FILE", help="prompts from a text file (one a line), JSONL, TSV or CSV")
    add("--prompts_column", metavar="NAME", help="its key or column (default: prompt, caption_en, caption or text)")
    add("--negative_prompt", default="", metavar="TEXT", help="what guidance leads away from (default: nothing)")
    add(
        "--compare",
        nargs="+",
        metavar="WHAT",
        help="draw the same prompts and noise with each of these, as one grid: "
        "checkpoints, guidance scales, `ema` and `raw`, or `CHECKPOINT:ema`",
    )
    add("--output", metavar="PATH", help="folder, or file.png for one picture or the grid (default: eval_output)")
    models = parser.add_argument_group("models, by short flags or by those of training")
    add = models.add_argument
    add(
        "--unet",
        "--unet_name_or_path",
        dest="unet",
        metavar="NAME",
        help="output_dir/checkpoint-N/unet, output_dir/checkpoint-N, output_dir (its newest "
        "checkpoint) or a published name (default: the pretrained model's)",
    )
    add("--variant", help="`ema` for the moving average of the UNet's weights (default: the weights themselves)")
    add(
        "--pretrained_model",
        "--pretrained_model_name_or_path",
        dest="pretrained_model",
        metavar="NAME",
        help="folder or published name of what is not named below "
        "(default: what the checkpoint's run used, else CompVis/stable-diffusion-v1-4)",
    )
    add(
        "--text_encoder",
        "--text_encoder_name_or_path",
        dest="text_encoder",
        metavar="NAME",
        help="the text encoder alone (default: the checkpoint's, if it was trained)",
    )
    add("--vae", "--vae_name_or_path", dest="vae", metavar="NAME", help="the VAE alone")
    add("--tokenizer", "--tokenizer_name", dest="tokenizer", metavar="NAME", help="the tokenizer alone")
    add("--dtype", default="fp32", help="fp32 or, on a GPU, fp16 or bf16 (default: %(default)s)")
    add("--device", help="cpu, gpu or gpu:N (default: a GPU if there is one)")
    drawing = parser.add_argument_group("drawing")
    add = drawing.add_argument
    add("--height", type=int, help="pixels (default: as in training; 512 for v1-4)")
    add("--width", type=int, help="pixels (default: as in training; 512 for v1-4)")
    add("--guidance_scale", type=float, default=7.5, help="classifier-free guidance; 1 is none (default: %(default)s)")
    add("--num_inference_steps", type=int, default=50, help="denoising steps (default: %(default)s)")
    add("--scheduler", help="ddim, pndm, lms, euler, heun or dpm (default: ddim, or the published model's own)")
    add("--num_images", type=int, default=1, help="pictures of each prompt (default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=42,
        help="seed of each prompt's first picture; the next has seed + 1, and so on (default: %(default)s)",
    )
    add("--batch_size", type=int, help="pictures in one UNet call (default: 8 where the UNet's work is small, else 1)")
    scores = parser.add_argument_group("scores of a prompts file, with --metrics (default output: eval_metrics)")
    add = scores.add_argument
    add("--metrics", action="store_true", help="draw one picture of each prompt and measure FID and CLIP score")
    add("--preset", help="mlperf (512 pixels, guidance 8, 30,000 prompts) or reference (256 pixels, guidance 1.5 to 8)")
    add("--guidance_scales", nargs="+", type=float, metavar="SCALE", help="several (default: --guidance_scale)")
    add("--num_prompts", type=int, help="the first so many prompts (default: all)")
    add("--clip_model", metavar="NAME", help="CLIP for the CLIP score: a folder or published name")
    add("--fid_model", metavar="NAME", help="features for FID: Inception-v3's weights (.pth, .safetensors), or a CLIP")
    add(
        "--data_filter",
        metavar="EXPRESSION",
        help="rows of the list of --fid_reference or --cmmd_reference, by their columns",
    )
    add("--fid_reference", metavar="PATH", help="real pictures: a folder, a file list, or statistics (.npz: mu, sigma)")
    add(
        "--cmmd_reference",
        metavar="PATH",
        help="real pictures for CMMD, by the features of --clip_model: a folder, a file list, or .npz: features",
    )
    add("--processes", type=int, default=1, help="processes that draw, one for each GPU (default: %(default)s)")
    watch = parser.add_argument_group("watch a run, with the flags of scores (default output: OUTPUT_DIR/scores)")
    add = watch.add_argument
    add("--watch", metavar="OUTPUT_DIR", help="score each new checkpoint of a run, raw and ema, until its last one")
    add("--every", type=int, default=1, metavar="N", help="those of every N-th step, and the last (default: all)")
    add("--golden", metavar="NAME", help="band of a sound run behind the curves: mlperf_sd2, or a .json file")
    add("--poll_seconds", type=float, default=30.0, help="seconds between two looks (default: %(default)g)")
    flags = parser.parse_args(arguments)
    refuse_idle(flags, _idle_rules(flags), {name: parser.get_default(name) for name in vars(flags)})
    return flags


def _idle_rules(flags):
    """Which flags have an effect beside which others."""
    scores = bool(flags.metrics or flags.watch)
    scales = flags.guidance_scales or [flags.guidance_scale]
    measures = (
        "preset guidance_scales num_prompts clip_model fid_model fid_reference data_filter cmmd_reference processes"
    )
    return [
        (scores, measures, "without --metrics or --watch"),
        (bool(flags.watch), "every golden poll_seconds", "without --watch OUTPUT_DIR"),
        (
            not scores,
            "prompt num_images",
            "with --metrics or --watch, which draw one picture of each of --prompts_file",
        ),
        (bool(flags.prompts_file), "prompts_column", "without --prompts_file"),
        (not flags.guidance_scales, "guidance_scale", "with --guidance_scales"),
        (not flags.preset, "guidance_scale", "with --preset; --guidance_scales takes the place of the preset's"),
        (
            bool(flags.compare or flags.preset) or scales != [1],
            "negative_prompt",
            "at guidance 1, which has no negative",
        ),
    ]


def main() -> None:
    """Read the flags, set the machine up, draw."""
    flags = parse_arguments()
    if flags.unet:  # a wrong name is answered before Paddle is imported
        from sd.runs.locate import find_unet

        flags.unet = find_unet(flags.unet).folder
    runtime.prepare(flags.device)
    set_up_logging()
    import_quietly()
    from sd.metrics.measure import measure
    from sd.metrics.watch import watch
    from sd.sampling.run import check_flags, model_flags, run

    if not (flags.prompt or flags.prompts_file or flags.metrics or flags.watch):
        flags.prompt = [ASTRONAUT]
        flags.output = flags.output or "astronaut_rides_horse.png"
    if flags.watch:
        check_flags(flags)
        watch(flags, model_flags(flags))
    elif flags.metrics:
        check_flags(flags)
        measure(flags, {"unet": flags.unet, "variant": flags.variant} | model_flags(flags))
    else:
        run(flags)
