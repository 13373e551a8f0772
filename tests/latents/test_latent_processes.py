"""Training from a cache as processes: memory, two ranks, killed and resumed."""

import json
import time
from pathlib import Path

import pytest

from sd.runs import checkpoint as ck
from tests.latents.test_latent_training import CacheWorkshop
from tests.numeric import assert_same_training
from tests.training_harness import EMA, UNET, checksums, wait_until_gone, weights

pytestmark = pytest.mark.slow

TEXT_WIDTH, WIDTH = 512, 256  # many tensors of a few megabytes: the largest lies in memory twice for a moment
MIB = 2**20


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return CacheWorkshop(tmp_path_factory.mktemp("latent_processes"))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A workshop whose VAE and text encoder are large beside everything else. Gives it and their bytes."""
    from ppdiffusers import AutoencoderKL
    from ppdiffusers.transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "projection_dim": TEXT_WIDTH}
    depth = {"num_hidden_layers": 10, "num_attention_heads": 8, "max_position_embeddings": 77}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=1000, **sizes, **depth))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(WIDTH,) * 3,
        norm_num_groups=4,
        latent_channels=4,
    )
    num_bytes = {}

    def replace(models):
        unet = json.loads((models / "unet_config.json").read_text())
        (models / "unet_config.json").write_text(json.dumps(unet | {"cross_attention_dim": TEXT_WIDTH}))
        for name, layer in (("text_encoder", text), ("vae", vae)):
            layer.save_pretrained(str(models / name), safe_serialization=True)
            num_bytes[name] = 4 * sum(parameter.size for parameter in layer.parameters())

    return CacheWorkshop(tmp_path_factory.mktemp("heavy"), replace), num_bytes


def peak_memory(workshop, name, *flags):
    """Peak resident bytes of a process that trains two steps, as the kernel last told them."""
    run = workshop.start(name, "--max_steps", 2, "--save_strategy", "no", "--per_device_train_batch_size", 1, *flags)
    peak = 0
    while run.poll() is None:
        # Not getrusage: what that tells of a process begins with the size of its parent.
        for line in Path(f"/proc/{run.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = int(line.split()[1]) * 1024
        time.sleep(0.02)
    assert run.returncode == 0, workshop.log(name)[-2000:]
    return peak


@pytest.mark.ci
def test_cached_components_are_not_loaded(heavy):
    workshop, num_bytes = heavy
    assert num_bytes["vae"] > 60 * MIB and num_bytes["text_encoder"] > 120 * MIB
    images = peak_memory(workshop, "images")
    latents = peak_memory(workshop, "latents", "--file_list", workshop.caches[False])
    both = peak_memory(workshop, "both", "--file_list", workshop.caches[True])
    reported = f"{images / MIB:.0f}, {latents / MIB:.0f}, {both / MIB:.0f} MiB; parts {num_bytes}"
    assert images - latents > 0.9 * num_bytes["vae"], reported
    assert latents - both > 0.9 * num_bytes["text_encoder"], reported


FLAGS = ["--max_steps", 24, "--save_steps", 4, "--use_ema", "--logging_steps", 1, "--dataloader_num_workers", 1]


def test_killed_and_resumed_it_ends_as_undisturbed(workshop):
    whole = checksums(workshop.from_cache("undisturbed", *FLAGS) / "checkpoint-24")
    flags = [*FLAGS, "--file_list", workshop.caches[True]]
    for life in (1, 2):
        hold = workshop.hold(f"killed-{life}", step=6)  # the sixth of this life
        run = workshop.start("killed", *flags, hold=hold)
        hold.wait(run, lambda: workshop.log("killed"))
        run.kill()
        run.wait()
        wait_until_gone(workshop, "killed")
    assert workshop.start("killed", *flags).wait(120) == 0
    assert checksums(workshop.folder / "killed/checkpoint-24") == whole


def test_two_ranks_train_from_a_cache_with_validation_previews_and_a_whole_pipeline(workshop):
    """Rank 0 alone loads the VAE and the text encoder, for pictures and for the pipeline, and the ranks stay alike."""
    flags = ["--data_lanes", 1, "--max_steps", 20, "--logging_steps", 5, "--learning_rate", 1e-4, "--use_ema"]
    flags += ["--file_list", workshop.caches[True], "--eval_file_list", workshop.caches[True], "--eval_steps", 10]
    flags += ["--prediction_type", "v_prediction"]
    shown = ["--report_to", "visualdl", "--image_logging_steps", 10, "--num_inference_steps", 1]
    shown += ["--only_save_updated_model", False, "--per_device_train_batch_size", 2]
    run = workshop.start("two_ranks", *flags, *shown, ranks=2)
    assert run.wait(240) == 0, workshop.log("two_ranks")[-3000:]
    wait_until_gone(workshop, "two_ranks")
    one = workshop.train("one_process", *flags) / "checkpoint-20"
    start = workshop.train("start", *flags, "--learning_rate", 0, "--max_steps", 1) / "checkpoint-1"
    two = workshop.folder / "two_ranks/checkpoint-20"
    for name in (UNET, EMA):
        assert_same_training(weights(two, name), weights(one, name), weights(start, name), name=name)
    assert (two / "vae/diffusion_paddle_model.safetensors").is_file() and ck.find_problem(two) is None
    logs = [(workshop.folder / f"two_ranks.ranks/workerlog.{rank}").read_text() for rank in (0, 1)]
    assert "loading the vae" in logs[0] and "loading the text encoder" in logs[0]
    assert "loading the" not in logs[1]
    assert "over 33 records" in logs[0]
