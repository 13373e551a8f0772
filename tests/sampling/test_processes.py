"""Drawing by several processes: the same bytes as by one, and one checkpoint for all of them."""

import shutil

from sd.sampling import run
from sd.sampling.files import read_png_text
from sd.sampling.options import SampleOptions
from sd.sampling.processes import draw_shared
from tests.checkpoints import save_checkpoint


def flags(**given):
    return SampleOptions(**({"device": "cpu", "guidance_scale": 2.0, "num_inference_steps": 2} | given))


def test_several_processes_draw_what_one_draws(output_dir, tmp_path, capfd):
    given = {"unet": str(output_dir), "prompt": ["a", "b"], "num_images": 2, "batch_size": 1}
    run.run(flags(**given, output=str(tmp_path / "one")))
    run.run(flags(**given, output=str(tmp_path / "several"), processes=2))
    shown = capfd.readouterr().err
    assert "| 4/4 pictures" in shown
    assert "Warning" not in shown and "loaded from" not in shown  # of the libraries, and once more for each process
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "several").iterdir()} and len(names) == 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()
    drawn = (tmp_path / "several/0-a-42.png").stat().st_mtime_ns
    (tmp_path / "several/1-b-43.png").unlink()
    run.run(flags(**given, output=str(tmp_path / "several"), processes=2))
    assert "3 of 4 pictures are there already" in capfd.readouterr().out
    assert (tmp_path / "several/0-a-42.png").stat().st_mtime_ns == drawn
    assert (tmp_path / "one/1-b-43.png").read_bytes() == (tmp_path / "several/1-b-43.png").read_bytes()


def test_processes_draw_by_the_checkpoint_that_was_the_newest(output_dir, repository, tmp_path, monkeypatch):
    """Training may save another one before a process has loaded it."""
    run_dir = shutil.copytree(output_dir, tmp_path / "run")

    def saved_meanwhile(*arguments):
        save_checkpoint(repository, run_dir, 20)
        return draw_shared(*arguments)

    monkeypatch.setattr(run, "draw_shared", saved_meanwhile)
    run.run(flags(unet=str(run_dir), prompt=["a"], num_images=2, batch_size=1, output=str(tmp_path / "o"), processes=2))
    assert [read_png_text(tmp_path / f"o/0-a-{seed}.png")[1]["model"] for seed in (42, 43)] == (["checkpoint-10"] * 2)


def test_a_damaged_checkpoint_is_read_and_named_once(output_dir, tmp_path, caplog, capfd):
    damaged = shutil.copytree(output_dir, tmp_path / "run") / "checkpoint-10"
    weights = damaged / "unet/diffusion_paddle_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run.run(flags(unet=str(damaged), prompt=["a"], num_images=2, batch_size=1, output=str(tmp_path / "o"), processes=2))
    assert caplog.text.count("is damaged") == 1
    assert "is damaged" not in capfd.readouterr().err  # of the processes
