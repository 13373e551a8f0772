"""Write docs/architecture.svg: five bands from captioned pictures to a pipeline folder.

python docs/draw_architecture.py
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, STRIP, COLUMN, BOX = 1000, 128, 218, 196  # page, left strip with titles, pitch of the columns, width of a box
TITLE, LINE = 14, 12.5  # font sizes
INK, GREY = "#222", "#555"


class Picture:
    """SVG elements, drawn in the order of the calls."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.elements = [f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']

    def text(self, x: float, y: float, text: str, size: float, anchor: str = "middle", **style: str) -> None:
        """One line of text, its baseline at y."""
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
        )

    def band(self, y: int, height: int, colour: str, title: str, *lines: str) -> None:
        """A coloured band over the whole width, its title and script names in the strip at the left."""
        self.elements.append(f'<rect x="6" y="{y}" width="{WIDTH - 12}" height="{height}" rx="10" fill="{colour}"/>')
        self.text(18, y + 26, title, 15, "start", font_weight="bold", fill=INK)
        for number, line in enumerate(lines):
            self.text(18, y + 46 + 16 * number, line, 11.5, "start", fill=GREY)

    def box(self, column: int, y: int, height: int, fill: str, title: str, *lines: str, dashed: bool = False) -> None:
        """A box in one of the four columns, text centred."""
        x = STRIP + COLUMN * column
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.elements.append(
            f'<rect x="{x}" y="{y}" width="{BOX}" height="{height}" rx="8" fill="{fill}" stroke="{GREY}"{dash}/>'
        )
        top = y + (height - 17 * len(lines)) / 2 + 5
        self.text(x + BOX / 2, top, title, TITLE, font_weight="bold", fill=INK)
        for number, line in enumerate(lines, 1):
            self.text(x + BOX / 2, top + 17 * number, line, LINE, fill="#333")

    def arrow(self, path: str, dashed: bool = False) -> None:
        """A line with a head at its end; `path` is SVG's."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.elements.append(
            f'<path d="{path}" fill="none" stroke="#444" stroke-width="1.6" marker-end="url(#a)"{dash}/>'
        )

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            'font-family="Helvetica, Arial, sans-serif">\n'
            '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="#444"/></marker></defs>'
        )
        return "\n".join([head, *self.elements, "</svg>"]) + "\n"


def left(column: int) -> int:
    """x of a column's left edge."""
    return STRIP + COLUMN * column


def right(column: int) -> int:
    """x of a column's right edge."""
    return left(column) + BOX


def middle(column: int) -> int:
    """x of a column's middle."""
    return left(column) + BOX // 2


