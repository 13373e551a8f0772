"""Saving and loading checkpoints: the trainer's objects to files and back."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import paddle

from sd.diffusion.schedule import sampler_config
from sd.errors import InputError, RunError
from sd.models.weight_file import read_safetensors
from sd.processes.ranks import gather_failures, on_rank_0
from sd.runs.checkpoint import (
    CheckpointWriter,
    DiskFullError,
    is_disk_full,
    keep_newest,
    read_json,
)
from sd.runs.skipped import SKIPPED
from sd.training.background import CopiedCheckpoint, fits_in_host_memory
from sd.training.optimizer import innermost, local_parameters, named_state, needs_master, paddle_state

logger = logging.getLogger(__name__)

UNET_WEIGHTS = "unet/diffusion_paddle_model.safetensors"
EMA_WEIGHTS = "unet/diffusion_paddle_model.ema.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"
RECENT_LOSSES = "recent_losses.json"


def save_checkpoint(trainer: Any) -> bool:
    """Save checkpoint-N, by all ranks together. Returns whether it was saved.

    A full disk is logged, and training continues; older checkpoints stay, the partial one is removed. Any other
    failure of a rank ends all of them.
    """
    args = trainer.args
    finish_saving(trainer)
    writer = CheckpointWriter(args.output_dir, trainer.state.global_step)
    if _saves_in_background(trainer):
        copied = CopiedCheckpoint(writer)
        if not _on_all_ranks(args, writer, lambda: _write(trainer, copied)):
            return False
        if args.should_save:
            trainer.saver.start(lambda: copied.write(then=lambda: _commit(args, writer)), writer)
        return True
    if not _on_all_ranks(args, writer, lambda: _write(trainer, writer)):
        return False
    return _on_all_ranks(args, writer, lambda: _commit(args, writer))


def finish_saving(trainer: Any) -> None:
    """Wait until the checkpoint that is being written in the background is there. All ranks call it together; what went
    wrong there is treated as in `save_checkpoint`."""
    args = trainer.args
    if args.save_in_background and not args.sharding:
        _on_all_ranks(args, trainer.saver.writer, trainer.saver.wait)


def _saves_in_background(trainer):
    """Whether this checkpoint is written beside the steps: not the last one, nor where memory lacks on rank 0."""
    args = trainer.args
    if not args.save_in_background or args.sharding or trainer.state.global_step >= trainer.state.max_steps:
        return False
    fits = on_rank_0(args, lambda: fits_in_host_memory(_copy_bytes(trainer)))
    if not fits and args.process_index == 0:
        logger.warning("--save_in_background: memory does not take a copy; training waits for this checkpoint")
    return fits


def _copy_bytes(trainer):
    """About the bytes of a checkpoint: float32 weights, two moments of each, the average."""
    trained = sum(parameter.size for parameter in trainer.trained_parameters)
    averaged = sum(average.size for average in trainer.ema.average.values()) if trainer.ema else 0
    return 4 * (3 * trained + averaged)


def _write(trainer, writer):
    sharded = bool(trainer.args.sharding)
    if trainer.args.should_save:
        _write_models(trainer, writer)
        _write_states(trainer, writer)
    if trainer.args.should_save or sharded:
        _write_optimizer(trainer, writer, sharded)


def _commit(args, writer):
    if not args.should_save:
        return
    for name in _shard_names(args) if args.sharding else []:
        writer.add(name) if name not in writer.files else None
    logger.info("saved %s", writer.commit())
    keep_newest(args.output_dir, args.save_total_limit)


def _on_all_ranks(args, writer, function):
    """Call `function` on this rank, and wait for the others. Returns False if a disk was full on any of them."""
    failure = None
    try:
        function()
    except Exception as error:  # whatever it is, the others wait for this rank
        plain_full = writer is not None and is_disk_full(error) and not isinstance(error, DiskFullError)
        failure = writer.full() if plain_full else error
    failures = gather_failures(args, failure)
    if not failures:
        return True
    if args.should_save and writer is not None:
        writer.discard()
    for rank, failed in failures:
        if isinstance(failed, Exception) and not is_disk_full(failed):
            raise failed
        if isinstance(failed, str) and not failed.startswith(DiskFullError.__name__):
            raise RunError(f"rank {rank}: {failed}")
    if isinstance(failure, OSError):
        logger.error("%s; earlier checkpoints are kept, training continues", failure.strerror)
    return False


def _write_models(trainer, writer):
    model, masters = trainer.model, getattr(innermost(trainer.optimizer), "_master_weights", {})
    writer.folder.mkdir(parents=True, exist_ok=True)
    model.unet.save_config(str(writer.folder / "unet"))
    writer.add("unet/config.json")
    writer.write_tensors(UNET_WEIGHTS, _float32_weights(model.unet, masters))
    if trainer.ema:
        writer.write_tensors(EMA_WEIGHTS, trainer.ema.average)
        writer.write_json("ema_state.json", {"updates": trainer.ema.updates})
    if "text_encoder" in model.trained_components or not trainer.args.only_save_updated_model:
        model.text_encoder.config.save_pretrained(str(writer.folder / "text_encoder"))
        writer.add("text_encoder/config.json")
        # paddlenlp reads no safetensors of format "pd", ppdiffusers writes its own so.
        writer.write_tensors(TEXT_WEIGHTS, _float32_weights(model.text_encoder, masters), {"format": "np"})
    if not trainer.args.only_save_updated_model:
        _write_other_components(model, writer)


def _write_other_components(model, writer):
    """What makes the checkpoint a whole pipeline beside the trained parts."""
    import ppdiffusers

    args = model.model_args
    scheduler = ppdiffusers.DDIMScheduler(**sampler_config(args.prediction_type, args.rescale_betas_zero_snr))
    model.vae.save_config(str(writer.folder / "vae"))
    writer.write_tensors("vae/diffusion_paddle_model.safetensors", _float32_weights(model.vae, {}))
    model.tokenizer.save_pretrained(str(writer.folder / "tokenizer"))
    scheduler.save_config(str(writer.folder / "scheduler"))
    for component in ("vae", "tokenizer", "scheduler"):
        for path in (writer.folder / component).iterdir():
            name = f"{component}/{path.name}"
            if name not in writer.files:
                writer.add(name)
    writer.write_json(
        "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_ppdiffusers_version": ppdiffusers.__version__,
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["ppdiffusers", "DDIMScheduler"],
            "text_encoder": ["ppdiffusers.transformers", "CLIPTextModel"],
            "tokenizer": ["ppdiffusers.transformers", "CLIPTokenizer"],
            "unet": ["ppdiffusers", "UNet2DConditionModel"],
            "vae": ["ppdiffusers", "AutoencoderKL"],
        },
    )


def _float32_weights(layer, masters):
    """Weights for a file: of half-precision training the float32 masters, and everything else as it is."""
    weights = {}
    for name, tensor in layer.state_dict().items():
        tensor = masters.get(tensor.name, tensor)
        weights[name] = tensor.astype("float32") if tensor.dtype in (paddle.float16, paddle.bfloat16) else tensor
    return weights


def _write_states(trainer, writer):
    state = dataclasses.asdict(trainer.state)
    writer.write_json("trainer_state.json", {**state, "log_history": []})
    writer.write_json("scheduler.json", trainer.lr_scheduler.state_dict())
    if trainer.do_grad_scaling:
        scaler = trainer.scaler.state_dict()
        writer.write_json("scaler.json", {key: _number(value) for key, value in scaler.items()})
    writer.write_json("data_state.json", trainer.train_dataset.state(trainer.samples_seen))
    writer.write_json("settings.json", trainer.run_settings)
    if trainer.skipped:
        writer.write_json(SKIPPED, [entry.plain() for entry in trainer.skipped])
    if trainer.args.rollback_on_nonfinite:
        writer.write_json(RECENT_LOSSES, list(trainer.records.recent))


def _number(value):
    return value.item() if hasattr(value, "item") else value


def _shard_names(args):
    return [f"optimizer-{rank + 1:05d}-of-{args.world_size:05d}.safetensors" for rank in range(args.world_size)]


def _write_optimizer(trainer, writer, sharded):
    name = _shard_names(trainer.args)[trainer.args.process_index] if sharded else "optimizer.safetensors"
    writer.write_tensors(name, named_state(trainer.optimizer, _weight_names(trainer.model)))


def _weight_names(model):
    """Paddle's name of each trained weight -> its name in the model."""
    return {parameter.name: name for name, parameter in model.named_parameters() if not parameter.stop_gradient}


