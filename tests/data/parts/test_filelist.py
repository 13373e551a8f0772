"""File lists: what is written is read back, weights and repeats count, wrong lists are refused by name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd.data.parts.filelist import Source, _divide_repeats, read_file_list, write_file_lists
from sd.errors import InputError

names = st.lists(st.sampled_from([f"out/part-{n:06d}.gz" for n in range(1, 9)]), min_size=1, unique=True)


@given(parts=names, num_repeat=st.integers(1, 7))
def test_repeats_of_the_whole_list_are_divided_out(tmp_path_factory, parts, num_repeat):
    folder = tmp_path_factory.mktemp("lists")
    path = write_file_lists(str(folder), "custom_dataset", parts, num_repeat)
    assert path == f"{folder}/custom_dataset.filelist.list"
    assert (folder / "custom_dataset.filelist").read_text().splitlines() == parts * num_repeat
    assert read_file_list(path) == [Source(1.0, parts)]


def test_unequal_repeats_keep_their_ratio():
    assert _divide_repeats(["a", "b", "b", "a", "b", "b"]) == ["a", "b", "b"]


def test_weights_and_paths_with_spaces_are_read(tmp_path):
    for name in ("one.filelist", "my two.filelist", "three 3"):
        (tmp_path / name).write_text(f"{name} part\r\n\n")
    lists = tmp_path / "all.list"
    lists.write_text(f"{tmp_path}/one.filelist 2.5\n\n{tmp_path}/my two.filelist\n{tmp_path}/three 3 1e-1\n")
    assert read_file_list(lists) == [
        Source(2.5, ["one.filelist part"]),
        Source(1.0, ["my two.filelist part"]),
        Source(0.1, ["three 3 part"]),
    ]


def test_wrong_lists_are_refused_by_name(tmp_path):
    def fails(message, path):
        with pytest.raises(InputError, match=message):
            read_file_list(path)

    fails(r"none\.list: No such file", tmp_path / "none.list")
    (tmp_path / "empty.list").write_text("\n")
    fails(r"empty\.list: the file list is empty", tmp_path / "empty.list")
    (tmp_path / "a.list").write_text("gone.filelist\n")
    fails(r"gone\.filelist: No such file.*named in .*a\.list; relative paths", tmp_path / "a.list")
    (tmp_path / "b.list").write_text(f"{tmp_path}/empty.list\n")
    fails(r"empty\.list: names no part", tmp_path / "b.list")
    for weight in ("0", "-1", "nan", "inf"):
        (tmp_path / "c.list").write_text(f"x.filelist {weight}\n")
        fails(rf"weight {weight} of x\.filelist", tmp_path / "c.list")
    (tmp_path / "d.list").write_bytes(b"\x1f\x8b\xff\x00")
    fails(r"d\.list: not a text file", tmp_path / "d.list")
    fails(r"Is a directory", tmp_path)


def test_lists_edited_on_windows_are_read(tmp_path):
    (tmp_path / "one.filelist").write_bytes("\ufeffdata/part-1.gz\r\ndata/part 2.gz\r\n".encode())
    (tmp_path / "zwei.filelist").write_bytes("\ufeffdata/部分.gz\r\n".encode("utf-16-le"))
    lists = f"{tmp_path}/one.filelist\t0.5\r\n{tmp_path}/zwei.filelist   2\r\n"
    (tmp_path / "all.list").write_bytes(lists.encode("utf-8-sig"))
    assert read_file_list(tmp_path / "all.list") == [
        Source(0.5, ["data/part-1.gz", "data/part 2.gz"]),
        Source(2.0, ["data/部分.gz"]),
    ]


@pytest.mark.parametrize("output", ["out", "deep/er/out", "{absolute}/out"])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("start", ["elsewhere", ".", "moved/filelist", "/"])
def test_relative_lists_are_read_from_any_folder_and_after_a_move(tmp_path, monkeypatch, output, moved, start):
    monkeypatch.chdir(tmp_path)
    output = output.format(absolute=tmp_path)
    parts = [f"{output}/laion400m_format_data/part-{n:06d}.gz" for n in (1, 2)]
    for folder in ("laion400m_format_data", "filelist"):
        (tmp_path / output / folder).mkdir(parents=True)
    for part in parts[1:]:  # the first was lost
        (tmp_path / part).write_bytes(b"")
    written = write_file_lists(f"{output}/filelist", "mine", parts, 2)
    home = tmp_path / output
    if moved:
        home = home.rename(tmp_path / "moved")
    else:
        (tmp_path / "moved/filelist").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / start)
    [source] = read_file_list(home / "filelist" / written.rpartition("/")[2])
    assert [Path(part).resolve() for part in source.parts] == [
        home / "laion400m_format_data" / Path(part).name for part in parts
    ]
    assert Path(source.name).resolve() == home / "filelist/mine.filelist"
    if moved and start == "moved/filelist":
        assert read_file_list("mine.filelist.list") == [Source(1.0, [f"../{part[-36:]}" for part in parts])]


def test_existing_paths_are_used_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "lists/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "part-1").write_bytes(b"")
    (tmp_path / "lists/a.filelist").write_text("data/part-1\n")
    (tmp_path / "lists/a.list").write_text("a.filelist\n")
    assert read_file_list("lists/a.list")[0].parts == ["data/part-1"]
    (tmp_path / "data/part-1").unlink()
    assert read_file_list("lists/a.list")[0].parts == ["lists/data/part-1"]


def error_of(path):
    """The one line that refuses a list."""
    with pytest.raises(InputError) as caught:
        read_file_list(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_list_is_reported_with_a_remedy_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "laion400m_demo_data.tar.gz" in error_of("./data/filelist/train.filelist.list")
    assert "makes it" not in error_of("my.filelist.list") and "precompute_latents.py" in error_of("cache.filelist.list")
    (tmp_path / "packed/filelist").mkdir(parents=True)
    assert "name the .filelist.list" in error_of("packed")
    (tmp_path / "packed/filelist/a.filelist.list").write_text("gone.filelist\n")
    assert error_of("packed").endswith("name a file list, here packed/filelist/a.filelist.list")
    assert "correct that line of packed/filelist/a.filelist.list" in error_of("packed/filelist/a.filelist.list")


def test_what_is_no_list_of_lists_is_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"caption": "a", "image": "a.png"}\n')
    assert error_of("data.jsonl").startswith("data.jsonl: holds JSON, not paths; pack it (create_pretraining_data.py ")
    for name in ("out/laion400m_format_data/part-000001.gz", "out/laion400m_format_data/part-000001.gz.idx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x1f\x8b\xff\x00")
    (tmp_path / "out/filelist").mkdir()
    written = write_file_lists("out/filelist", "mine", ["out/laion400m_format_data/part-000001.gz"], 1)
    error_of_parts = error_of(written.removesuffix(".list"))
    assert error_of_parts.endswith(f"names parts, so it is one .filelist; name {written}")
    (tmp_path / "alone.filelist").write_text("out/laion400m_format_data/part-000001.gz\n")
    assert error_of("alone.filelist").endswith("name the .filelist.list, which has its path on a line")
    (tmp_path / "out/laion400m_format_data/part-000001.gz.idx").unlink()  # as PaddleMIX writes parts
    assert error_of(written.removesuffix(".list")).endswith(f"name {written}")
    (tmp_path / "README.md").write_text("# A title\n")
    assert "(a file list? they end in .filelist.list)" in error_of("README.md")
    assert error_of("out/filelist/mine.filelst.list").endswith(f"; did you mean {written}?")


def test_a_store_without_credentials_is_one_line(monkeypatch):
    exceptions = pytest.importorskip("botocore.exceptions", reason="needs requirements-s3.txt")
    import fsspec

    class Locked(fsspec.AbstractFileSystem):
        protocol = "locked"

        def info(self, path, **options):
            raise exceptions.NoCredentialsError

    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(InputError, match=r"locked://bucket/a\.list: Unable to locate credentials; ") as caught:
        read_file_list("locked://bucket/a.list")
    assert "\n" not in str(caught.value)
