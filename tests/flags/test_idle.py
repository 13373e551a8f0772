"""Flags that do nothing beside the others that were given are refused or noted, one by one."""

import pytest

from sd.commands import export, sample
from sd.commands.pack import parse_arguments as pack
from sd.errors import InputError
from sd.latents.options import CacheOptions

PACK = ["--input_path", "a", "--output_path", "b"]
EXPORT = ["--checkpoint", "a", "--output", "b"]
SCORES = ["--metrics", "--prompts_file", "p.txt"]
REFUSED = [
    (sample.parse_arguments, ["--num_prompts", "8"], "--num_prompts 8 has no effect without --metrics or --watch"),
    (sample.parse_arguments, ["--guidance_scales", "1", "2"], "--guidance_scales 1.0 2.0 has no effect without --metr"),
    *((sample.parse_arguments, [f"--{name}", "x"], f"--{name} x has no effect without --metrics")
      for name in ("preset", "clip_model", "fid_model", "fid_reference", "data_filter", "cmmd_reference")),
    (sample.parse_arguments, [*SCORES, "--every", "2"], "--every 2 has no effect without --watch"),
    (sample.parse_arguments, [*SCORES, "--golden", "x"], "--golden x has no effect without --watch"),
    (sample.parse_arguments, [*SCORES, "--poll_seconds", "2"], "--poll_seconds 2.0 has no effect without --watch"),
    (sample.parse_arguments, [*SCORES, "--num_images", "2"], "--num_images 2 has no effect with --metrics"),
    (sample.parse_arguments, [*SCORES, "--prompt", "a", "b"], "--prompt a b has no effect with --metrics"),
    (sample.parse_arguments, ["--prompts_column", "x"], "--prompts_column x has no effect without --prompts_file"),
    (sample.parse_arguments, [*SCORES, "--guidance_scale", "2", "--guidance_scales", "3"], "with --guidance_scales"),
    (sample.parse_arguments, [*SCORES, "--guidance_scale", "2", "--preset", "mlperf"], "with --preset"),
    (sample.parse_arguments, ["--guidance_scale", "1", "--negative_prompt", "x"], "--negative_prompt x has no effect"),
    (export.parse_arguments, [*EXPORT, "--dtype", "fp16"], "--dtype fp16 has no effect without --format single_file"),
    (export.parse_arguments, [*EXPORT, "--scores", "x"], "--scores x has no effect without --card"),
    (export.parse_arguments, [*EXPORT, "--picture", "x"], "--picture x has no effect without --card"),
    (export.parse_arguments, [*EXPORT, "--format", "single_file", "--scheduler", "dpm"], "--scheduler dpm has no"),
    (pack, [*PACK, "--quality", "80"], "--quality 80 has no effect without --resize"),
    (pack, [*PACK, "--input_format", "webdataset", "--image_key", "x"], "--image_key x has no effect with"),
    (pack, [*PACK, "--input_format", "webdataset", "--allow_outside"], "--allow_outside has no effect with"),
]  # fmt: skip
TAKEN = [
    (sample.parse_arguments, ["--guidance_scale", "2", "--negative_prompt", "x", "--seed", "3"]),
    (sample.parse_arguments, [*SCORES, "--num_prompts", "8", "--guidance_scales", "2", "3", "--clip_model", "x"]),
    (sample.parse_arguments, ["--watch", "out", "--prompts_file", "p.txt", "--every", "2", "--clip_model", "x"]),
    (sample.parse_arguments, ["--prompt", "a", "--processes", "2"]),
    (sample.parse_arguments, ["--compare", "1", "2", "--negative_prompt", "x", "--guidance_scale", "1"]),
    (export.parse_arguments, [*EXPORT, "--format", "single_file", "--dtype", "fp16", "--card", "--scores", "x"]),
    (pack, [*PACK, "--resize", "64", "--quality", "80", "--image_key", "x", "--allow_outside"]),
    (pack, [*PACK, "--input_format", "webdataset", "--image_key", "image", "--caption_key", "caption"]),
]


@pytest.mark.parametrize(("parse", "flags", "message"), REFUSED)
def test_a_flag_without_an_effect_is_refused(parse, flags, message):
    with pytest.raises(InputError) as raised:
        parse(flags)
    assert message in str(raised.value)


@pytest.mark.parametrize(("parse", "flags"), TAKEN)
def test_flags_that_have_an_effect_are_taken(parse, flags):
    parse(flags)


def test_caching_notes_flags_of_training_that_it_does_not_need():
    options = CacheOptions("a", "b", model_max_length=16, tokenizer_name="x", crop="centre", seed=3)
    assert options.idle() == [
        "--model_max_length 16 has no effect without --cache_text",
        "--tokenizer_name x has no effect without --cache_text",
        "--seed 3 has no effect with --crop centre, which draws nothing",
    ]
    assert CacheOptions("a", "b", model_max_length=16, cache_text=True, seed=3).idle() == []
