"""StableDiffusionTrainer: paddlenlp's Trainer with a loop of its own, read from `_inner_training_loop` downwards."""

import contextlib
import logging
import signal
from typing import Any

import paddle
from paddlenlp.trainer import Trainer
from paddlenlp.trainer.trainer_callback import DefaultFlowCallback, TrainerState
from paddlenlp.trainer.trainer_utils import TrainOutput

from sd.cpu.layers import speed_up
from sd.data.streaming.buckets import BucketTable
from sd.errors import explain_paddle_errors
from sd.flags.aspect import parse_sizes
from sd.models.attention import use_fastest_attention
from sd.processes.hang_watch import HangWatch
from sd.processes.progress import report_step
from sd.processes.signals import StopSignals
from sd.training import callbacks as sd_callbacks
from sd.training.background import BackgroundSaver
from sd.training.ema import EMA
from sd.training.memory import choose_recompute
from sd.training.optimizer import FusedAdamW
from sd.training.rollback import step_back
from sd.training.saving import finish_saving, load_models, load_optimizer, load_recent_losses, save_checkpoint
from sd.training.setup import (
    end_workers,
    learning_rates,
    make_dataloader,
    make_optimizer,
    make_scheduler,
    set_learning_rates,
)
from sd.training.step import StepRunner
from sd.training.step_record import BadStepsError, StepRecords
from sd.training.validation import describe_metrics, evaluate_loss

logger = logging.getLogger(__name__)
_SLOW_BESIDE_STEPS = 10  # how much longer than a step saving, drawing or validation may take before it counts as a hang


