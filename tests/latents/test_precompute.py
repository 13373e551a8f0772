"""A caching run: every row keeps its place, what is cached is what training would compute, and going on is safe."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import psutil
import pytest

from sd.data.parts.filelist import read_file_list
from sd.data.parts.moments import decode_payload, find_manifest
from sd.data.parts.part import PartError, PartWriter
from sd.data.parts.record import encode_captions_row, encode_named_row, encode_row
from sd.data.streaming.sample import centre_crop, decode_for
from sd.diffusion.model import StableDiffusionModel
from sd.errors import InputError, RunError
from sd.latents import decode, models, run
from sd.latents.decode import decode_chunk
from sd.latents.options import CacheOptions
from sd.latents.part import chunks_of
from sd.latents.plan import make_plan
from sd.latents.run import precompute
from sd.models.hashes import weights_hash
from tests import exact
from tests.data_maker import write_lists
from tests.latent_maker import MODEL, SIDE, make_shapes, options, read_records, shape
from tests.numeric import EPS, assert_close, assert_close_in_float16, float16_rounding


@pytest.fixture
def mixed(tmp_path):
    """Two parts: 6 rows, one broken, one without a size, one too small; and 3 rows, the second of 2 captions, the third
    of 2 with names."""
    parts = [tmp_path / "in" / f"part-{number}.gz" for number in range(2)]
    parts[0].parent.mkdir()
    with PartWriter(parts[0]) as part:
        for number, size in enumerate([SIDE, SIDE, 0, 16, SIDE, SIDE]):
            caption, image = shape(number)
            part.add(encode_row(caption, b"?" if number == 1 else image), size, size)
    with PartWriter(parts[1]) as part:
        for number in range(6, 9):
            caption, image = shape(number)
            captions = (caption, "a longer one " * 20) if number == 7 else (caption,)
            row = encode_captions_row(captions, image)
            if number == 8:
                row = encode_named_row([("caption", caption), ("tags", "a | b, c")], image)
            part.add(row, SIDE, SIDE)
    return write_lists(tmp_path / "in", (1.0, parts))


def test_every_row_keeps_its_place_and_has_one_outcome(mixed, tmp_path):
    file_list, report = precompute(options(mixed, tmp_path / "out", max_bad_fraction=0.3))
    assert file_list == f"{tmp_path}/out/filelist/custom_dataset.filelist.list"
    (source,) = read_file_list(file_list)
    assert source.parts == [f"{tmp_path}/out/latents/part-00000{n}.gz" for n in (1, 2)]
    first, rows = read_records(source.parts[0])
    assert first.kind == "moments" and first.widths.tolist() == first.heights.tolist() == [32, 0, 0, 16, 32, 32]
    assert {row: record.captions for row, record in rows.items()} == {n: (shape(n)[0],) for n in (0, 4, 5)}
    _, rows = read_records(source.parts[1])
    assert [rows[row].captions for row in range(3)] == [
        (shape(6)[0],),
        (shape(7)[0], "a longer one " * 20),
        (shape(8)[0], "a | b, c"),
    ]
    assert [rows[row].sources for row in range(3)] == [("caption",), ("caption",) * 2, ("caption", "tags")]
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    part = f"{tmp_path}/in/part-0.gz"
    assert [(row["part"], row["row"], row["outcome"]) for row in rejected] == [
        (part, 2, "bad"),
        (part, 3, "bad"),
        (part, 4, "filtered"),
    ]
    assert rejected[0]["reason"].startswith("not an image") and rejected[2]["detail"] == "16x16"
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["rows"] == sum(report["outcomes"].values()) == 9 and report["outcomes"]["cached"] == 6
    manifest = find_manifest(file_list)
    assert (manifest.num_rows, manifest.num_bad, manifest.latent_shape) == (9, 2, (4, 4, 4))
    assert first.notes["cache"] == manifest.id and not manifest.has_text
    assert manifest.vae_hash == weights_hash("vae", f"{MODEL}/vae") == weights_hash("vae", MODEL, "vae")


def test_what_is_cached_and_what_training_computes_are_float64s(mixed, tmp_path):
    """Moments and text states of the cache, and training's latents of pictures and of the cache, against Paddle's own
    layers in float64."""
    flags = {"crop": "centre", "cache_text": True, "max_bad_fraction": 0.3}
    file_list, _ = precompute(options(mixed, tmp_path / "out", **flags))
    model = StableDiffusionModel.from_arguments(model_arguments(), 32)
    vae, text_encoder = (exact.load_float64(component, MODEL) for component in ("vae", "text_encoder"))
    manifest = find_manifest(file_list)
    scale = json.loads(Path(MODEL, "vae/config.json").read_text())["scaling_factor"]
    assert manifest.scaling_factor == scale
    _, records = read_records(read_file_list(file_list)[0].parts[1])
    assert len(records) == 3
    for row, record in records.items():
        moments, states = decode_payload(record.image)
        pixels = centre_crop(decode_for(shape(6 + row)[1], 32), 32, "lanczos")[None]
        with exact.counted_terms(vae) as terms:
            mean, log_variance = exact.posterior(vae, pixels)
        assert moments.shape == (1, 8, 4, 4)
        for name, cached, expected in zip(
            ("mean", "log-variance"), np.split(moments, 2, axis=1), (mean, log_variance), strict=True
        ):
            assert_close_in_float16(cached, expected, terms.count, name)
        deviation = np.exp(log_variance / 2)
        for sign in (0.0, 1.0, -1.0):
            noise, expected = paddle.full([1, 4, 4, 4], sign), (mean + sign * deviation) * scale
            of_pictures = model.encode_images(paddle.to_tensor(pixels), noise).numpy()
            assert_close(of_pictures, expected, terms.count, "latents of pictures")
            of_cache = model.cached_latents(paddle.to_tensor(moments), noise).numpy()
            moved = float16_rounding(mean) + abs(sign) * deviation * float16_rounding(log_variance) / 2
            over = np.abs(of_cache - expected) - scale * moved * (1 + 2**-8)  # of exp the second order
            assert over.max() <= terms.count * EPS * np.abs(expected).max()
        ids = np.stack([model.tokenize(caption) for caption in record.captions])
        with exact.counted_terms(text_encoder) as terms:
            expected = exact.text_states(text_encoder, ids)
        assert states.shape == (len(record.captions), 16, 64)
        assert_close_in_float16(states, expected, terms.count, "text states")
        assert_close(model.encode_text(paddle.to_tensor(ids)).numpy(), expected, terms.count, "text states")
    empty = exact.text_states(text_encoder, model.tokenize("")[None])[0]
    assert_close_in_float16(manifest.empty_text_state(), empty, terms.count, "states of the empty caption")


def test_caching_text_reports_truncated_captions(mixed, tmp_path, capsys):
    flags = {"max_bad_fraction": 0.3, "cache_text": True, "model_max_length": 4}
    precompute(options(mixed, tmp_path / "out", **flags))
    reported = "100% of {} captions read are longer than the 4 tokens of --model_max_length"
    lines = capsys.readouterr().err
    assert f"caption: {reported.format(8)}" in lines and f"tags: {reported.format(1)}" in lines
    precompute(options(mixed, tmp_path / "plain", max_bad_fraction=0.3))
    assert "captions read" not in capsys.readouterr().err


def test_log_variances_that_float16_cannot_hold_are_cut(tmp_path):
    """A VAE may be as sure, or as unsure, as it likes; float16 ends at 65,504."""
    made = models.Encoders(CacheOptions("list", "out", pretrained_model_name_or_path=MODEL, resolution=32))
    bias = made.vae.quant_conv.bias.numpy()
    half = len(bias) // 2
    bias[half], bias[half + 1] = 1e6, -1e6
    made.vae.quant_conv.bias.set_value(bias)
    crops = np.zeros([1, 1, 3, 32, 32], np.uint8)
    ((moments, _),) = made.finish(made.start(crops, [()]))
    assert moments.dtype == np.float16 and np.isfinite(moments).all()
    assert (moments[0, half] == 20).all() and (moments[0, half + 1] == -30).all()


def model_arguments():
    from sd.flags.arguments import SDModelArguments

    unet = str(Path(MODEL).parent / "unet_config.json")
    return SDModelArguments(pretrained_model_name_or_path=MODEL, unet_name_or_path=unet, model_max_length=16)


def test_variants_are_crops_each_followed_by_its_mirror_image(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        models.encoders, "encode_posterior", lambda vae, pixels: seen.append(pixels.numpy()) or posterior(vae, pixels)
    )
    file_list, _ = precompute(options(make_shapes(tmp_path / "in", [3]), tmp_path / "out", num_crops=2, flip=True))
    pixels = np.concatenate(seen).reshape(3, 2, 2, 3, 32, 32)
    np.testing.assert_array_equal(pixels[:, :, 0], pixels[:, :, 1, :, :, ::-1])
    assert (pixels[:, 0] != pixels[:, 1]).any()
    assert max(len(batch) for batch in seen) == 4
    _, records = read_records(read_file_list(file_list)[0].parts[0])
    assert [decode_payload(record.image)[0].shape for record in records.values()] == [(4, 8, 4, 4)] * 3


posterior = models.encoders.encode_posterior


def test_threads_that_decode_one_part_do_not_read_each_other_s_rows(tmp_path):
    source = make_shapes(tmp_path / "in", [200])
    flags = options(source, tmp_path / "out")
    (task,) = make_plan(flags).tasks
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            decoded = list(pool.map(lambda chunk: decode_chunk(chunk, flags), chunks_of(task, flags)))
            assert [bad for chunk in decoded for bad in chunk.bad.values()] == []
    assert [caption for chunk in decoded for (caption,) in chunk.captions] == [shape(n)[0] for n in range(200)]


@pytest.mark.parametrize("stopped", [False, True])
def test_no_source_part_stays_open(tmp_path, monkeypatch, stopped):
    source = make_shapes(tmp_path / "in", [4, 4, 4])
    monkeypatch.setattr(decode, "_MAX_OPEN", 2)  # beyond which the part read longest ago is closed
    if stopped:
        monkeypatch.setattr(run, "finish", lambda *arguments: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(RunError, match="stopped"):
            precompute(options(source, tmp_path / "out"))
    else:
        precompute(options(source, tmp_path / "out"))
    assert [file.path for file in psutil.Process().open_files() if str(tmp_path / "in") in file.path] == []


def test_several_sources_keep_their_weights_and_repeats(tmp_path):
    make_shapes(tmp_path, [2, 3, 4])
    a, b, c = (tmp_path / f"part-{number:06d}.gz" for number in range(3))
    source = write_lists(tmp_path, (2.5, [a, b, a]), (1.0, [c, a]))
    file_list, report = precompute(options(source, tmp_path / "out", output_name="mine"))
    assert report["parts"] == 3 and report["rows"] == 9
    parts = [f"{tmp_path}/out/latents/part-00000{number}.gz" for number in (1, 2, 3)]
    assert [(s.weight, s.parts) for s in read_file_list(file_list)] == [
        (2.5, [parts[0], parts[0], parts[1]]),
        (1.0, [parts[2], parts[0]]),
    ]
    assert find_manifest(file_list).num_rows == 5
    assert sorted(path.name for path in (tmp_path / "out/filelist").iterdir()) == [
        "mine-1.cache.json",
        "mine-1.filelist",
        "mine-2.cache.json",
        "mine-2.filelist",
        "mine.filelist.list",
    ]


def test_crops_do_not_depend_on_the_position_in_the_list(tmp_path):
    """So a list may grow at either end, and a part that two lists share is cached alike."""
    make_shapes(tmp_path, [3, 4])
    parts = [tmp_path / f"part-{number:06d}.gz" for number in range(2)]
    cached = []
    for number, order in enumerate((parts, parts[::-1])):
        (tmp_path / str(number)).mkdir()
        file_list, _ = precompute(options(write_lists(tmp_path / str(number), (1.0, order)), tmp_path / f"out{number}"))
        cached.append([Path(part).read_bytes() for part in read_file_list(file_list)[0].parts])
    assert cached[0] == cached[1][::-1]


def test_too_many_bad_rows_end_the_run_with_reports_and_without_lists(mixed, tmp_path):
    with pytest.raises(RunError, match=r"2 of 9 rows are bad, .*--max_bad_fraction 0\.15; most often: "):
        precompute(options(mixed, tmp_path / "out", max_bad_fraction=0.15))
    assert list((tmp_path / "out/filelist").iterdir()) == []
    assert (tmp_path / "out/rejected.jsonl").read_text().count("\n") == 3


def test_a_vae_that_answers_nonsense_ends_the_run_early(tmp_path, monkeypatch):
    def nonsense(vae, pixels):
        answer = posterior(vae, pixels)
        answer.mean = answer.mean * float("nan")
        return answer

    monkeypatch.setattr(models.encoders, "encode_posterior", nonsense)
    monkeypatch.setattr(run, "_MAX_BAD_ROWS_AT_START", 4)
    source = make_shapes(tmp_path / "in", [4, 4])
    with pytest.raises(RunError, match=r"none of the first 4 rows .*part-000000\.gz the first was row 1: moments"):
        precompute(options(source, tmp_path / "out"))
    assert len(list((tmp_path / "out/latents").glob("*.gz"))) == 1


def test_what_fails_on_the_way_ends_with_one_line(tmp_path, monkeypatch):
    source = make_shapes(tmp_path / "in", [2, 2])

    def fails(error, message):
        def write(task, *rest):
            raise error

        with monkeypatch.context() as patch, pytest.raises(RunError, match=message):
            patch.setattr(run, "write_part", write)
            precompute(options(source, tmp_path / "out"))

    fails(MemoryError("\n\nOut of memory error on GPU 0\n"), "^Out of memory error on GPU 0; lower --batch_size")
    fails(PartError("in/part-1.gz: no such part"), "^in/part-1.gz: no such part; the same command resumes")
    fails(KeyboardInterrupt(), "^stopped by Ctrl-C; the same command resumes")
    fails(OSError(28, "No space left", "out/x"), "^out/x: No space left; mend that")


def test_a_missing_part_is_reported_and_the_others_keep_their_numbers(tmp_path):
    source = make_shapes(tmp_path / "in", [3] * 9)
    for suffix in (".gz", ".gz.idx"):
        (tmp_path / f"in/part-000001{suffix}").unlink()
    file_list, report = precompute(options(source, tmp_path / "out", max_bad_fraction=0.2))
    assert report["outcomes"] == {"cached": 24, "bad: part unreadable": 1}
    numbers = [int(part[-9:-3]) for part in read_file_list(file_list)[0].parts]
    assert numbers == [1, 3, 4, 5, 6, 7, 8, 9]
    assert '"row": null' in (tmp_path / "out/rejected.jsonl").read_text()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"resolution": 30}, "--resolution 30: the VAE divides it by 8"),
        ({"model_max_length": 78, "cache_text": True}, "--model_max_length 78: .* positions for"),
        ({"num_crops": 0}, "num_crops=0; expected at least 1"),
        ({"crop": "centre", "num_crops": 2}, "--num_crops 2 with --crop centre"),
        ({"crop": "top"}, "crop='top'; expected one of"),
        ({"ray_address": "auto"}, "--ray_address auto needs --engine ray"),
        ({"check": -1}, "check=-1"),
        ({"output_name": "a/b"}, "output_name='a/b'"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, flags, message):
    source = make_shapes(tmp_path / "in", [1])
    with pytest.raises(InputError, match=message):
        precompute(options(source, tmp_path / "out", **flags))


def test_a_cache_is_not_cached_again(tmp_path):
    file_list, _ = precompute(options(make_shapes(tmp_path / "in", [2]), tmp_path / "out"))
    with pytest.raises(InputError, match="is a cache of latents; name the list of the images"):
        precompute(options(file_list, tmp_path / "again"))


def test_the_flags_of_the_script_are_the_options(tmp_path):
    from sd.commands.cache import parse_arguments

    assert parse_arguments(["--file_list", "a", "--output_path", "b"]) == CacheOptions("a", "b")
