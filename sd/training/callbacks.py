"""Callbacks that show a run: log line, progress bar, VisualDL, benchmark figures. Training depends on none of them."""

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from paddlenlp.trainer import TrainerCallback
from paddlenlp.trainer.integrations import get_reporting_integration_callbacks
from tqdm.auto import tqdm

from sd.diffusion.schedule import TIMESTEP_BANDS
from sd.errors import first_line
from sd.training.report import append_history, draw_report

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments

logger = logging.getLogger(__name__)

_SCALARS = (
    "loss",
    "gradient_norm",
    "learning_rate",
    "learning_rate_text_encoder",
    "samples_per_second",
    "seconds_per_step",
    "data_wait_percent",
    "memory_gb",
)


def make_callbacks(args: "SDTrainingArguments", trainer: Any) -> list[Any]:
    """The callbacks that the flags select; only rank 0 logs."""
    callbacks = []
    if args.process_index == 0:
        callbacks.append(LogLine())
        if not args.disable_tqdm:
            callbacks.append(ProgressBar())
        if args.benchmark:
            callbacks.append(Benchmark())
        if "visualdl" in args.report_to:
            callbacks.append(VisualDL(trainer))
        if args.report_to and not args.benchmark:
            callbacks.append(Report(trainer))
        others = [name for name in args.report_to if name != "visualdl"]
        callbacks += _handlers(others)
    if args.profiler_options:
        callbacks.append(Profile())
    return callbacks


def _handlers(names):
    """paddlenlp's log handlers by name; of one whose package is not installed a warning says so."""
    for name in names:
        try:
            yield from (make() for make in get_reporting_integration_callbacks([name]))
        except (RuntimeError, ImportError) as error:
            logger.warning("--report_to %s: %s; the run continues without it", name, first_line(error).rstrip("."))


class LogLine(TrainerCallback):
    """One line every logging_steps."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log the means of the steps since the last line."""
        rates = [f"lr {logs['learning_rate']:.3g}"]
        if "learning_rate_text_encoder" in logs:
            rates.append(f"text lr {logs['learning_rate_text_encoder']:.3g}")
        logger.info(
            "step %d/%d | loss %.5f | %s | %.4g images/s | waiting for data %.1f%% | memory %.2f GB | left %s",
            logs["global_step"],
            state.max_steps,
            logs["loss"],
            " | ".join(rates),
            logs["samples_per_second"],
            logs["data_wait_percent"],
            logs["memory_gb"],
            tqdm.format_interval(logs["seconds_left"]),
        )


class ProgressBar(TrainerCallback):
    """A bar over all steps of the run, also those before a resume."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open it where the run stands."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move it."""
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave it as it stands."""
        self.bar.close()


class Benchmark(TrainerCallback):
    """The reference's line of speed figures."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print them."""
        step_seconds = logs["seconds_per_step"]
        logger.info(
            "global step %d / %d, loss: %f, avg_reader_cost: %.5f sec, avg_batch_cost: %.5f sec, avg_samples: %.5f, "
            "ips: %.5f sample/sec",
            logs["global_step"],
            state.max_steps,
            logs["loss"],
            logs["data_wait_seconds_per_step"],
            step_seconds,
            logs["samples_per_second"] * step_seconds,
            logs["samples_per_second"],
        )


class Report(TrainerCallback):
    """history.jsonl during the run, and report.png at its end."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Note the scalars of a log."""
        append_history(args.output_dir, logs)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Note a validation."""
        append_history(args.output_dir, {"global_step": state.global_step, **metrics})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the page at the end of the run. An exception there is logged and costs the page alone."""
        if state.global_step < state.max_steps:
            return
        previews = self.trainer.previews
        try:
            logger.info("report: %s", draw_report(args.output_dir, previews.latest if previews else None))
        except Exception as error:
            logger.warning("report.png was not drawn: %s", first_line(error))


class Profile(TrainerCallback):
    """Paddle's profiler over the steps that --profiler_options names."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the profiler; after the last the run ends, with a checkpoint, unless exit_on_finished=False."""
        from paddlenlp.utils.profiler import add_profiler_step

        try:
            add_profiler_step(args.profiler_options)
        except SystemExit:
            logger.info("step %d: profiled; the run ends here (exit_on_finished=True)", state.global_step)
            control.should_save = control.should_training_stop = True


def earlier_log(output_dir: str) -> Path | None:
    """The newest VisualDL file below an output folder: a resumed run appends to it, so that it is one curve."""
    logs = sorted(Path(output_dir).glob("runs/*/vdlrecords.*.log"), key=lambda path: path.stat().st_mtime_ns)
    return logs[-1] if logs else None


class VisualDL(TrainerCallback):
    """Scalars, loss by timestep, and images, written to logging_dir."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the log and keep the run's settings in it."""
        from visualdl import LogWriter

        earlier = earlier_log(args.output_dir) if state.global_step else None
        with contextlib.redirect_stdout(io.StringIO()):  # it says in words of its own that it appends
            if earlier:
                self.writer = LogWriter(logdir=str(earlier.parent), file_name=earlier.name)
            else:
                self.writer = LogWriter(logdir=args.logging_dir)
        self.writer.add_text("settings", json.dumps(self.trainer.run_settings, indent=2), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write scalars, and every image_logging_steps the histograms and images."""
        step = logs["global_step"]
        for name in _SCALARS:
            if name in logs:
                self.writer.add_scalar(f"train/{name}", logs[name], step)
        if args.image_logging_steps > 0 and step % args.image_logging_steps == 0:
            self._write_histograms(step)
            self._write_images(args, step)
        self.writer.flush()

    def _write_histograms(self, step):
        timesteps, losses = self.trainer.records.pop_timestep_losses()
        for first, last in TIMESTEP_BANDS:
            chosen = losses[(timesteps >= first) & (timesteps <= last) & np.isfinite(losses)]
            if chosen.size:
                name = f"train_loss_by_timestep/{first:04d}-{last:04d}"
                self.writer.add_histogram(name, chosen, step, buckets=20)
                self.writer.add_scalar(f"{name}/mean", float(chosen.mean()), step)

    def _write_images(self, args, step):
        previews = self.trainer.previews
        if previews is None:
            return
        with self.trainer.sampling_weights():
            for name, sheet in previews.draw(self.trainer.model):
                self.writer.add_image(name, np.asarray(sheet), step)
        self.trainer.model.train()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Write the validation loss; VisualDL sorts the groups, and train/loss is to be the first."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the log."""
        self.writer.close()