class StableDiffusionTrainer(Trainer):
    """Trains a StableDiffusionModel on the batches of a TextImagePair, see `train`.

    run_settings: what decides the result, kept in each checkpoint (sd.runs.settings.result_settings). previews: what
    is drawn for the log (sd.training.previews.Previews), or None. skipped: the samples that the order leaves out
    (sd.runs.skipped.SkippedSamples).
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: Any = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        run_settings: Any = None,
        previews: Any = None,
        skipped: Any = (),
    ):
        static, args.to_static = args.to_static, False  # the UNet alone gains by it, and takes plain tensors
        recompute, args.recompute = args.recompute, False
        report_to, args.report_to = args.report_to, []  # `_choose_callbacks` makes the handlers
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        args.to_static, args.recompute, args.report_to = static, recompute, report_to
        self.run_settings = run_settings or {}
        self.previews = previews
        self.skipped = list(skipped)
        self.samples_seen = 0
        self.ema: EMA | None = None
        self.stop_signal: int | None = None
        self.saved_step = 0
        self.saver = BackgroundSaver()
        if args.device == "cpu":
            for name, component in model.named_children():
                if name != "unet" or not args.to_static:
                    speed_up(component)
        model.set_recompute(bool(args.recompute))
        self._choose_attention()
        if args.to_static:
            model.unet = paddle.jit.to_static(model.unet)
        self.learning_rates = learning_rates(args, model.trained_components)
        self.base_learning_rate = max(self.learning_rates.values())
        self.trained_parameters = set_learning_rates(model, self.learning_rates)
        self._choose_callbacks()

    def _choose_attention(self):
        """On a GPU by the fastest kernels that work there, tried now; a CPU has the plain operators alone."""
        args, model = self.args, self.model
        if args.device == "cpu":
            return
        plain = "plain" if args.enable_xformers_memory_efficient_attention is False else None
        dtypes = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
        chosen = use_fastest_attention(model.unet, [dtypes[args.precision]], plain)
        if "vae" not in model.deferred:
            use_fastest_attention(model.vae, ["float32"], plain)
        logger.info("attention: %s", ", ".join(f"{kernel} for {dtype}" for dtype, kernel in chosen.items()))

    def _choose_callbacks(self):
        self.callback_handler.callbacks = [DefaultFlowCallback()]
        for callback in sd_callbacks.make_callbacks(self.args, self):
            self.add_callback(callback)

    # What paddlenlp's `train` calls before the loop.

    def get_train_dataloader(self) -> Any:
        """Batches of NumPy arrays from workers that run no Paddle operation."""
        return make_dataloader(self.train_dataset, self.data_collator, self.args)

    def create_scheduler(self, num_training_steps: int) -> Any:
        """The schedule of the base learning rate."""
        self.lr_scheduler = make_scheduler(self.args, self.base_learning_rate, num_training_steps)
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any) -> tuple[Any, dict[str, Any]]:
        """AdamW in few calls; paddlenlp's other optimizers as they are."""
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
        return (FusedAdamW if optimizer_class is paddle.optimizer.AdamW else optimizer_class), options

    def create_optimizer(self, lr_scheduler: Any = None) -> Any:
        """The optimizer of the trained weights; biases and norms decay too, as in the reference."""
        self.optimizer = make_optimizer(
            *self.get_optimizer_cls_and_kwargs(self.args), self.args, self.lr_scheduler, self.trained_parameters
        )
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint=None):
        if self.args.use_ema:
            self.ema = EMA(self.model.unet, self.args.ema_decay, self.args.ema_start_step)
        if resume_from_checkpoint:
            load_models(self, resume_from_checkpoint)

    def _wrap_model(self, model, training=True):
        """As paddlenlp's; before it, memory decides whether activations are recomputed if the user left that open."""
        if self.args.recompute is None:
            size = self._largest_size()
            self.args.recompute = size is not None and choose_recompute(self, size)
            self.model.set_recompute(self.args.recompute)
        return super()._wrap_model(model, training)

    def _largest_size(self):
        """(width, height) of the largest training pictures; None where the settings do not say."""
        if buckets := self.run_settings.get("aspect_buckets"):
            return BucketTable(parse_sizes(buckets)).largest
        resolution = self.run_settings.get("resolution")
        return (resolution, resolution) if resolution else None

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint:
            load_optimizer(self, checkpoint)

    # The loop.

    def _inner_training_loop(
        self,
        args,
        model,
        train_dataloader,
        len_dataloader,
        max_steps,
        num_train_epochs,
        num_update_steps_per_epoch,
        num_train_samples,
        resume_from_checkpoint,
        ignore_keys_for_eval,
    ):
        self._begin(max_steps, train_dataloader, resume_from_checkpoint)
        runner = StepRunner(self, model)
        while True:
            batches = iter(train_dataloader)  # before the signals: workers are not to inherit their handlers
            try:
                self._run_steps(runner, batches, max_steps)
                return self._end()
            except BadStepsError as error:
                if not args.rollback_on_nonfinite:
                    raise
                step_back(self, error)

    def _run_steps(self, runner, batches, max_steps):
        args = self.args
        self.hang_watch = HangWatch(args.output_dir, args.process_index, args.hang_timeout, self.state.global_step)
        with end_workers(batches), StopSignals() as signals, self.hang_watch, explain_paddle_errors():
            while self.state.global_step < max_steps:
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                outcome = runner.run(batches, lambda: signals.received is not None)
                if outcome is not None:
                    self._count(outcome)
                    self.control = self.callback_handler.on_step_end(args, self.state, self.control)
                stop = outcome is None or outcome.stop
                with self.hang_watch.allowing(_SLOW_BESIDE_STEPS):
                    self._log_evaluate_save(max_steps, stop)
                if stop or self.control.should_training_stop:
                    self.stop_signal = signals.received or (signal.SIGTERM if stop else None)
                    break
            with self.hang_watch.allowing(_SLOW_BESIDE_STEPS):
                finish_saving(self)

    def _begin(self, max_steps, train_dataloader, checkpoint):
        self.model.train()
        self.load_state(checkpoint, max_steps)
        self._first_step, self.steps_undone = self.state.global_step, 0
        self.records = StepRecords(self.args, self.train_dataset, load_recent_losses(checkpoint))
        self.callback_handler.model = self.model
        self.callback_handler.optimizer = self.optimizer
        self.callback_handler.lr_scheduler = self.lr_scheduler
        self.callback_handler.train_dataloader = train_dataloader
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def load_state(self, checkpoint: Any, max_steps: Any) -> Any:
        """Load the trainer state of a checkpoint; None for the beginning."""
        self.state = TrainerState()
        if checkpoint:
            self.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        self.state.max_steps = int(max_steps)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self.saved_step = self.state.global_step

    def _count(self, outcome):
        """Count a step and its samples, applied or not."""
        args = self.args
        self.state.global_step += 1
        micro_batch = args.per_device_train_batch_size * args.dataset_world_size
        self.samples_seen += micro_batch * args.gradient_accumulation_steps
        self.state.consumed_samples = self.samples_seen
        self.state.epoch = self.state.global_step / self.state.max_steps
        self.records.add(self.state.global_step, outcome)
        self.hang_watch.beat(self.state.global_step)
        if args.process_index == 0:
            report_step(self.state.global_step)

    def forward(self, model: Any, batch: Any) -> Any:
        """The model's dict of one micro-batch; its loss is its share of the step's."""
        with self.autocast_smart_context_manager():
            outputs = model(**batch)
        outputs["loss"] = outputs["loss"] / self.args.gradient_accumulation_steps
        return outputs

    def backward(self, loss: Any) -> None:
        """Add a micro-batch's share to the gradients."""
        (self.scaler.scale(loss) if self.do_grad_scaling else loss).backward()

    def _log_evaluate_save(self, max_steps, stop):
        """Do what is due after a step. stop: a rank has received a stop signal."""
        step, control = self.state.global_step, self.control
        last = step >= max_steps
        if control.should_log or last:
            self.log(self.records.pop_logs(self.current_learning_rates(), self.samples_seen, step, max_steps))
        if control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        due = control.should_save or last or (stop and self.args.save_on_exit)
        if due and step > self.saved_step and self._save_checkpoint(self.model):
            self.saved_step = step
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def current_learning_rates(self) -> Any:
        """Part -> learning rate of the next step."""
        scale = self.optimizer.get_lr() / (self.base_learning_rate or 1.0)
        return {component: rate * scale for component, rate in self.learning_rates.items()}

    def _end(self):
        logs = self.records.totals(self.state.global_step - self._first_step + self.steps_undone)
        self.is_in_train = False
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, logs["train_loss"], logs)

    # What happens beside the steps.

    def sampling_weights(self) -> Any:
        """Context in which the UNet holds the weights to be judged: the moving average, if there is one."""
        return self.ema.swapped_in() if self.ema else contextlib.nullcontext()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Loss on held-out records with fixed draws, by timestep band, over all ranks."""
        with self.sampling_weights(), self.autocast_smart_context_manager():
            metrics = evaluate_loss(
                self.model,
                self.eval_dataset if eval_dataset is None else eval_dataset,
                self.data_collator,
                self.args.per_device_eval_batch_size,
                metric_key_prefix,
                self.args.dataset_rank,
                self.args.dataset_world_size,
            )
        self.model.train()
        logger.info("step %d: %s", self.state.global_step, describe_metrics(metrics, metric_key_prefix))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, metrics=None):
        return save_checkpoint(self)

    def log(self, logs: Any, **kwargs: Any) -> None:
        """Hand a dict of scalars to the callbacks."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs, **kwargs)
