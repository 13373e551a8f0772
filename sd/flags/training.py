"""paddlenlp's TrainingArguments with the flags of this toolkit, checked before any process group is made."""
# ruff: noqa: UP045  (PdArgumentParser understands Optional[X], not X | None)

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from paddlenlp.trainer import TrainingArguments

from sd import devices
from sd.errors import ArgumentError, InputError
from sd.flags.arguments import check_choice, check_range, check_ranges, flag
from sd.flags.idle import idle_flags

logger = logging.getLogger(__name__)

# Flags of paddlenlp that would do nothing or harm here, with the value that leaves them out.
_UNSUPPORTED = {
    "unified_checkpoint": False,
    "load_best_model_at_end": False,
    "use_async_save": False,
    "save_sharded_model": False,
    "load_sharded_model": False,
    "enable_auto_parallel": False,
    "tensor_parallel_degree": -1,
    "pipeline_parallel_degree": -1,
    "sep_parallel_degree": -1,
    "context_parallel_degree": -1,
    "skip_data_intervals": None,
    "offload_optim": False,
    "ignore_load_lr_and_optim": False,
    "ignore_save_lr_and_optim": False,
    "save_on_each_node": False,
    "no_cuda": False,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    "do_predict": False,
    "do_export": False,
    "pdc_download_ckpt": False,
}
_LONGEST_TIMEOUT = 10**8  # seconds; a timer takes 2^63 nanoseconds, and ten of these are asked of it while saving
REPORTERS = ("visualdl", "custom_visualdl", "tensorboard", "wandb", "autonlp", "all", "none")


def _check_profiler_options(text: str) -> None:
    from paddlenlp.utils.profiler import ProfilerOptions

    try:
        ProfilerOptions(text)
    except ValueError:
        raise ArgumentError("profiler_options", text, "; expected name=value;..., as batch_range=[10,20]") from None


