"""Tar archives of any make: every image is an item of its own with its own caption, and what is missing is said."""

import gzip
import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.data.packing.outcomes import BadRow, NotDownloaded
from sd.data.packing.sources.find import expand_braces, find_inputs
from sd.data.packing.sources.tar import list_members
from sd.data.packing.sources.webdataset import WebdatasetSource
from sd.errors import InputError

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def outcomes(path, caption_key="caption"):
    """(image member or None, caption or reason, image bytes or detail) of each item of the shards."""
    source = WebdatasetSource(str(path), (caption_key,))
    actual = []
    with source.open() as loader:
        for item, _ in source.items():
            try:
                loaded = loader.load(item)
                result = loaded.captions[0][1], loaded.image
            except BadRow as row:
                result = row.reason, row.detail
            actual.append((item.image and item.image.name, *result))
    return actual


def pair(stem, suffix="jpg"):
    return [(f"{stem}.{suffix}", f"image {stem}".encode()), (f"{stem}.txt", f"caption {stem}".encode())]


def packed(*stems, suffix="jpg"):
    return [(f"{stem}.{suffix}", f"caption {stem}", f"image {stem}".encode()) for stem in stems]


# -- grouping -------------------------------------------------------------------------------------------------------

STEMS = [
    "v2.000060",
    "v2.000061",
    "Screenshot 10.11.05",
    "site.com_000001",
    "a/0001",
    "b/0001",
    "./c.d/e",
    "猫.1",
    "._f",
]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_member_names_keep_their_dots(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", [member for stem in STEMS for member in pair(stem)], kind)
    assert outcomes(path) == packed(*STEMS)


stems = st.lists(st.sampled_from(["a", "a.b", "a.b.c", "a.jpg", "d/a", "d.e/a", "A", " a", "2.0", "猫"]), unique=True)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_archive_has_an_outcome_for_each_image_and_merges_nothing(tmp_path_factory, data):
    """Members of distinct names in any order; a sample may lack its caption or its image, or have two of them."""
    members = []
    for stem in data.draw(stems):
        for suffix in data.draw(st.lists(st.sampled_from(["jpg", "png", "JPEG", "webp"]), unique=True)):
            members.append((f"{stem}.{suffix}", f"image {stem}.{suffix}".encode()))
        if data.draw(st.booleans()):
            members.append((f"{stem}.txt", f"caption {stem}".encode()))
        if data.draw(st.booleans()):
            members.append((f"{stem}.cls", b"7"))
    members = data.draw(st.permutations(members))
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", members)
    images = [name for name, _ in members if name.rpartition(".")[2].lower() in ("jpg", "png", "jpeg", "webp")]
    captions = {name[:-4] for name, _ in members if name.endswith(".txt")}
    actual = outcomes(path)
    assert sorted(name for name, *_ in actual if name) == sorted(images)
    for name, caption, image in actual:
        if name is None:
            assert caption == "no image in the shard"
            continue
        stem = name.rpartition(".")[0]
        if stem in captions:
            assert (caption, image) == (f"caption {stem}", f"image {name}".encode())
        elif name in captions:  # `a.jpg.txt` beside `a.jpg`
            assert caption in ("no caption in the shard", f"caption {name}")
        else:
            assert caption == "no caption in the shard"


def test_members_that_are_not_side_by_side_belong_together(tmp_path):
    members = [pair(str(n)) for n in range(5)]
    apart = [image for image, _ in members] + [text for _, text in reversed(members)]
    assert outcomes(write_tar(tmp_path / "a.tar", apart)) == packed(*"01234")


def test_of_names_that_come_again_neighbours_are_a_sample(tmp_path):
    again = [("1.jpg", b"other"), ("1.txt", b"another")]
    path = write_tar(tmp_path / "a.tar", [*pair("1"), *pair("2"), *again])
    assert outcomes(path) == [*packed("1"), *packed("2"), ("1.jpg", "another", b"other")]
    path = write_tar(tmp_path / "b.tar", [("1.jpg", b"lone"), *again])
    assert outcomes(path) == [
        ("1.jpg", "no caption in the shard", "neither 1.json nor 1.txt is in it"),
        ("1.jpg", "another", b"other"),
    ]


def test_metadata_of_macos_is_no_member(tmp_path):
    members = [(f"{folder}._{name}", APPLE_DOUBLE) for folder in ("", "__MACOSX/") for name in ("0.jpg", "0.txt")]
    path = write_tar(
        tmp_path / "a.tar", [*members[:1], *pair("0"), *members[1:], *pair("1"), ("._1.json", APPLE_DOUBLE)]
    )
    assert outcomes(path) == packed("0", "1")


def test_links_are_followed_within_the_archive(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [*pair("d/0"), ("e/1.txt", b"one"), ("e/2.txt", b"two"), ("e/3.txt", b"three")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in [
            ("e/1.jpg", tarfile.LNKTYPE, "d/0.jpg"),
            ("e/2.jpg", tarfile.SYMTYPE, "../d/0.jpg"),
            ("e/3.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    assert outcomes(path) == [
        *packed("d/0"),
        ("e/1.jpg", "one", b"image d/0"),
        ("e/2.jpg", "two", b"image d/0"),
        ("e/3.jpg", "the member cannot be read", "a link to /etc/passwd, which is no file of the archive"),
    ]


# -- captions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({"caption": "json"}, b"text", "json"),
        ({"caption": None}, b"text", "text"),
        ({"caption": ["a", "b"]}, b"text", "a"),
        ({"caption": ["a", 1]}, b"text", "text"),
        ({"other": "json"}, b"text", "text"),
        ({"caption": None}, None, "'caption' is not text"),
        (None, "\ufeff有标记".encode("utf-16"), "有标记"),
        (None, b"\xef\xbb\xbfwith a mark", "with a mark"),
        (None, "红色的圆".encode("gbk"), "红色的圆"),
        (None, "Ein Mädchen läuft".encode("cp1252"), "text of another encoding"),
        (None, "utf-16".encode("utf-16-le"), "text of another encoding"),
    ],
)
def test_the_caption_is_the_json_members_text_else_that_of_the_text_member(tmp_path, fields, text, expected):
    members = [("1.jpg", b"image")]
    members += [("1.json", json.dumps(fields).encode())] if fields else []
    members += [("1.txt", text)] if text else []
    [(_, caption, _)] = outcomes(write_tar(tmp_path / "a.tar", members))
    assert caption == expected


def test_a_caption_may_be_named_after_the_whole_image(tmp_path):
    assert outcomes(write_tar(tmp_path / "a.tar", [("1.jpg", b"image"), ("1.jpg.txt", b"text")])) == [
        ("1.jpg", "text", b"image")
    ]


def test_what_img2dataset_did_not_download_is_no_bad_row(tmp_path):
    members = [("1.json", json.dumps({"status": "failed_to_download", "error_message": "HTTP 404"}).encode())]
    assert outcomes(write_tar(tmp_path / "a.tar", members)) == [(None, "failed_to_download", "HTTP 404")]
    source = WebdatasetSource(str(tmp_path / "a.tar"), ("caption",))
    [(item, _)] = source.items()
    with source.open() as loader, pytest.raises(NotDownloaded):
        loader.load(item)


# -- whole or not ---------------------------------------------------------------------------------------------------


def test_an_archive_truncated_anywhere_is_reported(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", [member for n in range(4) for member in pair(str(n))]).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    assert list_members(io.BytesIO(whole))[1] == "" == list_members(io.BytesIO(whole[: end + 512]))[1]
    names = [name for n in range(4) for name, _ in pair(str(n))]
    for size in range(0, end + 512, 256):
        members, damage = list_members(io.BytesIO(whole[:size]))
        assert damage, size
        assert [member.name for member in members] == names[: len(members)]
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[: 4 * 1024])  # after the second sample
    assert outcomes(path) == [
        *packed("0", "1"),
        (None, "the shard is damaged", "cut at byte 4096: the end mark is missing, after 1.txt"),
    ]


def test_a_damaged_header_between_samples_is_reported(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", [*pair("0"), *pair("1"), *pair("2")]).read_bytes())
    data[2048:2560] = b"?" * 512
    members, damage = list_members(io.BytesIO(data))
    assert len(members) == 2
    assert damage == "damaged at byte 2048: neither a header nor the end mark, after 0.txt"


def test_concatenated_archives_are_read_whole(tmp_path):
    one, two = (write_tar(tmp_path / f"{n}.tar", pair(str(n))).read_bytes() for n in range(2))
    path = tmp_path / "both.tar"
    path.write_bytes(one + two)
    assert outcomes(path) == packed("0", "1")
    path.write_bytes(one + b"?" * 512)
    assert outcomes(path)[1][1] == "the shard is damaged"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b"a" * 2000, mtime=0), "it is compressed with gzip; unpack it to a plain tar"),
        (b"no tar" * 200, "truncated header"),
    ],
)
def test_what_is_no_archive_is_one_outcome_among_good_ones(tmp_path, data, message):
    write_tar(tmp_path / "0.tar", pair("0"))
    (tmp_path / "1.tar").write_bytes(data)
    write_tar(tmp_path / "2.tar", pair("2"))
    first, (image, reason, detail), last = outcomes(tmp_path)
    assert [first, last] == packed("0", "2") and (image, reason) == (None, "the shard is damaged")
    assert message in detail or data.startswith(b"no tar")


