"""Values of training's flags that would make weights NaN, save nothing or do nothing are refused or noted."""

import pytest

from sd.errors import InputError
from sd.flags.command_line import parse_arguments

FINITE = ["learning_rate", "unet_learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "lr_end"]
FINITE += ["num_cycles", "power", "num_train_epochs", "noise_offset"]


def parse(*words):
    return parse_arguments(["--output_dir", "o", "--device", "cpu", *map(str, words)], environ={})[2]


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(InputError, match=f"^{name}={value}; expected .*below inf$"):
        parse(f"--{name}", value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--warmup_ratio", "nan"], "warmup_ratio=nan; expected at least 0 and at most 1"),
        (["--weight_decay", -1], "weight_decay=-1.0; expected at least 0"),
        (["--adam_beta1", 1], "adam_beta1=1.0; expected at least 0 and below 1"),
        (["--adam_epsilon", 0], "adam_epsilon=0.0; expected above 0"),
        (["--num_train_epochs", 0], "num_train_epochs=0.0; expected above 0"),
        (["--eval_steps", -1], "eval_steps=-1; expected at least 1"),
        (["--hang_timeout", "inf"], "hang_timeout=inf; expected at least 0 and at most 100000000"),
        (["--save_strategy", "epoch"], "save_strategy='epoch'; training here counts steps alone, use steps"),
        (["--ignore_load_lr_and_optim", "True"], "ignore_load_lr_and_optim=True is not supported by this trainer"),
        (["--optim", "adafactor"], "optim='adafactor' is not supported by this trainer; use adamw"),
        (["--seed", 2**32], "seed=4294967296; expected at least 0 and at most 4294967295"),
        (["--output_dir", ""], "output_dir=''; expected a folder"),
        (["--logging_dir", __file__], f"logging_dir={__file__!r} is a file; expected a folder"),
        (["--profiler_options", "on"], "profiler_options='on'; expected name=value;..."),
        (["--profiler_options", "batch_range=ten"], "profiler_options='batch_range=ten'; expected name=value"),
        (["--save_on_each_node"], "save_on_each_node=True is not supported by this trainer"),
    ],
)
def test_what_would_go_wrong_later_is_refused(words, message):
    with pytest.raises(InputError) as error:
        parse(*words)
    assert str(error.value).startswith(message)


def test_the_longest_timeout_is_one_that_a_timer_takes():
    import faulthandler

    timeout = parse("--hang_timeout", 10**8).hang_timeout
    faulthandler.dump_traceback_later(10 * timeout + 10)  # as the watch arms it while a checkpoint is saved
    faulthandler.cancel_dump_traceback_later()


def test_flags_without_an_effect_are_noted():
    assert parse().idle() == []
    assert parse("--warmup_steps", 9, "--lr_scheduler_type", "constant", "--ema_decay", 0.5).idle() == [
        "--warmup_steps 9 has no effect with --lr_scheduler_type constant; constant_with_warmup warms up",
        "--ema_decay 0.5 has no effect without --use_ema True",
    ]
    assert parse("--warmup_steps", 9, "--use_ema", "--ema_decay", 0.5).idle() == []  # of the linear schedule
    (note,) = parse("--num_train_epochs", 3, "--max_steps", 7).idle()
    assert note == "--num_train_epochs 3.0 has no effect with --max_steps 7; -1 counts epochs"
