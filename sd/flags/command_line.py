"""The command line of training: flags into dataclasses, and the reference's environment variables beside them."""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd import devices
from sd.errors import InputError
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.flags.files import expand
from sd.flags.options import add_flags
from sd.flags.parser import Parser as OurParser
from sd.flags.parser import describe_unknown, explain, truth

logger = logging.getLogger(__name__)
# {"own": rows, "inherited": rows} of SDTrainingArguments, as `sd.flags.help.help_rows` gives them
TABLE = Path(__file__).with_name("training_help.json")

# The reference's switches from outside; a flag on the command line wins over its variable.
ENVIRONMENT_FLAGS = {
    "FLAG_USE_EMA": "use_ema",
    "FLAG_RECOMPUTE": "recompute",
    "FLAG_XFORMERS": "enable_xformers_memory_efficient_attention",
    "FLAG_TO_STATIC": "to_static",
    "FLAG_BENCHMARK": "benchmark",
}
# What diffusers' training script calls otherwise -> what it is here.
DIFFUSERS_FLAGS = {
    "--mixed_precision": "--fp16 True or --bf16 True",
    "--train_batch_size": "--per_device_train_batch_size",
    "--max_train_steps": "--max_steps",
    "--lr_scheduler": "--lr_scheduler_type",
    "--lr_warmup_steps": "--warmup_steps",
    "--checkpointing_steps": "--save_steps",
    "--checkpoints_total_limit": "--save_total_limit",
    "--gradient_checkpointing": "--recompute True",
    "--adam_weight_decay": "--weight_decay",
    "--validation_prompt": "--validation_prompts FILE, one prompt a line",
    "--validation_steps": "--image_logging_steps",
    "--proportion_empty_prompts": "--caption_dropout",
    "--train_data_dir": "--file_list LIST, of data packed by create_pretraining_data.py",
    "--dataset_name": "--file_list LIST, of data packed by create_pretraining_data.py",
    "--caption_column": "--caption_key of create_pretraining_data.py",
    "--image_column": "--image_key of create_pretraining_data.py",
}


def environment_values(environ: Mapping[str, str]) -> dict[str, bool]:
    """Flag -> value for each switch that is set in `environ`. Raises InputError for what is no truth value."""
    values = {}
    for variable, name in ENVIRONMENT_FLAGS.items():
        text = environ.get(variable)
        if text is None:
            continue
        try:
            values[name] = truth(text)
        except ValueError:
            raise InputError(f"{variable}={text!r}; expected 0 or 1") from None
    return values


def without_gpu_defaults(environ: Mapping[str, str], argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(environment, variables that train.sh and not the user has set). On a CPU, where they cost time and gain nothing,
    the latter are left out; SD_GPU_DEFAULTS names them."""
    script_defaults = environ.get("SD_GPU_DEFAULTS", "").split()
    device = devices.requested(argv)
    on_cpu = devices.parse(device).kind == "cpu" if device else not devices.card_count()
    dropped = script_defaults if on_cpu else []
    return {name: value for name, value in environ.items() if name not in dropped}, script_defaults


def check_early(argv: Sequence[str]) -> tuple[SDModelArguments, SDDataArguments]:
    """The flags of models and data of a command line. Raises InputError for a wrong value of them, and for a flag that
    training does not have, without the seconds that the import of paddlenlp's parser takes."""
    groups = (SDModelArguments, SDDataArguments)
    names = [[each.name for each in dataclasses.fields(group)] for group in groups]
    argv = expand(argv, dict.fromkeys([*names[0], *names[1], *training_names()], False))
    parser = OurParser(add_help=False)
    for group in groups:
        add_flags(parser, group, truth_values=True)
    for name in training_names():
        parser.add_argument(f"--{name}", nargs="*")
    given, unknown = parser.parse_known_args(argv)
    _refuse_unknown(unknown, argv, parser)
    of_model, of_data = ({name: getattr(given, name) for name in of_group} for of_group in names)
    return SDModelArguments(**of_model), SDDataArguments(**of_data)


def training_names() -> list[str]:
    """The names of the flags of `SDTrainingArguments`, from the generated table; switches that are on have a `no_`."""
    rows = [row for rows in json.loads(TABLE.read_text(encoding="utf-8")).values() for row in rows]
    return [name for name, _, _ in rows] + [f"no_{name}" for name, default, _ in rows if default == "True"]


def _refuse_unknown(unknown: Sequence[str], argv: Sequence[str], parser: argparse.ArgumentParser) -> None:
    if not unknown:
        return
    name = unknown[0].partition("=")[0]
    problem = describe_unknown(unknown[0], argv, parser._actions)
    if name in DIFFUSERS_FLAGS:
        problem = f"unknown argument {unknown[0]!r}; here it is {DIFFUSERS_FLAGS[name]}"
    if name == "--restarts":
        problem = f"unknown argument {unknown[0]!r}; sh train.sh takes it, on its command line"
    raise InputError(problem)


def parse_arguments(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Any, Any, Any]:
    """(SDModelArguments, SDDataArguments, SDTrainingArguments) from a command line; InputError for what is wrong.

    Under paddle.distributed.launch this also makes the process group.
    """
    from paddlenlp.trainer import PdArgumentParser
    from paddlenlp.trainer.argparser import strtobool

    from sd.flags.training import SDTrainingArguments

    class Parser(PdArgumentParser):
        def error(self, message):
            raise InputError(explain(message))

    parser = Parser((SDModelArguments, SDDataArguments, SDTrainingArguments), allow_abbrev=False)
    flags = {action.dest: action.nargs == "+" for action in parser._actions}
    argv = expand(sys.argv[1:] if argv is None else argv, flags)
    environ, script_defaults = without_gpu_defaults(environ, argv)
    for action in parser._actions:  # a switch that may be unset is on by its name alone, as any other
        if action.type is strtobool and action.nargs is None:
            action.nargs, action.const = "?", True
    from_environment = environment_values(environ)
    parser.set_defaults(**from_environment)
    flag_values, unknown = parser.parse_known_args(argv)
    _refuse_unknown(unknown, argv, parser)
    try:
        parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except InputError:
        raise
    except (ValueError, AssertionError) as error:
        raise InputError(str(error)) from None
    for variable, name in ENVIRONMENT_FLAGS.items():
        if from_environment.get(name) and getattr(flag_values, name):
            origin = "train.sh's default" if variable in script_defaults else "in the environment"
            logger.info("%s=%s, %s: %s is on", variable, environ[variable], origin, name)
    return parsed
