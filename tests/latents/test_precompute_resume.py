"""A caching run that goes on in its folder: the same bytes, other settings or sources refused, work of other ranks."""

import shutil

import pytest

from sd.data.images.resize import EARLIER_RESIZER, RESIZER
from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.parts.filelist import read_file_list
from sd.data.parts.moments import find_manifest
from sd.data.streaming.dataset import TextImagePair
from sd.errors import InputError
from sd.latents import models, run
from sd.latents.claims import Claims
from sd.latents.run import precompute
from tests.latent_maker import make_shapes, options
from tests.pack_input import contents, write_input


def test_a_second_run_makes_only_what_is_missing_or_cut_to_the_same_bytes(tmp_path, monkeypatch):
    source, out = make_shapes(tmp_path / "in", [5, 3, 4]), tmp_path / "out"
    precompute(options(source, out, num_workers=1))
    before = contents(out)
    (out / "latents/part-000001.gz").unlink()
    cut = out / "latents/part-000003.gz"
    cut.write_bytes(cut.read_bytes()[:-1])
    (out / "latents/part-000002.gz.0123abcd.tmp").write_bytes(b"left by a kill")
    (out / "filelist/custom_dataset.filelist.list").unlink()
    made = []
    write = run.write_part
    monkeypatch.setattr(run, "write_part", lambda task, *rest: made.append(task.number) or write(task, *rest))
    precompute(options(source, out))
    assert made == [0, 2] and contents(out) == before
    precompute(options(source, out))
    assert made == [0, 2]


@pytest.mark.parametrize("earlier", [None, EARLIER_RESIZER])
def test_a_cache_of_the_earlier_resizer_resumes_and_is_read_beside_a_new_one(earlier, tmp_path):
    source, out, new = make_shapes(tmp_path / "in", [5, 3]), tmp_path / "out", tmp_path / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "RESIZER", earlier)
        before, _ = precompute(options(source, out))
    stored = contents(out)
    (out / "latents/part-000001.gz").unlink()
    precompute(options(source, out))
    assert contents(out) == stored
    after, _ = precompute(options(source, new))
    manifests = [find_manifest(file_list) for file_list in (before, after)]
    assert [manifest.resizer for manifest in manifests] == [earlier, RESIZER]
    both = tmp_path / "both.filelist.list"
    both.write_text("".join(f"{source.name}\n" for path in (before, after) for source in read_file_list(path)))
    data = iter(TextImagePair(str(both), lambda caption: [0], resolution=manifests[0].resolution, batch_size=2))
    places = {tuple(next(data)["position"].tolist()) for _ in range(16)}
    assert {part for part, _ in places} == {0, 1, 2, 3}


def test_another_cache_or_source_in_the_folder_is_refused_with_the_difference(tmp_path):
    source, out = make_shapes(tmp_path / "in", [3, 2]), tmp_path / "out"
    precompute(options(source, out))
    message = (
        r"part-000001\.gz was made with other settings: crop was random, is centre; seed was 23, is 24; .*--overwrite"
    )
    with pytest.raises(InputError, match=message):
        precompute(options(source, out, crop="centre", seed=24))
    make_shapes(tmp_path / "in", [3, 4])
    with pytest.raises(
        InputError, match=r"part-000002\.gz is not of .*/in/part-000001\.gz as it is now; .*--overwrite"
    ):
        precompute(options(source, out))
    precompute(options(source, tmp_path / "fresh", crop="centre"))
    precompute(options(source, out, crop="centre", overwrite=True))
    parts = [contents(folder / "latents") for folder in (out, tmp_path / "fresh")]
    assert parts[0] == parts[1]
    shutil.copy(tmp_path / "in/part-000000.gz", out / "latents/part-000001.gz")
    shutil.copy(tmp_path / "in/part-000000.gz.idx", out / "latents/part-000001.gz.idx")
    with pytest.raises(InputError, match=r"part-000001\.gz is no part of a cache"):
        precompute(options(source, out, crop="centre"))


def test_claimed_parts_are_skipped_and_lists_are_written_after_the_last_part(tmp_path, monkeypatch):
    source, out = make_shapes(tmp_path / "in", [2] * 4), tmp_path / "out"
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    monkeypatch.setattr(Claims, "acquire", lambda self, number: number % 2 == 1)  # the other rank is at work on its own
    assert precompute(options(source, out)) is None
    assert sorted(path.name for path in (out / "latents").glob("*.gz")) == ["part-000002.gz", "part-000004.gz"]
    assert list((out / "filelist").iterdir()) == []
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setattr(Claims, "acquire", lambda self, number: True)
    file_list, _ = precompute(options(source, out))
    monkeypatch.delenv("PADDLE_TRAINERS_NUM")
    precompute(options(source, tmp_path / "alone"))
    assert contents(out / "latents") == contents(tmp_path / "alone/latents")
    assert len(read_file_list(file_list)[0].parts) == 4


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_lists_of_the_packed_images_are_not_replaced(tmp_path, overwrite):
    out = tmp_path / "packed"
    file_list, _ = pack(PackOptions(str(write_input(tmp_path / "in", 3)), str(out), num_workers=1))
    before = contents(out)
    message = r"custom_dataset\.filelist\.list: names other data .*; take another --output_path or --output_name"
    with pytest.raises(InputError, match=message):
        precompute(options(file_list, out, overwrite=overwrite))
    assert contents(out) == before
