"""What a resume refuses, what it goes on with, and what it passes over."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sd.errors import InputError
from sd.runs import checkpoint as ck
from sd.training.setup import keep_global_batch
from tests.data_maker import make_data
from tests.tiny import make_tiny_repository, make_tokenizer_files
from tests.training_harness import EMA, UNET, checksums, weights


@pytest.fixture(scope="module")
def others(workshop):
    """Models of the same shapes and other weights, and a tokenizer of another vocabulary."""
    folder = make_tiny_repository(workshop.folder / "others", seed=99)
    make_tokenizer_files(folder / "tokenizer")
    vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text(encoding="utf-8"))
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def two_steps(workshop):
    """A run of two steps, with a moving average, which later starts change a copy of."""
    return workshop.train("two_steps", "--max_steps", 2, "--use_ema")


@pytest.fixture
def run(two_steps, tmp_path):
    import shutil

    return shutil.copytree(two_steps, tmp_path / "run")


CHANGES = {
    "vae": r"vae: 'sha256 \w{16}' -> 'sha256 \w{16}'",
    "text_encoder": r"text_encoder: 'sha256 \w{16}' -> 'sha256 \w{16}'",
    "tokenizer": r"tokenizer: 'sha256 \w{16}' -> 'sha256 \w{16}'",
    "use_ema": "use_ema: True -> False",
    "batch": "global_batch_size: 4 -> 8",
    "accumulation": "global_batch_size: 4 -> 12",
    "caption_shares": r"caption_shares: None -> 'caption=1\.0'",
    "data_filter": r"data: the parts of .* \(fingerprint .*\), data_filter: None -> 'width == 40 and height < 100'",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_result_is_refused_with_the_difference(workshop, run, others, name):
    flags = {
        "vae": ["--vae_name_or_path", others / "vae"],
        "text_encoder": ["--text_encoder_name_or_path", others / "text_encoder"],
        "tokenizer": ["--tokenizer_name", others / "tokenizer"],
        "use_ema": ["--use_ema", False],
        "batch": ["--per_device_train_batch_size", 8],
        "accumulation": ["--gradient_accumulation_steps", 3],
        "caption_shares": ["--caption_shares", "caption=3"],
        "data_filter": ["--data_filter", "width==40 AND (height<100)"],
    }[name]
    before = checksums(run / "checkpoint-2")
    with pytest.raises(InputError, match=rf"other settings \({CHANGES[name]}\); .*--allow_changed_resume"):
        workshop.train(run, "--use_ema", *flags, "--max_steps", 4)
    assert checksums(run / "checkpoint-2") == before and len(ck.list_checkpoints(run)) == 1


def test_changed_data_is_named_by_its_lists(workshop, run, tmp_path):
    other = make_data(tmp_path / "other", [12, 9])
    lists = rf"data: {workshop.file_list} -> {other} \(fingerprint \w{{8}} -> \w{{8}}\)"
    with pytest.raises(InputError, match=rf"other settings \({lists}\); .*--allow_changed_resume"):
        workshop.train(run, "--use_ema", "--file_list", other, "--max_steps", 4)


@pytest.mark.parametrize("word", ["latest", "Latest"])
def test_latest_is_refused_with_the_default_behaviour(workshop, run, word):
    with pytest.raises(InputError, match="leave it out: the newest whole one is the default"):
        workshop.train(run, "--use_ema", "--resume_from_checkpoint", word, "--max_steps", 4)


def test_allowed_changes_resume_and_are_logged(workshop, run, others, info):
    flags = ["--vae_name_or_path", others / "vae", "--allow_changed_resume", "--max_steps", 3]
    workshop.train(run, *flags, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)
    line = next(message for message in info.messages if "changed settings" in message)
    assert "use_ema: True -> False" in line and "vae: 'sha256" in line and "global_batch_size" not in line
    assert (run / "checkpoint-3").is_dir()


def test_the_same_models_elsewhere_and_the_batch_split_otherwise_are_no_change(workshop, run):
    import shutil

    moved = workshop.folder / "moved"
    shutil.copytree(workshop.folder / "models", moved, dirs_exist_ok=True)
    flags = ["--pretrained_model_name_or_path", moved, "--use_ema", "--per_device_train_batch_size", 2]
    workshop.train(run, *flags, "--gradient_accumulation_steps", 2, "--max_steps", 3)
    assert (run / "checkpoint-3").is_dir()


def as_written_before(checkpoint, *keys):
    """Take settings away from a checkpoint, as an earlier version would not have written them."""
    settings = json.loads((checkpoint / "settings.json").read_text())
    files = json.loads((checkpoint / ck.MANIFEST).read_text())
    (checkpoint / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in keys}))
    files["files"].pop("settings.json")
    (checkpoint / ck.MANIFEST).write_text(json.dumps(files))


NEW_KEYS = ["vae", "text_encoder", "tokenizer", "use_ema", "global_batch_size"]


def test_a_checkpoint_of_an_earlier_version_resumes(workshop, run):
    as_written_before(run / "checkpoint-2", *NEW_KEYS)
    workshop.train(run, "--use_ema", "--max_steps", 3)
    assert json.loads((run / "checkpoint-3/ema_state.json").read_text()) == {"updates": 3}


def test_the_average_of_an_earlier_version_is_not_lost_in_silence(workshop, run):
    as_written_before(run / "checkpoint-2", *NEW_KEYS)
    with pytest.raises(InputError, match=r"\(use_ema: True -> False\)"):
        workshop.train(run, "--max_steps", 3)


def test_the_order_of_the_first_start_is_resumed(workshop):
    """An earlier version dealt a lane to each worker and shuffled 100 rows; its checkpoints say so."""
    output_dir = workshop.train("window", "--max_steps", 2, "--buffer_size", 7, "--data_lanes", 2)
    before = json.loads((output_dir / "checkpoint-2/data_state.json").read_text())
    workshop.train("window", "--max_steps", 3)
    after = json.loads((output_dir / "checkpoint-3/data_state.json").read_text())
    assert (before["buffer_size"], before["lanes"]) == (7, 2)
    assert after == before | {"samples_seen": 12}
    with pytest.raises(InputError, match=r"\(buffer_size: 7 -> 8\)"):
        workshop.train("window", "--max_steps", 4, "--buffer_size", 8)


def poison(checkpoint, name):
    """Make one number of a file NaN, under a manifest that fits, as a version without a check would have saved it."""
    tensors = load_file(checkpoint / name)
    key = sorted(tensors)[0]
    tensors[key].flat[-1] = np.nan
    save_file(tensors, checkpoint / name)
    manifest = json.loads((checkpoint / ck.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": (checkpoint / name).stat().st_size, "xxh3_128": ck._checksum(checkpoint / name)}
    (checkpoint / ck.MANIFEST).write_text(json.dumps(manifest))
    return key


@pytest.mark.parametrize("name", [UNET, EMA, "optimizer.safetensors"])
def test_a_checkpoint_with_nan_is_skipped_by_name_and_does_not_count(workshop, name, caplog):
    folder = f"nan_{name.replace('/', '_')}"
    flags = ["--use_ema", "--save_steps", 1, "--save_total_limit", 2]
    output_dir = workshop.train(folder, *flags, "--max_steps", 3)
    assert [path.name for path in ck.list_checkpoints(output_dir)] == ["checkpoint-2", "checkpoint-3"]
    key = poison(output_dir / "checkpoint-3", name)
    workshop.train(folder, *flags, "--save_steps", 2, "--max_steps", 4)
    assert f"checkpoint-3 is damaged: {key} of {name} has NaN or infinite values" in caplog.text
    # The damaged one does not push the good one out: two whole ones are left.
    assert [path.name for path in ck.list_checkpoints(output_dir)] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert "NaN or infinite" in (output_dir / "checkpoint-3/damaged.txt").read_text()
    caplog.clear()
    assert ck.newest_intact_checkpoint(output_dir).name == "checkpoint-4"
    workshop.train(folder, *flags, "--max_steps", 6)
    assert [path.name for path in ck.list_checkpoints(output_dir)] == ["checkpoint-5", "checkpoint-6"]


def test_a_resume_that_changes_the_result_is_refused(workshop, info):
    workshop.train("changed", "--max_steps", 2)
    with pytest.raises(InputError, match=r"other settings \(seed: 23 -> 24, snr_gamma: None -> 5.0\).*--allow_changed"):
        workshop.train("changed", "--seed", 24, "--snr_gamma", 5)
    workshop.train("changed", "--snr_gamma", 5, "--allow_changed_resume")
    assert "changed settings: snr_gamma: None -> 5.0" in info.text


def test_other_steps_of_a_constant_schedule_are_no_change_but_of_a_cosine_one(workshop):
    workshop.train("longer", "--max_steps", 1)
    workshop.train("longer", "--max_steps", 2)
    workshop.train("longer_cosine", "--lr_scheduler_type", "cosine", "--max_steps", 1)
    with pytest.raises(InputError, match="max_steps: 1 -> 2"):
        workshop.train("longer_cosine", "--lr_scheduler_type", "cosine", "--max_steps", 2)


def ranks_of(world_size, batch, accumulation):
    from types import SimpleNamespace

    return SimpleNamespace(
        dataset_world_size=world_size, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )


@pytest.mark.parametrize(("ranks", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8), (16, 0.5), (6, None), (3, None)])
def test_the_global_batch_stays_where_it_divides(ranks, accumulation):
    """256 images, 32 a card: of 1 to 16 cards those of which a whole number of micro-batches makes 256."""
    args = ranks_of(ranks, 32, 1)
    if accumulation is None or accumulation < 1:
        with pytest.raises(InputError, match=rf"256 is no multiple of {ranks} rank\(s\) .*; 1, 2, 4, 8 ranks would do"):
            keep_global_batch(args, 256)
    else:
        keep_global_batch(args, 256)
        assert args.gradient_accumulation_steps == accumulation
    keep_global_batch(args, None)  # a checkpoint of an earlier version


def test_a_resume_on_fewer_ranks_ends_as_the_run_before(workshop, tmp_path, info):
    """One rank of batch 2 takes the place of one of batch 4, which here stands for two ranks of 2."""
    flags = ["--data_lanes", 1, "--learning_rate", 1e-4, "--max_steps", 4, "--save_steps", 2]
    whole = workshop.train(tmp_path / "whole", *flags)
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-4")
    workshop.train(run, *flags, "--per_device_train_batch_size", 2, "--allow_fewer_ranks")
    assert "1 rank(s): gradient_accumulation_steps 1 -> 2 keeps the global batch of 4" in info.text
    ours, theirs = weights(run / "checkpoint-4"), weights(whole / "checkpoint-4")
    start = weights(whole / "checkpoint-2")
    # Two sums of rounded float32 gradients; AdamW divides small ones by their own size.
    assert np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs - start)
