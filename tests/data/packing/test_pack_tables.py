"""CSV and TSV against the csv module and plain splits: quotes, line ends, encodings, and what is wrong with a row."""

import csv
import io
import random

import pytest

from sd.errors import InputError
from tests.data.packing.test_pack_sources import rejected_rows, run
from tests.pack_input import contents, image_bytes

IMAGES = [image_bytes(40 + number, 40, number) for number in range(6)]
LETTERS = {"utf-8": 'ab"",;\n\r\té红|', "utf-8-sig": "é'\",; ", "gb18030": '红的"",;\n\r\t是|'}


pytestmark = pytest.mark.usefixtures("packs_in_process")


@pytest.fixture
def pictures(tmp_path):
    """A folder `in` with 0.png to 5.png, one of them in a sub-folder."""
    (tmp_path / "in/sub").mkdir(parents=True)
    for number, data in enumerate(IMAGES):
        (tmp_path / f"in/{number}.png").write_bytes(data)
    (tmp_path / "in/sub/x.png").write_bytes(IMAGES[0])
    return tmp_path / "in"


def packed(text):
    return text.translate(str.maketrans("\n\r\t", "   "))


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_csv_is_read_as_the_csv_module_reads_it(tmp_path, pictures, delimiter, line_end, encoding):
    draw = random.Random(f"{delimiter}{line_end}{encoding}")
    captions = ["".join(draw.choices(LETTERS[encoding], k=draw.randrange(12))) for _ in range(40)]
    text = io.StringIO(newline="")
    plain = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    quoting = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    plain.writerow(["id", "text", "path"])
    for n, caption in enumerate(captions):  # the module quotes the line end that it writes, no other
        (quoting if {"\n", "\r"} & {*caption} else plain).writerow([n, caption, f"{n % 6}.png"])
    (pictures / "data.csv").write_bytes(text.getvalue().encode(encoding))
    with (pictures / "data.csv").open(newline=None, encoding=encoding) as file:
        expected = [row["text"] for row in csv.DictReader(file, delimiter=delimiter)]
    rows, _ = run(tmp_path, pictures / "data.csv", "csv", caption_key="text", image_key="path", per_part_file_num=7)
    assert rows == [(packed(caption), IMAGES[n % 6]) for n, caption in enumerate(expected)]
    assert len(rows) == 40


def test_tsv_keeps_bare_quotation_marks(tmp_path, pictures):
    lines = [
        "image\tcaption\turl",
        '0.png\t12" vinyl\tx',
        '1.png\t"all ""of"" it"\t',
        "sub/x.png\t\ty",
        "",
        "2.png\tend\t",
    ]
    (pictures / "data.tsv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    rows, _ = run(tmp_path, pictures, "tsv")
    assert rows == [('12" vinyl', IMAGES[0]), ('all "of" it', IMAGES[1]), ("", IMAGES[0]), ("end", IMAGES[2])]


def test_every_row_of_a_table_has_one_outcome(tmp_path, pictures):
    lines = [
        "image,caption,status",
        "0.png,good,success",
        "gone.png,a,success",
        ",never there,failed_to_download",
        ",nothing,success",
        "1.png,one,two,success",
        "1.png",
        '2.png,"good, too",success',
        '3.png,"a" b,success',
        "http://example.com/a.png,c,success",
    ]
    data = "\n".join(lines).encode() + b'\n4.png,Stra\xdfe und Stra\xdfe,success\n5.png,"left open,success\n0.png,x,y'
    (pictures / "data.csv").write_bytes(data)
    rows, report = run(tmp_path, pictures / "data.csv", "csv", max_bad_fraction=1.0)
    assert [caption for caption, _ in rows] == ["good", "good, too", "x"]
    assert {row["line"]: (row["outcome"], row["reason"]) for row in rejected_rows(tmp_path)} == {
        3: ("bad", "image missing"),
        4: ("not downloaded", "failed_to_download"),
        5: ("bad", "no image in the row"),
        6: ("bad", "not a row of the table"),
        7: ("bad", "not a row of the table"),
        9: ("bad", "not a row of the table"),
        10: ("bad", "image missing"),
        11: ("bad", "text of another encoding"),
        12: ("bad", "not a row of the table"),
    }
    details = {row["line"]: row["detail"] for row in rejected_rows(tmp_path)}
    assert "4 fields where the header has 3; put fields that hold a separator into quotation marks" in details[6]
    assert "unexpected end of data: is a quotation mark left open or not doubled?" in details[12]
    assert report["rows"] == sum(report["outcomes"].values()) == 12


@pytest.mark.parametrize("closed", ["", '"quoted, as usual"', '",', '"a" b'])
def test_a_quotation_mark_that_is_left_open_costs_no_row_behind_it(tmp_path, pictures, closed):
    """Also where a later row closes it and is no row then; a field has at most 131,072 characters, of 2,000 rows."""
    lines = [
        "image,caption,n",
        '1.png,"left open,0',
        *(f"0.png,{'row ' * 12}{number},{number}" for number in range(3000)),
    ]
    if closed:
        lines.insert(40, f"2.png,{closed},x")
    lines.append('3.png,"two\nlines",y')
    (pictures / "data.csv").write_text("\n".join(lines) + "\n")
    rows, report = run(tmp_path, pictures / "data.csv", "csv", per_part_file_num=10_000)
    assert sum(caption.startswith("row row") for caption, _ in rows) == 3000
    assert rows[-1] == ("two lines", IMAGES[3])
    assert rejected_rows(tmp_path)[0]["line"] == 2
    assert report["rows"] == sum(report["outcomes"].values()) == 3002 + bool(closed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"the header cannot be read: there is none"),
        (b"a.png,a cat\n", r"data\.csv, line 1: no column 'caption' \(--caption_key\); the header has a\.png, a cat"),
        (b"caption,url\n", r"no column 'image' \(--image_key\); the header has caption, url"),
        (b"caption,image,image\n", r"several columns 'image' \(--image_key\)"),
        ("caption,image\n".encode("utf-16"), "UTF-16, expected UTF-8; convert it: iconv .* > utf8.csv"),
    ],
)
def test_a_table_without_a_header_that_fits_is_refused(tmp_path, pictures, text, message):
    (pictures / "data.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        run(tmp_path, pictures / "data.csv", "csv")


def test_tables_of_several_folders_resume_to_the_same_bytes_and_changes_are_refused(tmp_path, pictures):
    (pictures / "a.csv").write_text("image,caption\n" + "".join(f"{n}.png,a {n}\n" for n in range(6)))
    (pictures / "sub/b.csv").write_text("caption,image\nb,x.png\n")
    rows, _ = run(tmp_path, pictures, "csv")
    assert rows[-1] == ("b", IMAGES[0]) and len(rows) == 7
    whole = contents(tmp_path / "out")
    (tmp_path / "out/laion400m_format_data/part-000002.gz").unlink()
    run(tmp_path, pictures, "csv")
    assert contents(tmp_path / "out") == whole
    (pictures / "sub/x.png").write_bytes(IMAGES[1])
    with pytest.raises(InputError, match=r"part-000002\.gz: its input has changed since"):
        run(tmp_path, pictures, "csv")