@dataclass
class SDTrainingArguments(TrainingArguments):
    """How training runs, what it logs and what it keeps."""

    device: Optional[str] = flag(None, "cpu, gpu or gpu:N (default: a GPU if there is one).")
    image_logging_steps: int = flag(1000, "Draw images every so many steps, a multiple of logging_steps; -1: never.")
    use_ema: bool = flag(False, "Keep an exponential moving average of the UNet's weights.")
    ema_decay: float = flag(0.9999, "Largest decay of the moving average; warm-up: min(ema_decay, (1+n)/(10+n)).")
    ema_start_step: int = flag(0, "Optimizer step after which the average starts; until then it is a copy.")
    enable_xformers_memory_efficient_attention: Optional[bool] = flag(
        None, "Attention by the fastest fused kernel that works on the device (default on a GPU); False: by none."
    )
    recompute: Optional[bool] = flag(
        None, "Recompute activations in the backward pass: less memory, slower (default: if memory would not suffice)."
    )
    cudnn_exhaustive_search: bool = flag(False, "Let cuDNN try all its convolutions on each new shape (GPU).")
    only_save_updated_model: bool = flag(True, "Save what was trained; otherwise the whole pipeline.")
    unet_learning_rate: Optional[float] = flag(None, "Learning rate of the UNet; default: learning_rate.")
    text_encoder_learning_rate: Optional[float] = flag(None, "Same of the text encoder.")
    benchmark: bool = flag(False, "Print an `ips` line at every log, draw nothing, and save at the end alone.")
    profiler_options: Optional[str] = flag(None, "Options of Paddle's profiler, as `batch_range=[10,20];...`.")
    report_to: list[str] = field(
        default_factory=lambda: ["visualdl"],
        metadata={"help": "Where logs go: visualdl or none."},
    )
    validation_prompts: Optional[str] = flag(None, "Text file of prompts, one a line, drawn with each image log.")
    save_on_exit: bool = flag(True, "Save a checkpoint when Ctrl-C or SIGTERM ends the run.")
    save_in_background: bool = flag(
        False,
        "Copy a checkpoint to host memory and write it while training continues, if memory allows; not with sharding.",
    )
    hang_timeout: float = flag(
        600.0,
        "Seconds without a step, or 20 times the median step if that is longer, after which every rank writes its "
        "stacks to output_dir/hang-N and ends; 0 turns it off.",
    )
    max_bad_steps: int = flag(
        10, "Consecutive steps that may be skipped for a NaN or infinite loss or gradient; one more ends the run."
    )
    rollback_on_nonfinite: int = flag(
        0,
        "Intact checkpoints to go back where max_bad_steps or rollback_loss_factor would end the run, leaving out the "
        "samples in between for good (skipped.json); 0: end it.",
    )
    rollback_loss_factor: float = flag(
        10.0, "With rollback_on_nonfinite: a loss of so many times the median of the last 100 steps goes back too."
    )
    allow_fewer_ranks: bool = flag(
        False,
        "On a resume with another number of ranks choose gradient_accumulation_steps so that the global batch stays.",
    )
    allow_changed_resume: bool = flag(False, "Resume although flags that change the result differ.")

    def __post_init__(self):
        self._check_values()
        self._select_device()
        # Weights in half precision have float32 gradients, accumulated over micro-batches and ranks; under O1 they are
        # float32 by themselves.
        self.amp_master_grad = self.precision != "fp32" and self.fp16_opt_level == "O2"
        self.report_to = ["visualdl" if name == "custom_visualdl" else name for name in self.report_to]
        if self.benchmark:
            self.image_logging_steps, self.save_strategy = -1, "no"
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every trained weight takes part in every step
        if self.image_logging_steps > 0:
            rounded = math.ceil(self.image_logging_steps / self.logging_steps) * self.logging_steps
            if rounded != self.image_logging_steps:
                logger.info(
                    "image_logging_steps: %d -> %d, the next multiple of logging_steps %d",
                    self.image_logging_steps,
                    rounded,
                    self.logging_steps,
                )
                self.image_logging_steps = rounded

    def _check_values(self):
        check_ranges(self, "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps", low=1)
        check_ranges(self, "logging_steps save_steps eval_steps max_bad_steps", low=1)
        check_ranges(self, "warmup_steps dataloader_num_workers ema_start_step rollback_on_nonfinite", low=0)
        check_range("rollback_loss_factor", self.rollback_loss_factor, above=1)
        rates = "learning_rate unet_learning_rate text_encoder_learning_rate weight_decay lr_end num_cycles power"
        check_ranges(self, rates, low=0, below=math.inf)
        check_ranges(self, "adam_beta1 adam_beta2", low=0, below=1)
        check_ranges(self, "adam_epsilon num_train_epochs scale_loss", above=0, below=math.inf)
        check_range("max_grad_norm", self.max_grad_norm, below=math.inf)  # 0 and less is none
        check_range("warmup_ratio", self.warmup_ratio, low=0, high=1)
        check_range("hang_timeout", self.hang_timeout, low=0, high=_LONGEST_TIMEOUT)
        check_range("seed", self.seed, low=0, high=2**32 - 1)  # of NumPy's legacy generator, which paddlenlp seeds
        check_range("ema_decay", self.ema_decay, low=0, high=1)
        if self.image_logging_steps == 0 or self.image_logging_steps < -1:
            raise ArgumentError("image_logging_steps", self.image_logging_steps, "; expected -1 (never) or at least 1")
        check_choice("fp16_opt_level", self.fp16_opt_level, ("O1", "O2"))
        if getattr(self.optim, "value", self.optim) == "adafactor":
            raise ArgumentError("optim", "adafactor", " is not supported by this trainer; use adamw")
        if not self.output_dir:
            raise ArgumentError("output_dir", self.output_dir, "; expected a folder, `.` for this one")
        if self.logging_dir and Path(self.logging_dir).is_file():
            raise ArgumentError("logging_dir", self.logging_dir, " is a file; expected a folder")
        if self.profiler_options:
            _check_profiler_options(self.profiler_options)
        if isinstance(self.report_to, str):
            self.report_to = [self.report_to]
        for name in self.report_to or []:
            check_choice("report_to", name, REPORTERS)
        if self.fp16 and self.bf16:
            raise InputError("--fp16 True with --bf16 True; choose one")
        for name in ("logging_strategy", "save_strategy", "evaluation_strategy"):
            if getattr(value := getattr(self, name), "value", value) == "epoch":
                raise ArgumentError(name, "epoch", "; training here counts steps alone, use steps")
        for name, usual in _UNSUPPORTED.items():
            if getattr(self, name) not in (usual, None):
                raise ArgumentError(name, getattr(self, name), " is not supported by this trainer; leave it out")
        if "stage3" in str(self.sharding):
            raise ArgumentError("sharding", self.sharding, " is not supported by this trainer; use stage1 or stage2")

    def idle(self) -> list[str]:
        """Lines on flags without an effect: notes, since train.sh, recipes and a run.json give flags of their own."""
        schedule, drawn = self.lr_scheduler_type.value, self.image_logging_steps > 0 and "visualdl" in self.report_to
        rules = [
            (
                schedule != "constant",
                "warmup_steps warmup_ratio",
                "with --lr_scheduler_type constant; constant_with_warmup warms up",
            ),
            (not self.warmup_steps, "warmup_ratio", "with --warmup_steps"),
            (schedule == "cosine", "num_cycles", "without --lr_scheduler_type cosine"),
            (schedule == "polynomial", "lr_end power", "without --lr_scheduler_type polynomial"),
            (self.max_steps <= 0, "num_train_epochs", f"with --max_steps {self.max_steps}; -1 counts epochs"),
            (self.use_ema, "ema_decay ema_start_step", "without --use_ema True"),
            (self.rollback_on_nonfinite > 0, "rollback_loss_factor", "without --rollback_on_nonfinite"),
            (drawn, "validation_prompts", "without --image_logging_steps and --report_to visualdl, which draw"),
        ]
        return list(idle_flags(self, rules))

    @property
    def precision(self) -> str:
        """`fp16`, `bf16` or `fp32`."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"

    def _select_device(self):
        """Set Paddle's device, of which `device` keeps the kind, and refuse what it cannot do."""
        self.device = devices.select(self.device, self.precision).kind
        if self.device == "gpu" and self.cudnn_exhaustive_search:
            devices.search_convolutions()
        if self.device == "cpu":
            self.recompute = bool(self.recompute)
            stage = str(self.sharding)
            if "stage2" in stage or "stage3" in stage:
                raise InputError(
                    f"--sharding {self.sharding} on device 'cpu'; stages 2 and 3 need a GPU, use --sharding stage1"
                )