def test_the_share_done_ends_at_one(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [member for n in range(shard + 1) for member in pair(str(n))])
    shares = [share for _, share in WebdatasetSource(str(tmp_path), "caption").items()]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1.0


# -- finding shards -------------------------------------------------------------------------------------------------


def test_braces_are_those_of_the_shell():
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain{x}.tar") == ["plain{x}.tar"]
    with pytest.raises(InputError, match="stand for 10000001 names"):
        expand_braces("{0..10000000}.tar")


def test_shards_are_found_in_folders_and_by_braces(tmp_path):
    for name in ("0.tar", "sub/1.tar", "sub/deep/2.tar", "sub/._1.tar", "03.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, pair(name))
    names = ["0.tar", "03.tar", "sub/1.tar", "sub/deep/2.tar"]
    assert find_inputs(str(tmp_path), ".tar") == [str(tmp_path / name) for name in names]
    assert find_inputs(f"{tmp_path}/{{0,sub/1}}.tar", ".tar") == [f"{tmp_path}/0.tar", f"{tmp_path}/sub/1.tar"]
    actual = outcomes(f"{tmp_path}/{{02..04}}.tar")
    assert [reason for _, reason, _ in actual] == ["the shard is damaged", "caption 03.tar", "the shard is damaged"]
    assert actual[0][2] == "no such file"
    with pytest.raises(InputError, match="no such file, nor a folder or glob"):
        find_inputs(f"{tmp_path}/{{5..6}}.tar", ".tar")
