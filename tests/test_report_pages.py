"""Covers: solver/reports/fonts, solver/reports/examples_page, solver/reports/html_page. Letters that fonts lack, labels
with folders, missed images and the parts of a report.
"""

import base64
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from test_report import made_up_result, ranked_query, write_image

from solver.reports import fonts
from solver.reports.examples_page import RESULTS_PER_QUERY, write_report
from solver.reports.fonts import font_for, load_font, without_glyph
from solver.reports.grid import draw_grid, shorten_front, write_grid
from solver.reports.html_page import html_table, page
from solver.reports.results import Provenance

PROVENANCE = Provenance(checkpoint="c", checkpoint_fingerprint="f", selected_on="", dataset="d", data_fingerprint="e")
CHINESE = "漢字"


def bar(left: int, right: int) -> object:
    pen = TTGlyphPen(None)
    pen.moveTo((left, 0))
    for point in ((left, 800), (right, 800), (right, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def write_font(path: Path, letters: str) -> None:
    """Write a font in which a missing letter is a thin bar and each of `letters` a wide one."""
    names = {ord(letter): f"u{ord(letter):04X}" for letter in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf({".notdef": bar(100, 200), **{name: bar(100, 900) for name in names.values()}})
    builder.setupHorizontalMetrics({name: (1000, 100) for name in (".notdef", *names.values())})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def file_of(text: str) -> str:
    return str(getattr(font_for(text, 12), "path", ""))


@pytest.fixture
def font_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "fonts"
    (folder / "truetype").mkdir(parents=True)
    (folder / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "FONT_FOLDERS", (str(folder),))
    fonts._file_for.cache_clear()
    yield folder
    fonts._file_for.cache_clear()


def test_chinese_is_drawn_with_an_installed_font_that_has_it(font_folder: Path, tmp_path: Path) -> None:
    write_font(font_folder / "truetype" / "half.ttf", CHINESE[0])
    write_font(font_folder / "truetype" / "whole.ttf", CHINESE + "a")
    assert file_of("latin") == getattr(load_font(12), "path", "")
    assert Path(file_of(f"a {CHINESE}")).name == "whole.ttf"
    assert without_glyph(["latin é Ж", CHINESE]) == ""
    image = write_image(tmp_path / "a.png")
    drawn = np.asarray(draw_grid([ranked_query([image], [None], CHINESE * 3)], "t", "s"), dtype=int)
    plain = np.asarray(draw_grid([ranked_query([image], [None], "a")], "t", "s"), dtype=int)
    # Wide bars of ink in the box of the text: 6 letters of about 10 x 10 pixels.
    assert (drawn.sum(axis=2) < 150).sum() - (plain.sum(axis=2) < 150).sum() > 300


def test_letters_that_no_font_has_are_said(font_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = write_image(tmp_path / "a.png")
    assert sorted(without_glyph(["a", CHINESE, CHINESE])) == sorted(CHINESE)
    with caplog.at_level(logging.WARNING):
        write_grid(tmp_path / "plain.png", [ranked_query([image], [None], "plain")], "t", "s")
        assert not caplog.records
        write_grid(tmp_path / "grid.png", [ranked_query([image], [None], CHINESE)], "t", "s")
    assert "boxes" in caplog.text and "2 different" in caplog.text and "Noto" in caplog.text
    rows = [ranked_query([image], [None], "plain")], [ranked_query([image], [None], CHINESE)]
    plain, lost = (draw_grid(row, "t", "s") for row in rows)
    red = [
        (np.asarray(picture)[:, :, 0] > np.asarray(picture)[:, :, 1].astype(int) + 100).sum()
        for picture in (plain, lost)
    ]
    assert lost.height > plain.height and red[0] == 0 and red[1] > 50


def test_labels_carry_the_folder(tmp_path: Path) -> None:
    paths = []
    for person in ("p3", "p4"):
        (tmp_path / person).mkdir()
        paths.append(write_image(tmp_path / person / "1.jpg"))
    text = page("t", {}, {"": [ranked_query(paths, [None, None])]})
    assert '<div class="name">p3/1.jpg</div>' in text and '<div class="name">p4/1.jpg</div>' in text
    # Names alone would give equal pictures.
    (tmp_path / "q5").mkdir()
    other = [paths[0], write_image(tmp_path / "q5" / "1.jpg")]
    drawn = [np.asarray(draw_grid([ranked_query(names, [None, None])], "t", "s")) for names in (paths, other)]
    assert (drawn[0] != drawn[1]).any()
    font = load_font(10)
    cut = shorten_front("folder/a_long_name_of_a_picture_0001.jpg", font, 96)
    assert cut.startswith("…") and cut.endswith("0001.jpg") and font.getlength(cut) <= 96
    assert shorten_front("p3/1.jpg", font, 96) == "p3/1.jpg"


def test_averages_are_set_off() -> None:
    table = html_table(["task", "mAP"], [["NIR", 1.0]], [["ALL_AVER", 2.0]])
    rows, averages = table.split('<tbody class="averages">')
    assert "<td>NIR</td><td>1.00</td>" in rows and "<td>ALL_AVER</td><td>2.00</td>" in averages
    assert "ALL_AVER" not in rows and "averages" not in html_table(["task"], [["NIR"]])


def test_a_report_holds_the_picture_of_the_combinations(tmp_path: Path) -> None:
    result = made_up_result(tmp_path)
    picture = Path(write_image(tmp_path / "combinations.png"))
    data = base64.b64encode(picture.read_bytes()).decode()
    assert f'src="data:image/png;base64,{data}"' in write_report(
        tmp_path / "a", result, PROVENANCE, 0, picture
    ).read_text(encoding="utf-8")
    plain = write_report(tmp_path / "b", result, PROVENANCE).read_text(encoding="utf-8")
    assert "data:image/png" not in plain and '<tbody class="averages">' in plain


def test_worst_queries_show_the_image_that_was_missed(tmp_path: Path) -> None:
    result = made_up_result(tmp_path)
    # The gallery of person i is turned round, so that the right image of each query is the last of 15.
    turned = dataclasses.replace(result.ranked, gallery_features=1 - torch.eye(15) + 0.001 * torch.eye(15))
    for listed in result.lists:
        listed.first_rank[listed.first_rank > 0] = 15
    text = write_report(tmp_path, dataclasses.replace(result, ranked=turned), PROVENANCE).read_text(encoding="utf-8")
    worst = text.split("<h2>Worst queries</h2>")[1].split("<h2>")[0].split("<article>")[1:]
    assert len(worst) == 10
    for card in worst:
        shown, missed = card.split('<div class="missed">')
        assert shown.count('<figure class="other"') == RESULTS_PER_QUERY and 'class="match"' not in shown
        person = card.split("person ")[1].split(" ")[0]
        assert "#15 · " in missed and f"<b>missed match</b> id {person}" in missed
        assert "first match at rank 15" in card
    # Where the right image is among those shown, nothing is repeated.
    kept = write_report(tmp_path / "first", made_up_result(tmp_path), PROVENANCE).read_text(encoding="utf-8")
    assert 'class="missed"' not in kept
