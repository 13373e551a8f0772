"""Packing from and to a real S3 server on loopback: the same parts as on a disk, and resuming from finished ones."""

import gzip
import secrets

import pytest

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.parts import storage
from sd.data.parts.filelist import read_file_list
from sd.data.parts.part import PartError, PartReader, load_header, load_index
from sd.data.parts.record import decode_row
from sd.errors import InputError, RunError
from tests.pack_input import image_bytes, write_input

pytest.importorskip("s3fs", reason="requirements-s3.txt is not installed")
server = pytest.importorskip("moto.server", reason="requirements-test.txt is not installed")


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket on a server of our own."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    fs, _ = storage.filesystem("s3://")
    name = f"bucket-{secrets.token_hex(4)}"  # the server keeps its buckets while the process lives
    fs.mkdir(name)
    yield f"s3://{name}"
    running.stop()
    type(fs).clear_instance_cache()


@pytest.fixture
def folder(tmp_path):
    return write_input(tmp_path / "data", 12, bad=(5,)).parent


def flags(**more):
    return {"per_part_file_num": 4, "save_gzip_file": True, "num_workers": 1, "max_bad_fraction": 0.1} | more


def test_packing_from_and_to_s3_equals_packing_on_a_disk(bucket, folder, tmp_path):
    fs, _ = storage.filesystem(bucket)
    fs.put(str(folder), f"{bucket}/data", recursive=True)
    pack(PackOptions(str(folder / "data.jsonl"), str(tmp_path / "out"), **flags()))
    file_list, _ = pack(PackOptions(f"{bucket}/data/data.jsonl", f"{bucket}/out", **flags()))
    assert file_list == f"{bucket}/out/filelist/custom_dataset.filelist.list"
    [source] = read_file_list(file_list)
    assert source.parts == [f"{bucket}/out/laion400m_format_data/part-00000{n}.gz" for n in (1, 2, 3)]
    for name in ("report.json", "rejected.jsonl"):
        assert storage.read_bytes(f"{bucket}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    records = []
    for part in source.parts:
        assert storage.read_bytes(part) == (tmp_path / part.removeprefix(f"{bucket}/")).read_bytes()
        index = load_index(part)
        assert load_header(part).num_usable(40) == index.num_rows
        with PartReader(part, index) as reader:
            records += [decode_row(reader.read(row)) for row in range(index.num_rows)]
    assert [record.image for record in records] == [image_bytes(40 + n, 40, n) for n in range(1, 13) if n != 5]


def test_packing_on_s3_resumes_from_finished_parts_and_refuses_others(bucket, folder):
    options = PackOptions(str(folder / "data.jsonl"), f"{bucket}/out", **flags(resize=64))
    pack(options)
    fs, _ = storage.filesystem(bucket)
    part = bucket + "/out/laion400m_format_data/part-00000{}.gz"
    whole, untouched = fs.cat_file(part.format(2)), fs.info(part.format(1))["LastModified"]
    fs.rm_file(part.format(2))
    pack(options)
    assert fs.cat_file(part.format(2)) == whole
    assert fs.info(part.format(1))["LastModified"] == untouched
    with pytest.raises(InputError, match=r"s3://.*/out/.*part-000001\.gz: it was packed with --quality 95, now 90"):
        pack(PackOptions(str(folder / "data.jsonl"), f"{bucket}/out", **flags(resize=64, quality=90)))
    pack(PackOptions(str(folder / "data.jsonl"), f"{bucket}/out", **flags(resize=64, quality=90, overwrite=True)))


@pytest.mark.usefixtures("packs_in_process")
def test_folders_and_tables_on_s3_are_packed(bucket):
    fs, _ = storage.filesystem(bucket)
    for number, name in enumerate(["b", "sub/a", "sub/deep/c"]):
        fs.pipe_file(f"{bucket}/in/{name}.png", image_bytes(seed=number))
        fs.pipe_file(f"{bucket}/in/{name}.txt", f"text {number}".encode())
    fs.pipe_file(f"{bucket}/in/sub/metadata.csv", b"file_name,caption\na.png,x\n../b.png,y\ndeep/c.png,z\n")
    for input_format, packed in (("folder", ["text 0", "text 1", "text 2"]), ("imagefolder", ["x", "z"])):
        out = f"{bucket}/{input_format}"
        pack(PackOptions(f"{bucket}/in", out, input_format=input_format, **flags(max_bad_fraction=0.5)))
        data = storage.read_bytes(f"{out}/laion400m_format_data/part-000001.gz")
        rows = [decode_row(line) for line in gzip.decompress(data).splitlines()]
        assert [row.captions[0] for row in rows] == packed
        assert rows[-1].image == image_bytes(seed=2)


@pytest.mark.defect(10)
def test_defect_10_images_stay_below_the_folder_on_s3(bucket):
    fs, _ = storage.filesystem(bucket)
    fs.pipe_file(f"{bucket}/secret.png", image_bytes())
    fs.pipe_file(f"{bucket}/in/data.jsonl", b'{"caption": "a", "image": "../secret.png"}\n')
    with pytest.raises(InputError, match="image outside the input's folder"):
        pack(PackOptions(f"{bucket}/in/data.jsonl", f"{bucket}/out", **flags()))


def test_an_unreachable_server_is_one_line(bucket, folder, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    type(storage.filesystem(bucket)[0]).clear_instance_cache()
    with pytest.raises(RunError, match=r'Could not connect.*"http://127\.0\.0\.1:9'):
        pack(PackOptions(str(folder / "data.jsonl"), f"{bucket}/out", **flags()))


def test_missing_objects_are_reported(bucket):
    with pytest.raises(InputError, match=r"s3://.*/none\.jsonl"):
        pack(PackOptions(f"{bucket}/none.jsonl", f"{bucket}/out", **flags()))
    with pytest.raises(PartError, match="no such part"):
        load_index(f"{bucket}/none.gz")
    with pytest.raises(InputError, match="nosuch://a"):
        storage.filesystem("nosuch://a")
    with pytest.raises(InputError, match="s3://missing"):
        pack(PackOptions("s3://missing/none.jsonl", f"{bucket}/out", **flags()))