def load_recent_losses(checkpoint: str | Path | None) -> list[float]:
    """Losses of the last steps before a checkpoint, none where it does not say."""
    if checkpoint is None or not (Path(checkpoint) / RECENT_LOSSES).exists():
        return []
    return read_json(checkpoint, RECENT_LOSSES)


def load_models(trainer: Any, checkpoint: str | Path) -> None:
    """Restore the trained weights and the moving average."""
    model = trainer.model
    _load_layer(model.unet, f"{checkpoint}/{UNET_WEIGHTS}")
    if "text_encoder" in model.trained_components:
        _load_layer(model.text_encoder, f"{checkpoint}/{TEXT_WEIGHTS}")
    if trainer.ema:
        try:
            updates = read_json(checkpoint, "ema_state.json")["updates"]
        except FileNotFoundError:
            logger.warning("%s holds no moving average; it starts from the weights", checkpoint)
            trainer.ema = type(trainer.ema)(model.unet, trainer.args.ema_decay, trainer.args.ema_start_step)
        else:
            trainer.ema.load(read_safetensors(f"{checkpoint}/{EMA_WEIGHTS}"), updates)


def _load_layer(layer, path):
    weights = layer.state_dict()
    loaded = set()
    for name, array in read_safetensors(path):
        if name not in weights or list(weights[name].shape) != list(array.shape):
            raise InputError(
                f"{path}: {name} {list(array.shape)} does not fit the model; was it made with another one?"
            )
        target = weights[name]
        target.set_value(paddle.to_tensor(array).astype(target.dtype))
        loaded.add(name)
    if missing := sorted(weights.keys() - loaded):
        raise InputError(f"{path}: {missing[0]} is missing; was it made with another model?")


