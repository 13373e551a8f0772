"""Caching from and to a real S3 server on loopback: the same parts as on a disk; there ranks keep to their own."""

from sd.data.parts import storage
from sd.data.parts.filelist import read_file_list
from sd.data.parts.moments import find_manifest
from sd.latents.run import precompute
from tests.data.packing.test_pack_s3 import bucket  # noqa: F401  (a fixture)
from tests.latent_maker import make_shapes, options


def test_from_and_to_s3_as_on_a_disk_and_by_two_ranks(bucket, tmp_path, monkeypatch):  # noqa: F811
    source = make_shapes(tmp_path / "in", [3, 2, 3])
    precompute(options(source, tmp_path / "out", cache_text=True))
    fs, _ = storage.filesystem(bucket)
    fs.put(str(tmp_path / "in"), f"{bucket}/in", recursive=True)
    for name in ("source0.filelist", "train.filelist.list"):
        text = fs.cat_file(f"{bucket}/in/{name}").decode().replace(f"{tmp_path}/", f"{bucket}/")
        fs.pipe_file(f"{bucket}/in/{name}", text.encode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    remote = options(f"{bucket}/in/train.filelist.list", f"{bucket}/out", cache_text=True, check=3)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert precompute(remote) is None
    assert [name for name in storage.list_folder(f"{bucket}/out/latents") if name.endswith(".gz")] == ["part-000002.gz"]
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    file_list, report = precompute(remote)
    assert report["outcomes"] == {"cached": 8}
    (there,) = read_file_list(file_list)
    assert there.parts == [f"{bucket}/out/latents/part-00000{number}.gz" for number in (1, 2, 3)]
    for part in there.parts:
        assert storage.read_bytes(part) == (tmp_path / part.removeprefix(f"{bucket}/")).read_bytes()
    manifest = find_manifest(file_list)
    assert manifest.empty_text_state().shape == (16, 64)
    assert storage.read_bytes(f"{bucket}/out/check.png").startswith(b"\x89PNG")
