"""python -m sd.data.duplicates on pictures with planted duplicates: the column, its readers, damage, going on."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from sd.data.duplicates import command
from sd.data.duplicates.cache import FingerprintCache
from sd.data.duplicates.fingerprint import fingerprint_image, perceptual_hash
from sd.data.parts.columns import BOOL, INT, Column, merge_columns, read_columns
from sd.data.parts.part import PartWriter, load_header, load_index
from sd.data.parts.record import RowError, encode_row
from sd.data.streaming.catalog import Catalog
from sd.errors import InputError, RunError
from tests.data_maker import write_lists

SIDE = 128


def picture(seed):
    """Colours that change at all scales, as those of photographs do."""
    draws = np.random.default_rng(seed)
    pixels = sum(
        np.asarray(
            Image.fromarray(draws.integers(0, 256, (side, side, 3), np.uint8)).resize((SIDE, SIDE), Image.BICUBIC),
            float,
        )
        / side**0.5
        for side in (2, 4, 8, 16, 32)
    )
    low, high = np.percentile(pixels, [1, 99])
    return Image.fromarray(((pixels - low) / (high - low) * 200 + 20).clip(0, 255).astype(np.uint8))


def jpeg(image, quality=92):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def changed(image):
    """The changes of a picture that keep it the same one."""
    width, height = image.size
    cut = round(0.01 * width)
    return {
        "equal": jpeg(image),
        "re-encoded": jpeg(image, 60),
        "half": jpeg(image.resize((width // 2, height // 2), Image.LANCZOS)),
        "cut": jpeg(image.crop((cut, cut, width - cut, height - cut))),
        "brighter": jpeg(ImageEnhance.Brightness(image).enhance(1.2), 80),
    }


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed) for seed in range(12)]


@pytest.fixture
def here(monkeypatch):
    """The work of the processes in this one."""
    monkeypatch.setattr(command, "run_local", lambda work, tasks, _: (work(task) for task in tasks))


def pack(folder, pictures):
    """A data set: part 0 has the pictures, part 1 changes of each, a plain one and one that is no image."""
    rows = [[(jpeg(image), image.size) for image in pictures]]
    rows.append([(data, (100, 100)) for image in pictures[:6] for data in changed(image).values()])
    rows[1] += [(jpeg(Image.new("RGB", (64, 64), "red")), (64, 64)), (b"no image", (64, 64))]
    parts = []
    for number, images in enumerate(rows):
        parts.append(folder / f"part-{number:06d}.gz")
        with PartWriter(parts[-1]) as part:
            for data, size in images:
                part.add(encode_row("a caption", data), *size)
    return write_lists(folder, (1.0, parts)), parts


def column_of(part):
    column = read_columns(load_header(part))[command.COLUMN]
    present = np.ones(len(column.values), bool) if column.present is None else column.present
    assert column.type == BOOL
    return [bool(value) if there else None for value, there in zip(column.values, present, strict=True)]


def test_planted_duplicates_get_the_column_that_filters_read(tmp_path, pictures, here, capsys):
    file_list, parts = pack(tmp_path, pictures)
    merge_columns(load_header(parts[0]), {"width": Column(INT, np.arange(12))})
    flags = [file_list, "--cache_dir", str(tmp_path / "cache"), "--num_workers", "1"]
    command.main([*flags, "--output", str(tmp_path / "groups.png")])
    assert column_of(parts[0]) == [False] * 12 and column_of(parts[1]) == [True] * 30 + [False, None]
    assert read_columns(load_header(parts[0]))["width"].values.tolist() == list(range(12))
    output = capsys.readouterr().out
    assert "44 rows in 2 parts: 13 kept, 30 duplicates (6 of equal files, 24 near), 1 unreadable" in output
    assert "groups of duplicates: 6" in output and "6 rows, kept: part-000000.gz row 1" in output
    assert Image.open(tmp_path / "groups.png").size == (900, 6 * 180)
    assert Catalog(file_list, 1, data_filter="not duplicate").num_usable == 13


def test_a_second_run_reads_no_picture_and_writes_the_same(tmp_path, pictures, monkeypatch, capsys):
    file_list, parts = pack(tmp_path, pictures)
    flags = [file_list, "--cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "groups.png")]
    command.main([*flags, "--num_workers", "2"])
    names = [f"{part}.columns" for part in parts]
    first = [open(name, "rb").read() for name in names]  # noqa: PTH123, SIM115
    output = capsys.readouterr().out
    monkeypatch.setattr(command, "run_local", lambda *_: pytest.fail("it reads pictures again"))
    command.main(flags)
    again = capsys.readouterr()
    assert [open(name, "rb").read() for name in names] == first  # noqa: PTH123, SIM115
    assert again.out == output and "2 of 2 parts are known" in again.err


def test_cached_fingerprints_that_are_damaged_or_of_another_part_are_recomputed(tmp_path, pictures):
    _, (part, _) = pack(tmp_path, pictures)
    header, stored = load_header(part), FingerprintCache(tmp_path / "cache")
    assert stored.load(header) is None
    prints = command.fingerprint_part(load_index(part))
    stored.save(header, prints)
    for name, array in stored.load(header).arrays().items():
        np.testing.assert_array_equal(array, getattr(prints, name))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert stored.load(header) is None
    file.write_bytes(json.dumps({}).encode())
    assert stored.load(header) is None


def test_a_missing_part_is_named_and_the_others_get_their_column(tmp_path, pictures, here, capsys):
    file_list, parts = pack(tmp_path, pictures)
    for name in (parts[0], f"{parts[0]}.idx"):
        (tmp_path / name).unlink()
    flags = [file_list, "--cache_dir", str(tmp_path / "cache"), "--num_workers", "1"]
    command.main([*flags, "--output", str(tmp_path / "groups.png")])
    assert "no column: " in (output := capsys.readouterr().out) and "part-000000.gz" in output
    assert column_of(parts[1]).count(False) == 7
    with pytest.raises(RunError, match="cannot be written"):
        command.main([*flags, "--output", str(tmp_path / "nowhere" / "groups.png")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_distance", "12"], "max_distance=12; expected at least 0 and at most 11"),
        (["--num_workers", "0"], "num_workers=0; expected at least 1"),
        (["--ray_address", "auto"], "--ray_address auto needs --engine ray"),
        (["--output", "groups.jpg"], "output='groups.jpg'; expected a name that ends in .png"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        command.parse_arguments(["a.filelist.list", *flags])


def test_the_hash_is_the_sign_of_the_lowest_frequencies(pictures):
    """Against SciPy's DCT in float64: rounding to 1/256 of a level changes no sign of what is above 0.1."""
    u, v = np.divmod(np.arange(1024), 32)
    lowest = np.lexsort((u, u + v))[1:49]
    for image in pictures:
        pixels = np.asarray(image.resize((32, 32), Image.LANCZOS))
        frequencies = dctn(pixels @ [0.299, 0.587, 0.114], norm="ortho").reshape(-1)[lowest]
        bits = int(perceptual_hash(pixels)) >> np.arange(64) & 1
        clear = np.abs(frequencies) > 0.1
        assert clear.sum() > 40 and (bits[:48] == (frequencies > 0))[clear].all() and not bits[48:].any()


def test_fingerprints_hold_size_and_thumbnail(pictures):
    _, thumb, size = fingerprint_image(jpeg(pictures[0], 95))
    small = np.asarray(pictures[0].resize((16, 16), Image.BOX), int)
    assert size == (SIDE, SIDE) and np.abs(thumb - small).mean() < 3
    with pytest.raises(RowError):
        fingerprint_image(b"no image")
