"""Memory decides on recompute where the user does not. The card's numbers are stand-ins; the passes are real."""

from types import SimpleNamespace

import pytest

from sd import devices
from sd.diffusion.model import StableDiffusionModel
from sd.flags.command_line import parse_arguments
from sd.training import memory
from sd.training.trainer import StableDiffusionTrainer


@pytest.fixture
def card(monkeypatch):
    """`card(peak, total)`: what a card would report."""

    def install(peak, total):
        monkeypatch.setattr(memory, "allocated_peak", lambda: peak)
        monkeypatch.setattr(devices, "memory_bytes", lambda device: total)

    return install


def make_trainer(workshop, *flags):
    model_args, data_args, training_args = parse_arguments(workshop.flags("memory", *flags), environ={})
    model = StableDiffusionModel.from_arguments(model_args, data_args.resolution)
    trainer = StableDiffusionTrainer(model, training_args)
    trainer.create_scheduler(10)
    trainer.create_optimizer(trainer.lr_scheduler)
    return trainer


def test_recompute_is_off_while_the_step_fits(workshop, card):
    trainer = make_trainer(workshop)
    numbers = sum(parameter.size for parameter in trainer.trained_parameters)
    peak = 10**9
    needed = peak + 8 * numbers  # the two moments of AdamW in float32
    card(peak, int(needed / memory.USABLE) + 2)
    assert memory.choose_recompute(trainer, (32, 32)) is False
    card(peak, int(needed / memory.USABLE) - 2)
    assert memory.choose_recompute(trainer, (32, 32)) is True
    assert all(parameter.grad is None for parameter in trainer.trained_parameters)


def test_out_of_memory_turns_recompute_on(workshop, card, monkeypatch):
    trainer = make_trainer(workshop)
    card(1, 10**15)

    def forward(self, **batch):
        raise MemoryError("ResourceExhaustedError: Out of memory error on GPU 0")

    monkeypatch.setattr(StableDiffusionModel, "forward", forward)
    assert memory.choose_recompute(trainer, (32, 32)) is True


def test_another_error_is_not_taken_for_out_of_memory(workshop, card, monkeypatch):
    trainer = make_trainer(workshop)

    def forward(self, **batch):
        raise RuntimeError("(InvalidArgument) shapes")

    monkeypatch.setattr(StableDiffusionModel, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes"):
        memory.choose_recompute(trainer, (32, 32))


@pytest.mark.parametrize(
    ("options", "bytes_each"),
    [
        ({}, 8),
        ({"precision": "bf16", "fp16_opt_level": "O1"}, 8),
        ({"precision": "bf16", "fp16_opt_level": "O2"}, 8 + 4 + 2),
        ({"world_size": 2}, 8 + 4),
        ({"world_size": 2, "sharding": ["stage1"]}, 4),
    ],
)
def test_what_the_first_step_adds_is_counted(options, bytes_each):
    args = {"precision": "fp32", "fp16_opt_level": "O1", "world_size": 1, "sharding": []} | options
    trainer = SimpleNamespace(args=SimpleNamespace(**args), trained_parameters=[SimpleNamespace(size=1000)] * 3)
    assert memory.optimizer_bytes(trainer) == 3000 * bytes_each


def test_recompute_is_chosen_before_the_model_is_wrapped(workshop, card, monkeypatch):
    """As on a GPU, where the flag stays open. The run goes on with what was chosen."""
    card(10, 11)
    select = StableDiffusionTrainer.__init__

    def open_again(self, model, args, *arguments, **options):
        args.recompute = None
        select(self, model, args, *arguments, **options)

    seen = []
    set_recompute = StableDiffusionModel.set_recompute
    monkeypatch.setattr(StableDiffusionTrainer, "__init__", open_again)
    monkeypatch.setattr(
        StableDiffusionModel, "set_recompute", lambda self, on: (seen.append(on), set_recompute(self, on))[1]
    )
    workshop.train("asked", "--max_steps", 1)
    assert seen == [False, True]
    monkeypatch.setattr(StableDiffusionTrainer, "__init__", select)
    seen.clear()
    workshop.train("not_asked", "--max_steps", 1)
    assert seen == [False]
