"""Files of pictures: what an interruption and a kill leave behind."""

import os

import numpy as np
import pytest

from sd.errors import RunError
from sd.sampling.files import make_folder, write_png, written


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(5, "Input/output error")])
def test_an_interrupted_picture_leaves_nothing(tmp_path, error):
    write_png(tmp_path / "x.png", np.zeros((4, 4, 3), np.uint8))
    before = (tmp_path / "x.png").read_bytes()
    with pytest.raises(RunError if isinstance(error, OSError) else error), written(tmp_path / "x.png") as aside:
        aside.write_bytes(b"half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").read_bytes() == before


def test_what_a_kill_left_is_removed_by_the_next_run_but_not_what_is_being_written(tmp_path):
    old, new, other = tmp_path / "a.png.0123abcd.tmp", tmp_path / "b.png.4567cdef.tmp", tmp_path / "notes.tmp"
    for path in (old, new, other):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    make_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, other.name}
