"""An input that is not there: the line says what may be meant."""

import pytest

from sd.data.packing.options import PackOptions
from sd.data.packing.packer import pack
from sd.data.scores import read_scores
from sd.errors import InputError


@pytest.mark.parametrize(
    ("path", "input_format", "says"),
    [
        ("coco_data/coco_data.jsonl", "jsonl", "coco_data stands beside PaddleMIX's example"),
        ("./coco_data", "folder", "coco_data stands beside PaddleMIX's example"),
        ("pictures/data.json", "jsonl", "No such file or directory; did you mean pictures/data.jsonl?"),
        ("picture", "folder", "No such file or directory; did you mean pictures?"),
        ("./picture", "folder", "No such file or directory; did you mean ./pictures?"),
        ("pictures/shard.tar", "webdataset", r"no such file, .*; did you mean pictures/shards.tar?"),
        ("elsewhere/quite.jsonl", "jsonl", "No such file or directory"),
    ],
)
def test_what_may_be_meant_is_named(tmp_path, monkeypatch, path, input_format, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("data.jsonl", "shards.tar"):
        (tmp_path / "pictures" / name).touch()
    with pytest.raises(InputError, match=f"^--input_path {path}: .*{says}"):
        pack(PackOptions(input_path=path, output_path="out", input_format=input_format))


def test_a_table_of_scores_is_not_called_an_input_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.parquet").touch()
    with pytest.raises(InputError, match=r"^score.parquet: no such file; did you mean scores.parquet\?$"):
        read_scores("score.parquet", ["url"], None)
