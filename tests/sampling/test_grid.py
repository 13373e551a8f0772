"""The labelled grid: every picture is there, unchanged, in its place, and its labels fit."""

import numpy as np

from sd.sampling.grid import _GAP, columns_for, labelled_sheet, labelled_table


def flat(height, width, colour):
    return np.full([height, width, 3], colour, np.uint8)


def places(sheet, colour):
    """(first row, first column, rows, columns) of the one rectangle of a colour."""
    y, x = np.nonzero((np.asarray(sheet) == colour).all(-1))
    rows, columns = np.ptp(y) + 1, np.ptp(x) + 1
    assert len(y) == rows * columns
    return y.min(), x.min(), rows, columns


def test_table_holds_each_picture_once_in_its_place():
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (90, 90, 0)]]
    sheet = labelled_table(
        [[flat(32, 48, colour) for colour in row] for row in colours],
        row_labels=["first prompt", "second"],
        column_labels=["A", "B"],
        title="a title",
    )
    actual = [[places(sheet, colour) for colour in row] for row in colours]
    # 48 pixels are enlarged three times, the first size at or above 144.
    assert {place[2:] for row in actual for place in row} == {(96, 144)}
    assert actual[0][0][0] == actual[0][1][0] < actual[1][0][0] == actual[1][1][0]
    assert actual[0][1][1] - actual[0][0][1] == 144 + _GAP
    # Something is written above and to the left of the pictures.
    dark = (np.asarray(sheet) < 100).all(-1)
    assert dark[: actual[0][0][0]].any() and dark[:, : actual[0][0][1]].any()


def test_pixels_survive_the_enlargement():
    noise = np.random.default_rng(0).integers(0, 256, [40, 40, 3], dtype=np.uint8)
    sheet = np.asarray(labelled_table([[noise]]))
    assert (sheet[_GAP : _GAP + 160 : 4, _GAP : _GAP + 160 : 4] == noise).all()


def test_sheet_fills_rows_and_keeps_other_sizes():
    colours = [(10 * i + 30, 0, 250) for i in range(5)]
    sheet = labelled_sheet([flat(150, 150, c) for c in colours[:-1]] + [flat(75, 150, colours[-1])], list("abcde"))
    assert columns_for(5) == 3
    actual = [places(sheet, colour) for colour in colours]
    assert len({place[0] for place in actual[:3]}) == 1 and actual[3][0] == actual[4][0] > actual[0][0]
    assert actual[4][2:] == (75, 150)


def test_large_sheets_stay_below_their_limit():
    sheet = labelled_table([[np.zeros([512, 512, 3], np.uint8)] * 40] * 20)
    assert sheet.width * sheet.height < 60_000_000