def load_optimizer(trainer: Any, checkpoint: str | Path) -> None:
    """Restore optimizer, schedule, loss scale and the position in the data, for any former number of ranks."""
    names = _weight_names(trainer.model)
    local_names = {names[parameter.name] for parameter in local_parameters(trainer.optimizer)}
    state = {}
    for path in sorted(Path(checkpoint).glob("optimizer*.safetensors")):
        for key, array in read_safetensors(str(path)):
            if key.rpartition("/")[0] in local_names:
                state[key] = paddle.to_tensor(array)
    _change_precision(trainer, checkpoint, names, state)
    restored = paddle_state(trainer.optimizer, names, state)
    if restored:
        innermost(trainer.optimizer).set_state_dict(restored)
    trainer.lr_scheduler.set_state_dict(read_json(checkpoint, "scheduler.json"))
    if trainer.do_grad_scaling and (Path(checkpoint) / "scaler.json").exists():
        scaler = read_json(checkpoint, "scaler.json")
        scaler["scale"] = paddle.to_tensor(scaler["scale"], dtype="float32").reshape([1]).numpy()
        trainer.scaler.load_state_dict(scaler)
    trainer.samples_seen = read_json(checkpoint, "data_state.json")["samples_seen"]


def _change_precision(trainer, checkpoint, names, state):
    """On a resume in another precision: masters become the float32 weights, or are made from the kept ones.

    names: Paddle's parameter name -> weight. state: {"<weight>/<kind>": tensor}, into which missing masters go.
    """
    missing = set()
    for parameter in local_parameters(trainer.optimizer):
        weight = names[parameter.name]
        if needs_master(trainer.optimizer, parameter):
            if f"{weight}/moment1" in state and f"{weight}/master" not in state:
                missing.add(weight)
        elif (master := state.get(f"{weight}/master")) is not None:
            parameter.set_value(master)
    for component, path in (("unet", UNET_WEIGHTS), ("text_encoder", TEXT_WEIGHTS)):
        if any(weight.startswith(f"{component}.") for weight in missing):
            for name, array in read_safetensors(f"{checkpoint}/{path}"):
                if f"{component}.{name}" in missing:
                    state[f"{component}.{name}/master"] = paddle.to_tensor(array)
