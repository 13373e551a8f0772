"""A cache with aspect-ratio buckets: rows of the sizes of their buckets, the check, flips, and what cannot be."""

import io

import numpy as np
import pytest
from PIL import Image

from demo.shapes import caption_of, example
from sd.data.parts.moments import decode_payload, find_manifest
from sd.data.parts.part import PartReader, PartWriter, load_index
from sd.data.parts.record import decode_row, encode_row
from sd.errors import InputError
from sd.latents.run import precompute
from tests.data_maker import write_lists
from tests.latent_maker import options

SIZES = [(48, 80), (64, 64), (80, 48)]


@pytest.fixture(scope="module")
def file_list(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    with PartWriter(folder / "part-000000.gz") as part:
        for number in range(14):
            pixels, labels = example(number, 0, SIZES)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            size = (16, 16) if number == 5 else pixels.shape[1::-1]  # an index that lies, so that a row is too small
            part.add(encode_row(caption_of(*labels), buffer.getvalue()), *size)
    return write_lists(folder, (1.0, [folder / "part-000000.gz"]))


def test_each_row_is_cached_at_its_bucket_and_checked(file_list, tmp_path, capsys):
    made = precompute(
        options(file_list, tmp_path, aspect_buckets="24x40,32x32,40x24", flip=True, num_crops=2, check=7, batch_size=3)
    )
    name, report = made
    assert report["outcomes"] == {"cached": 13, "filtered: image too small": 1}
    manifest = find_manifest(name)
    assert manifest.sizes == ((24, 40), (32, 32), (40, 24))
    assert manifest.latent_shapes == [(4, 5, 3), (4, 4, 4), (4, 3, 5)]
    index = load_index(tmp_path / "latents/part-000001.gz")
    with PartReader(tmp_path / "latents/part-000001.gz", index) as reader:
        for row in range(14):
            width, height = int(index.widths[row]), int(index.heights[row])
            if row == 5:
                assert (width, height) == (16, 16)
                continue
            assert (2 * width, 2 * height) == SIZES[row % 3]
            moments, _ = decode_payload(decode_row(reader.read(row)).image)
            assert moments.shape == (4, 8, height // 8, width // 8) and not np.array_equal(moments[0], moments[1])
    assert capsys.readouterr().out.count("PSNR") == 7


def test_a_list_of_sizes_in_any_order_is_the_same_cache(file_list, tmp_path):
    name, _ = precompute(options(file_list, tmp_path, aspect_buckets="40x24,24x40,32x32"))
    manifest = find_manifest(name)
    assert manifest.aspect_buckets == "24x40,32x32,40x24"
    assert manifest.differences(aspect_buckets="32x32,40x24,24x40") == []
    assert manifest.differences(aspect_buckets="32x32") == ["aspect_buckets was 24x40,32x32,40x24, is 32x32"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"aspect_group_size": 4}, "--aspect_group_size 4 needs --aspect_buckets"),
        ({"aspect_buckets": "30x34,32x32"}, "bucket 30x34: the VAE divides its sides by 8"),
        ({"aspect_buckets": "0"}, "expected at least 1"),
        ({"aspect_buckets": "3"}, "no sub-folder 'unet'|unet"),
    ],
)
def test_wrong_bucket_flags_are_refused(file_list, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        precompute(options(file_list, tmp_path, **flags))


def test_a_number_of_buckets_reads_the_unets_configuration(file_list, tmp_path):
    unet = "demo/unet_config.json"
    name, _ = precompute(options(file_list, tmp_path, aspect_buckets="3", unet_name_or_path=unet, aspect_group_size=5))
    manifest = find_manifest(name)
    assert manifest.aspect_buckets == "24x40,32x32,40x24"
    index = load_index(tmp_path / "latents/part-000001.gz")
    sizes = set(zip(index.widths.tolist(), index.heights.tolist(), strict=True)) - {(16, 16)}
    assert len(sizes) == 2  # buckets of 5, 5 and 3 rows: the last goes to a neighbour


def test_caches_of_squares_keep_their_names(file_list, tmp_path):
    """`aspect_buckets` is no setting where there are none, or caches made before would be of other settings."""
    name, _ = precompute(options(file_list, tmp_path))
    assert not {"aspect_buckets", "aspect_group_size"} & find_manifest(name).settings().keys()
