"""StableDiffusionTrainer: paddlenlp's Trainer with a loop of its own, read from `_inner_training_loop` downwards."""

import contextlib
import json
import logging
import signal
import time

import numpy as np
import paddle
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients
from paddlenlp.trainer import Trainer
from paddlenlp.trainer.trainer_callback import DefaultFlowCallback, TrainerState
from paddlenlp.trainer.trainer_utils import TrainOutput, get_scheduler

from sd.cpu.layers import speed_up
from sd.data.streaming.dataset import raise_if_failed, worker_init_fn
from sd.errors import RunError, training_told_plainly
from sd.processes.signals import StopSignals
from sd.training import callbacks as sd_callbacks
from sd.training.ema import EMA
from sd.training.optimizer import FusedAdamW, innermost
from sd.training.saving import load_models, load_optimizer, save_checkpoint
from sd.training.step_record import StepRecords
from sd.training.validation import evaluate_loss

logger = logging.getLogger(__name__)


class StableDiffusionTrainer(Trainer):
    """Trains a StableDiffusionModel on the batches of a TextImagePair, see `train`.

    run_settings: what decides the result, kept in each checkpoint (sd.runs.settings.result_settings). previews: what
    is drawn for the log (sd.training.previews.Previews), or None.
    """

    def __init__(
        self,
        model,
        args,
        train_dataset=None,
        data_collator=None,
        eval_dataset=None,
        run_settings=None,
        previews=None,
    ):
        static, args.to_static = args.to_static, False  # the UNet alone gains by it, and takes plain tensors
        recompute, args.recompute = args.recompute, False
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
        args.to_static, args.recompute = static, recompute
        self.run_settings = run_settings or {}
        self.previews = previews
        self.samples_seen = 0
        self.ema = None
        self.stop_signal = None
        if args.device == "cpu":
            for name, part in model.named_children():
                if name != "unet" or not args.to_static:
                    speed_up(part)
        model.set_recompute(args.recompute)
        if args.enable_xformers_memory_efficient_attention:
            model.enable_efficient_attention()
        if args.to_static:
            model.unet = paddle.jit.to_static(model.unet)
        self._choose_learning_rates()
        self._choose_callbacks()

    def _choose_learning_rates(self):
        """Paddle scales one base rate by a factor of each weight. (Groups of weights would rule out sharding.)"""
        args, model = self.args, self.model
        rates = {"unet": args.unet_learning_rate, "text_encoder": args.text_encoder_learning_rate}
        self.learning_rates = {
            part: args.learning_rate if rates[part] is None else rates[part] for part in model.trained_parts
        }
        self.base_learning_rate = max(self.learning_rates.values())
        self.trained_parameters = []
        for part, rate in self.learning_rates.items():
            for parameter in getattr(model, part).parameters():
                parameter.optimize_attr["learning_rate"] = rate / (self.base_learning_rate or 1.0)
                self.trained_parameters.append(parameter)

    def _choose_callbacks(self):
        self.callback_handler.callbacks = [DefaultFlowCallback()]
        for callback in sd_callbacks.for_arguments(self.args, self):
            self.add_callback(callback)

    # What paddlenlp's `train` calls before the loop.

    def get_train_dataloader(self):
        """Batches of NumPy arrays from workers that run no Paddle operation."""
        return paddle.io.DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            worker_init_fn=worker_init_fn,
            use_shared_memory=False,  # a kill would leave its batches there, and a container may have 64 MB of it
        )

    def create_scheduler(self, num_training_steps):
        """The schedule of the base learning rate."""
        args = self.args
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler_type,
            learning_rate=self.base_learning_rate,
            num_warmup_steps=args.warmup_steps or int(args.warmup_ratio * num_training_steps),
            num_training_steps=num_training_steps,
            num_cycles=args.num_cycles,
            lr_end=args.lr_end,
            power=args.power,
        )
        return self.lr_scheduler

    @staticmethod
    def get_optimizer_cls_and_kwargs(args):
        """AdamW in few calls; paddlenlp's other optimizers as they are."""
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
        return (FusedAdamW if optimizer_class is paddle.optimizer.AdamW else optimizer_class), options

    def create_optimizer(self, lr_scheduler=None):
        """AdamW over the trained weights; biases and norms decay too, as in the reference."""
        args = self.args
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(args)
        if args.fp16_opt_level == "O2" and (args.fp16 or args.bf16):
            options["multi_precision"] = True
        clip = paddle.nn.ClipGradByGlobalNorm(args.max_grad_norm) if args.max_grad_norm > 0 else None
        self.optimizer = optimizer_class(
            learning_rate=self.lr_scheduler,
            parameters=self.trained_parameters,
            weight_decay=args.weight_decay,
            grad_clip=clip,
            **options,
        )
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint=None):
        if self.args.use_ema:
            self.ema = EMA(self.model.unet, self.args.ema_decay, self.args.ema_start_step)
        if resume_from_checkpoint:
            load_models(self, resume_from_checkpoint)

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
        batches = iter(train_dataloader)  # before the signals: workers are not to inherit their handlers
        with StopSignals() as signals, training_told_plainly():
            while self.state.global_step < max_steps:
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                self._take_step(model, batches, signals)
                self.control = self.callback_handler.on_step_end(args, self.state, self.control)
                stop = self._log_evaluate_save(max_steps)
                if stop or self.control.should_training_stop:
                    self.stop_signal = signals.received or (signal.SIGTERM if stop else None)
                    break
        return self._end()

    def _begin(self, max_steps, train_dataloader, checkpoint):
        self.model.train()
        self.state = TrainerState()
        if checkpoint:
            self.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        self.state.max_steps = int(max_steps)
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._first_step = self.state.global_step
        self._micro_samples = self.args.per_device_train_batch_size * self.args.dataset_world_size
        self.records = StepRecords(self.args, self.train_dataset)
        self.callback_handler.model = self.model
        self.callback_handler.optimizer = self.optimizer
        self.callback_handler.lr_scheduler = self.lr_scheduler
        self.callback_handler.train_dataloader = train_dataloader
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)

    def _take_step(self, model, batches, signals):
        """One optimizer step: accumulate gradients over micro-batches, agree over the ranks, move the weights."""
        accumulation = self.args.gradient_accumulation_steps
        self._seed_dropout()
        begin = time.perf_counter()
        total, waited, micro_batches = 0.0, 0.0, []
        for number in range(accumulation):
            asked = time.perf_counter()
            batch = self._next_batch(batches)
            waited += time.perf_counter() - asked
            last = number == accumulation - 1
            with self._no_sync(model, last):
                outputs = self.forward(model, batch)
                total = total + outputs["loss"].detach().astype("float32")
                if last:
                    agreed, cancel = self.begin_last_pass(total, signals.received is not None)
                self.backward(outputs["loss"])
            micro_batches.append((outputs["sample_loss"], outputs["timestep"], batch.get("place")))
        self._reduce_gradients(model)
        skipped = bool(cancel)
        if skipped:
            self.optimizer.clear_grad()
        else:
            self._move_weights()
        self.state.global_step += 1
        self.samples_seen += self._micro_samples * accumulation
        self.state.consumed_samples = self.samples_seen
        self.state.epoch = self.state.global_step / self.state.max_steps
        if self.ema and not skipped:
            masters = getattr(innermost(self.optimizer), "_master_weights", None)
            self.ema.update(self.state.global_step, masters)
        self.records.add(self.state.global_step, agreed, micro_batches, time.perf_counter() - begin, waited)

    def forward(self, model, batch):
        """The model's dict of one micro-batch; its loss is its share of the step's."""
        with self.autocast_smart_context_manager():
            outputs = model(**batch)
        outputs["loss"] = outputs["loss"] / self.args.gradient_accumulation_steps
        return outputs

    def begin_last_pass(self, total, stop=False):
        """Agree over the ranks before the last backward pass of a step.

        Returns the sums of `total`, this rank's loss, and `stop` as float32 [2], and bool [1]: the step is to be left
        out.
        """
        agreed = paddle.stack([total.reshape([]), paddle.full([], float(stop))])
        if self.args.world_size > 1:
            paddle.distributed.all_reduce(agreed)
        return agreed, paddle.logical_not(paddle.isfinite(agreed[0])).reshape([1])

    def backward(self, loss):
        """Add a micro-batch's share to the gradients."""
        (self.scaler.scale(loss) if self.do_grad_scaling else loss).backward()

    def _next_batch(self, batches):
        try:
            batch = next(batches)
        except StopIteration:
            raise RunError("the training data ended; a TextImagePair never does, this dataset did") from None
        raise_if_failed(batch)
        return {name: value if paddle.is_tensor(value) else paddle.to_tensor(value) for name, value in batch.items()}

    def _seed_dropout(self):
        """Layers like dropout draw by step and rank alone, so a resumed run needs no generator state."""
        key = [self.args.seed, self.state.global_step, self.args.process_index]
        paddle.seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _no_sync(self, model, last):
        """Gradients are exchanged once a step; with recompute after the backward pass, whose hooks would come twice."""
        if hasattr(model, "no_sync") and (self.args.recompute or not last):
            return model.no_sync()
        return contextlib.nullcontext()

    def _reduce_gradients(self, model):
        if hasattr(self.optimizer, "_hcg"):  # sharding stage 1
            if self.optimizer._sharding_enable:
                self.optimizer._inner_opt.reduce_gradients(self.trained_parameters, self.optimizer._hcg)
            if self.optimizer._dp_enable:
                fused_allreduce_gradients(self.trained_parameters, self.optimizer._hcg)
        elif self.args.recompute and hasattr(model, "no_sync"):
            fused_allreduce_gradients(list(model.parameters()), None)

    def _move_weights(self):
        if self.do_grad_scaling:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif hasattr(self.optimizer, "_hcg"):
            self.optimizer._step(self.trained_parameters)
        else:
            self.optimizer.step()
        self.lr_scheduler.step()
        # Freed, not filled with zeros, which would take memory and a pass over it; data parallel wants to keep them.
        self.optimizer.clear_grad(set_to_zero=self.args.world_size > 1)

    def _log_evaluate_save(self, max_steps):
        """Do what is due after a step. Returns whether a rank was asked to stop."""
        step, control = self.state.global_step, self.control
        last = step >= max_steps
        stop = self.records.settle(last or control.should_log or control.should_evaluate or control.should_save)
        if control.should_log or last:
            self.log(self.records.take_logs(self.current_learning_rates(), self.samples_seen, step, max_steps))
        if control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        if control.should_save or last or (stop and self.args.save_on_exit):
            self._save_checkpoint(self.model)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return stop

    def current_learning_rates(self):
        """Part -> learning rate of the next step."""
        scale = self.optimizer.get_lr() / (self.base_learning_rate or 1.0)
        return {part: rate * scale for part, rate in self.learning_rates.items()}

    def _end(self):
        logs = self.records.totals(self.state.global_step - self._first_step)
        self.is_in_train = False
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        return TrainOutput(self.state.global_step, logs["train_loss"], logs)

    # What happens beside the steps.

    def sampling_weights(self):
        """Context in which the UNet holds the weights to be judged: the moving average, if there is one."""
        return self.ema.swapped_in() if self.ema else contextlib.nullcontext()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Loss on held-out records with fixed draws, by timestep band, over all ranks."""
        with self.sampling_weights():
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
        logger.info("step %d: %s", self.state.global_step, json.dumps(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, metrics=None):
        save_checkpoint(self)

    def log(self, logs, **kwargs):
        """Hand a dict of scalars to the callbacks."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs, **kwargs)
