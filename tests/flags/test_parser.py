"""The scripts' parser: one line for a wrong command line, that names the flag, the value and what is expected."""

import pytest

from sd.commands import cache, export, pack, sample, serve
from sd.data import columns, inspect
from sd.data.duplicates import command as duplicates
from sd.errors import InputError

PACK = ["--input_path", "a.jsonl", "--output_path", "b"]
CACHE = ["--file_list", "a", "--output_path", "b"]


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (pack, [], "the following arguments are required: --input_path, --output_path; see --help"),
        (pack, [*PACK, "--capton_key", "text"], "unknown argument '--capton_key'; did you mean --caption_key?"),
        (pack, [*PACK, "--capton_key=text"], "unknown argument '--capton_key=text'; did you mean --caption_key?"),
        (pack, [*PACK, "--xyz"], "unknown argument '--xyz'; see --help"),
        (pack, [*PACK, "stray"], "unknown argument 'stray'; see --help"),
        (pack, ["--input_pat", *PACK[1:]], "the following arguments are required: --input_path; see --help"),
        (pack, [*PACK, "--per_part_file_num", "ten"], "--per_part_file_num ten; expected a whole number"),
        (pack, [*PACK, "--per_part_file_num"], "--per_part_file_num without a value; expected one argument"),
        (pack, [*PACK, "--engine", "dask"], "--engine dask; expected one of local, ray"),
        (
            pack,
            [*PACK, "--save_gzip_file", "True"],
            "--save_gzip_file True; it is a switch and takes no value, leave 'True' out",
        ),
        (cache, [*CACHE, "--resolutoin", "64"], "unknown argument '--resolutoin'; did you mean --resolution?"),
        (cache, [*CACHE, "--cache_text", "True"], "--cache_text True; it is a switch and takes no value, leave 'True'"),
        (sample, ["--guidance_scale", "high"], "--guidance_scale high; expected a number"),
        (sample, ["--unet"], "--unet without a value; expected one argument"),
        (export, ["--checkpoint", "a", "--output", "b", "--format", "onnx"], "--format onnx; expected one of ppdiff"),
        (serve, ["--prot", "80"], "unknown argument '--prot'; did you mean --port?"),
        (inspect, ["a", "--sampels", "8"], "unknown argument '--sampels'; did you mean --samples?"),
        (inspect, ["a", "--rows", "all"], "--rows all; expected a whole number"),
        (columns, ["join"], "command join; expected one of add, export"),
        (columns, ["add", "a", "b", "--kee", "url"], "the following arguments are required: --key; see --help"),
        (
            columns,
            ["add", "a", "b", "--key", "url", "--colums", "c"],
            "unknown argument '--colums'; did you mean --columns?",
        ),
        (duplicates, [], "the following arguments are required: file_list; see --help"),
        (duplicates, ["a", "--max_distanse", "2"], "unknown argument '--max_distanse'; did you mean --max_distance?"),
    ],
)
def test_a_wrong_command_line_is_one_line(program, words, message):
    parse = getattr(program, "parse_arguments", None) or program.main
    with pytest.raises(InputError) as raised:
        parse(words)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(message)
