"""Which font draws which text: European letters everywhere, Chinese by a font of the machine, or a line says so."""

import logging
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from sd import fonts
from sd.data.findings import contact_sheet
from sd.sampling.grid import labelled_sheet


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    fonts._system_fonts.cache_clear()
    monkeypatch.setattr(fonts, "_warned", set())
    monkeypatch.setattr(fonts, "_matched_fonts", [])
    yield
    fonts._system_fonts.cache_clear()


def make_font(path: Path, characters: str) -> None:
    """A TrueType font that draws each of the characters as a triangle, and anything else as nothing."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 900))
    pen.lineTo((900, 0))
    pen.closePath()
    triangle, empty = pen.glyph(), TTGlyphPen(None).glyph()
    names = {ord(character): f"uni{ord(character):04X}" for character in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({".notdef": empty, **dict.fromkeys(names.values(), triangle)})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names.values()), (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Test Letters", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def fontconfig(folder: Path, monkeypatch, *lines: str) -> None:
    """Make fc-list and fc-match answer with these lines, and be the only programs."""
    for name in ("fc-list", "fc-match"):
        program = folder / name
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("text", ["a plain caption", "un café, señor", "рыжий кот", "Ωμέγα"])
def test_european_characters_have_glyphs_without_any_system_font(text, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fonts.missing_characters(frozenset(text), fonts.font_for(text, 13)) == frozenset()


def test_chinese_is_drawn_by_the_font_that_fontconfig_names(tmp_path, monkeypatch, caplog):
    make_font(tmp_path / "letters.ttf", "一只猫a ")
    fontconfig(tmp_path, monkeypatch, f"{tmp_path}/letters.ttf\t65536")  # style number 1 of face 0
    font = fonts.font_for("一只猫 a", 13)
    assert font.getname() == ("Test Letters", "Regular")
    assert fonts.missing_characters(frozenset("一只猫 a"), font) == frozenset()
    monkeypatch.setenv("PATH", "")  # a font that served once is taken again
    assert fonts.font_for("只", 20).getname()[0] == "Test Letters" and fonts.font_for("只", 20).size == 20
    assert caplog.text == ""


def test_signs_that_no_font_has_do_not_take_the_words_along(tmp_path, monkeypatch, caplog):
    make_font(tmp_path / "letters.ttf", "猫")
    fontconfig(tmp_path, monkeypatch, f"{tmp_path}/letters.ttf\t0")
    caplog.set_level(logging.WARNING, logger="sd")
    assert fonts.font_for("猫 \U0001f600", 13).getname()[0] == "Test Letters"
    assert "\U0001f600" in caplog.text and "猫" not in caplog.text


def test_without_a_font_one_line_names_the_package(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    caplog.set_level(logging.WARNING, logger="sd")
    for text in ("一只猫", "两只狗"):
        assert fonts.font_for(text, 13).getname()[0] == fonts.font_for("cat", 13).getname()[0]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "fonts-noto-cjk" in line and "猫" in line


def test_pictures_show_chinese_captions_and_not_boxes(tmp_path, monkeypatch):
    make_font(tmp_path / "letters.ttf", "猫一")
    picture = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setenv("PATH", str(tmp_path))
    sheets = {text: np.asarray(labelled_sheet([picture], [text])) for text in ("猫", "狗")}
    contact = {text: np.asarray(contact_sheet([(picture.transpose(2, 0, 1), text, "p")])) for text in ("猫", "狗")}
    assert (sheets["猫"] == sheets["狗"]).all() and (contact["猫"] == contact["狗"]).all()  # one box each
    fonts._system_fonts.cache_clear()
    fontconfig(tmp_path, monkeypatch, f"{tmp_path}/letters.ttf\t0")
    assert (np.asarray(labelled_sheet([picture], ["猫"])) != sheets["猫"]).any()
    assert (np.asarray(contact_sheet([(picture.transpose(2, 0, 1), "猫", "p")])) != contact["猫"]).any()