def draw() -> Picture:
    """The picture: packing to the right, reading to the left, training to the right, use below."""
    picture = Picture(822)
    picture.band(6, 198, "#eef3fa", "Pack", "create_", "pretraining_", "data.py")
    picture.band(218, 118, "#f1f1f6", "Cache", "optional:", "precompute_", "latents.py")
    picture.band(366, 128, "#eef7ee", "Stream", "data workers:", "NumPy and", "bytes only")
    picture.band(508, 188, "#fdf4e9", "Train", "train.sh", "train_multi.sh")
    picture.band(726, 90, "#f6f1fa", "Use", "from any", "checkpoint")

    blue, green, orange, violet = "#d9e6f6", "#d8eed8", "#fae0c2", "#e6daf2"
    picture.box(
        0, 20, 100, "#fff", "images, captions", "JSONL, folders, CSV, TSV,", "tar shards, parquet;", "local or s3://"
    )
    picture.box(1, 20, 100, blue, "packer", "process pool or Ray;", "checks, limits;", "one outcome a row")
    picture.box(2, 20, 100, "#fff", "parts", "a gzip member a row;", "index: offset, size,", "checksum; columns")
    picture.box(3, 20, 100, "#fff", "file lists", "written last, with", "report.json; a weight", "and filter a source")
    for column in range(3):
        picture.arrow(f"M{right(column)} 70H{left(column + 1) - 2}")
    picture.box(1, 136, 54, blue, "sd.data.columns", "joins scores by a key")
    picture.box(2, 136, 54, blue, "sd.data.duplicates", "hashes; writes a column")
    picture.box(3, 136, 54, blue, "sd.data.inspect", "statistics, contact sheet")
    picture.arrow(f"M{right(1)} 163H{left(2) - 11}V104H{left(2) - 2}")
    picture.arrow(f"M{middle(2)} 136V122")
    picture.arrow(f"M{middle(3)} 120V134")

    picture.box(0, 232, 90, "#fff", "--check", "decodes rows and compares", "them with their images", dashed=True)
    picture.box(
        1,
        232,
        90,
        "#fff",
        "cached parts",
        "the same rows and lists;",
        "mean, log-variance,",
        "text states",
        dashed=True,
    )
    picture.box(2, 232, 90, "#e2e2ee", "encode once", "frozen VAE and", "text encoder;", "ranks or Ray", dashed=True)
    picture.arrow(f"M{right(3) + 12} 277H{right(2) + 2}", dashed=True)
    picture.arrow(f"M{left(2)} 277H{right(1) + 2}", dashed=True)
    picture.arrow(f"M{left(1)} 277H{right(0) + 2}", dashed=True)
    picture.arrow(f"M{middle(1)} 322V351H{middle(3) - 30}V378", dashed=True)
    picture.arrow(f"M{right(3)} 70h12V351H{middle(3) + 30}V378")

    picture.box(
        3, 380, 100, green, "order", "filters, then buckets;", "sample s \u2192 lane, window, row:", "integers only"
    )
    picture.box(
        2, 380, 100, green, "read one row", "one seek by the index;", "a bad row is counted,", "named, replaced"
    )
    picture.box(1, 380, 100, green, "sample", "decode, resize, crop,", "tokenise; all draws from", "rng(seed, s)")
    picture.box(0, 380, 100, "#fff", "batch", "uint8 pixels or moments,", "token ids, noise,", "timesteps")
    for column in (3, 2, 1):
        picture.arrow(f"M{left(column)} 430H{right(column - 1) + 2}")
    picture.arrow(f"M{middle(0)} 480V520")

    picture.box(
        0,
        522,
        90,
        "#ececec",
        "frozen models",
        "VAE \u2192 latents",
        "text encoder \u2192 states",
        "(not loaded with a cache)",
    )
    picture.box(1, 522, 90, orange, "UNet", "predicts noise or v;", "loss weights over", "timesteps")
    picture.box(2, 522, 90, orange, "step", "AdamW, moving average;", "a NaN or infinite step", "is skipped")
    picture.box(
        3, 522, 90, "#fff", "checkpoint", "manifest, fsync, rename;", "holds s: a resume", "reads nothing again"
    )
    for column in range(3):
        picture.arrow(f"M{right(column)} 567H{left(column + 1) - 2}")
    picture.box(0, 628, 56, "#fff", "sd.doctor", "dry run of the same flags")
    picture.box(1, 628, 56, "#fff", "validation", "fixed records and noise")
    picture.box(2, 628, 56, "#fff", "VisualDL, report.png", "scalars, pictures")
    picture.arrow(f"M{middle(1)} 612V626")
    picture.arrow(f"M{middle(2)} 612V626")
    picture.arrow(f"M{right(1)} 656H{left(2) - 2}")

    bus = 711
    uses = [
        ("export.py", "a folder for ppdiffusers", "or diffusers, or one file"),
        ("app.py", "web page; the files of", "eval.py, byte for byte"),
        ("eval.py --metrics, --watch", "FID, CMMD, CLIP score", "over guidance and steps"),
        ("eval.py", "pictures, grids;", "the same to the last bit"),
    ]
    for column, (title, *lines) in enumerate(uses):
        picture.box(column, 738, 66, violet, title, *lines)
        start = f"M{middle(3)} 612" if column == 3 else f"M{middle(column + 1)} {bus}H{middle(column)}"
        picture.arrow(f"{start}V736")
    return picture


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(draw().svg(), encoding="utf-8")
