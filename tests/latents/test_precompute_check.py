"""`--check N` passes a good cache and fails each kind of wrong one that is known from the field."""

import numpy as np
import pytest
from PIL import Image

from sd.data.parts.filelist import read_file_list
from sd.data.parts.moments import KIND, decode_payload, encode_payload
from sd.data.parts.part import PartReader, PartWriter, load_index
from sd.data.parts.record import decode_row, encode_captions_row
from sd.errors import RunError
from sd.latents import check, models
from sd.latents.run import precompute
from tests.latent_maker import make_shapes, options

posterior = models.encoders.encode_posterior


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """14 shapes in 3 parts, no two of the same caption."""
    return make_shapes(tmp_path_factory.mktemp("in"), [5, 5, 4])


def change_rows(file_list, change):
    """Rewrite each part with `change([(captions, moments, states), ...])` in the place of its rows; the index fits."""
    for path in read_file_list(file_list)[0].parts:
        index = load_index(path)
        with PartReader(path, index) as reader:
            records = [decode_row(reader.read(row)) for row in range(index.num_rows)]
        rows = [(record.captions, *decode_payload(record.image)) for record in records]
        with PartWriter(path, kind=KIND) as part:
            for captions, moments, states in change(rows):
                part.add(encode_captions_row(captions, encode_payload(moments, states)), 32, 32)
            part.notes = index.notes


@pytest.mark.parametrize("flags", [{}, {"num_crops": 2, "flip": True}, {"crop": "centre", "cache_text": True}])
def test_a_good_cache_passes_and_is_shown(source, tmp_path, capsys, flags):
    precompute(options(source, tmp_path / "out", check=9, **flags))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    for line in lines[:9]:
        shown, own = (float(word) for word in line.split() if word.replace(".", "").isdigit() and "." in word)
        assert shown == pytest.approx(own, abs=0.15) and 25 < own < 45
    assert len({line.split(":")[0] for line in lines[:9]}) == 9
    sheet = np.asarray(Image.open(tmp_path / "out/check.png"))
    assert sheet.shape[0] > 9 * 144 and sheet.std() > 30


def scaled_twice(vae, pixels):
    answer = posterior(vae, pixels)
    answer.mean = answer.mean * 0.18215
    answer.logvar = answer.logvar + 2 * np.log(0.18215)
    return answer


def never_normalised(vae, pixels):
    return vae.encode(pixels.astype("float32")).latent_dist


def from_zero_to_one(vae, pixels):
    return vae.encode(pixels.astype("float32") / 255).latent_dist


def standard_deviation_for_log_variance(vae, pixels):
    answer = posterior(vae, pixels)
    answer.logvar = answer.std
    return answer


@pytest.mark.parametrize(
    "mistake, message",
    [
        (scaled_twice, "the latents differs"),
        (never_normalised, "the picture differs"),
        (from_zero_to_one, "the picture differs"),
        (standard_deviation_for_log_variance, "the log-variance differs"),
    ],
)
def test_a_wrong_encoder_fails(source, tmp_path, monkeypatch, mistake, message):
    monkeypatch.setattr(models.encoders, "encode_posterior", mistake)
    with pytest.raises(
        RunError, match=rf"4 of 4 rows of the cache are not .* row 1 crop 1: .*{message}.* see .*check\.png"
    ):
        precompute(options(source, tmp_path / "out", check=4))
    assert (tmp_path / "out/check.png").exists()


@pytest.mark.parametrize(
    "change, count, message",
    [
        (lambda rows: [rows[at - 1] for at in range(len(rows))], 14, "the caption is"),
        (lambda rows: [(row[0], *other[1:]) for row, other in zip(rows, rows[::-1], strict=True)], 12, "the picture"),
        (
            lambda rows: [(row[0], row[1], other[2]) for row, other in zip(rows, rows[1:] + rows[:1], strict=True)],
            14,
            "the text",
        ),
        (lambda rows: [(row[0], row[1][..., ::-1], row[2]) for row in rows], 14, "the latents"),
    ],
    ids=["rows moved", "another row's picture", "another row's text", "mirrored"],
)
def test_what_belongs_to_another_row_fails(source, tmp_path, change, count, message):
    file_list, _ = precompute(options(source, tmp_path / "out", cache_text=True))
    change_rows(file_list, change)
    with pytest.raises(RunError, match=rf"{count} of 14 rows .*{message}"):
        precompute(options(source, tmp_path / "out", cache_text=True, check=14))


def test_a_vae_that_shows_nothing_fails_although_the_cache_is_its_own(source, tmp_path, monkeypatch):
    precompute(options(source, tmp_path / "out"))
    shown = check._decoded
    monkeypatch.setattr(check, "_decoded", lambda vae, mean: np.rot90(255 - shown(vae, mean)))
    with pytest.raises(RunError, match=r"the VAE shows these images worse \(.* dB\) than a plain grey would"):
        precompute(options(source, tmp_path / "out", check=4))


def test_missing_source_images_are_reported(tmp_path):
    source = make_shapes(tmp_path / "in", [2])
    precompute(options(source, tmp_path / "out"))
    part = tmp_path / "in/part-000000.gz"
    part.write_bytes(b"\0" * part.stat().st_size)
    with pytest.raises(RunError, match=r"part-000000\.gz row 1 can no longer be read"):
        precompute(options(source, tmp_path / "out", check=1))
