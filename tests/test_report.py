"""Covers: solver/reports/grid, solver/reports/html_page, solver/reports/examples_page. Pictures and pages of ranked
lists: what they show, and that nothing of the user's becomes HTML.
"""

import base64
import dataclasses
import hashlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from list_values import values_of
from PIL import Image, ImageDraw

from configs.vocabulary import Modality
from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.result import EvaluationResult, ListResult, RankedSplit
from solver.reports.examples_page import choose_queries, write_report
from solver.reports.fonts import load_font
from solver.reports.grid import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    describe_query,
    draw_grid,
    fit_image,
    printable,
    shorten,
    wrap,
    write_grid,
)
from solver.reports.html_page import html_table, page
from solver.reports.results import Provenance, write_results
from solver.search.queries import Query
from solver.search.ranked import RankedImage, RankedQuery, Verdict

HOSTILE = "</blockquote><script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)>"
GREEN, RED, GREY = (26, 140, 70), (200, 48, 40), (150, 156, 164)


def write_image(path: Path, size: tuple[int, int] = (20, 40), colour: tuple[int, int, int] = (10, 20, 240)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def ranked_query(
    paths: list[str], matches: list[bool | None], text: str = "a red coat", query_image: str = "", name: str = "query"
) -> RankedQuery:
    sources = ((Source(modality=Modality.NIR, value=query_image),) if query_image else ()) + (
        Source(modality=Modality.TEXT, value=text),
    )
    known = None not in matches
    results = tuple(
        RankedImage(
            rank=rank,
            index=rank,
            path=path,
            similarity=0.5 - rank / 100,
            person_id=rank if known else None,
            verdict={True: Verdict.MATCH, False: Verdict.OTHER, None: Verdict.UNKNOWN}[match],
        )
        for rank, (path, match) in enumerate(zip(paths, matches), start=1)
    )
    return RankedQuery(
        query=Query(name=name, sources=sources, person_id=7 if known else None),
        results=results,
        matches=sum(map(bool, matches)) if known else None,
        first_match=1 if known else None,
    )


class Page(HTMLParser):
    """Every element with its attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.open[-1] if self.open else ""] = self.texts.get(self.open[-1] if self.open else "", "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_page_holds_hostile_words_as_words(tmp_path: Path) -> None:
    name = "<svg onload=alert(1)>&\"'.png"
    path = write_image(tmp_path / name)
    text = page(HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: [ranked_query([path], [True], HOSTILE, path, HOSTILE)]})
    found = Page(text)
    assert {tag for tag, _ in found.elements} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "dl",
        "dt",
        "dd",
        "article",
        "div",
        "figure",
        "figcaption",
        "img",
        "b",
        "br",
        "blockquote",
    }
    assert not [
        key
        for _, attributes in found.elements
        for key in attributes
        if key.startswith("on") or key in ("href", "style")
    ]
    for place in ("h1", "h2", "dt", "dd"):
        assert found.texts[place] == HOSTILE
    assert HOSTILE in found.texts["blockquote"] and HOSTILE in found.texts["h3"]
    images = found.all("img")
    assert [image["alt"] for image in images] == [f"{tmp_path.name}/{name}"] * 2 and found.all("figure")[0][
        "title"
    ] == path
    with Image.open(
        io.BytesIO(base64.b64decode(str(images[0]["src"]).removeprefix("data:image/jpeg;base64,")))
    ) as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.size == (64, 128)
        assert np.abs(np.asarray(thumbnail, dtype=int)[64, 32] - (10, 20, 240)).max() < 12


def test_a_page_shows_the_beginning_of_a_very_long_text(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    for text, shown in (("x" * 2000, "x" * 2000), ("x" * 2001, "x" * 2000 + " …")):
        found = Page(page("t", {}, {"": [ranked_query([path], [None], text)]}))
        assert found.texts["blockquote"].removeprefix("TEXT").strip() == shown


def test_a_table_holds_hostile_words_as_words() -> None:
    odd = f"a\nb\x1b[31m{HOSTILE}"
    found = Page(html_table([odd, "R1"], [[odd, 1.0]], [[odd, None]]))
    assert {tag for tag, _ in found.elements} == {"table", "thead", "tbody", "tr", "th", "td"}
    shown = printable(odd)
    assert HOSTILE in shown and "\n" not in shown and "\x1b" not in shown
    assert found.texts["th"] == f"{shown}R1" and found.texts["td"] == f"{shown}1.00{shown}–"


def test_the_policy_allows_our_style_and_pictures_only(tmp_path: Path) -> None:
    found = Page(page("t", {}, {}))
    metas = found.all("meta")
    assert metas[0] == {"charset": "utf-8"} and metas[1]["http-equiv"] == "Content-Security-Policy"
    directives = dict(part.strip().split(" ", 1) for part in str(metas[1]["content"]).split(";"))
    digest = base64.b64encode(hashlib.sha256(found.texts["style"].encode()).digest()).decode()
    assert directives == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def frames(line: np.ndarray) -> list[tuple[tuple[int, int, int], int, int]]:
    """Runs of frame colours in a row of pixels (width, 3): (colour, first column, length), at least 3 wide."""
    bounds = [0, *(np.flatnonzero((line[1:] != line[:-1]).any(axis=1)) + 1).tolist(), len(line)]
    colours = [tuple(line[start].tolist()) for start in bounds[:-1]]
    return [
        (colour, start, stop - start)
        for colour, start, stop in zip(colours, bounds, bounds[1:])
        if colour in (GREEN, RED, GREY) and stop - start >= 3
    ]


def test_frames_have_the_colour_of_the_match_and_equal_sizes(tmp_path: Path) -> None:
    tall, wide = write_image(tmp_path / "tall.png", (10, 90)), write_image(tmp_path / "wide.png", (90, 30))
    picture = draw_grid(
        [ranked_query([tall, wide, tall], [True, False, False]), ranked_query([wide] * 12, [None] * 12)], "t", "s"
    )
    found = [frames(line) for line in np.asarray(picture)]
    rows = [row for row, runs in enumerate(found) if len(runs) == 6 and {run[0] for run in runs} == {GREEN, RED}]
    runs = found[rows[len(rows) // 2]]
    assert [colour for colour, _, _ in runs] == [GREEN, GREEN, RED, RED, RED, RED]
    assert {length for _, _, length in runs} == {4}
    inner = {runs[place + 1][1] - runs[place][1] - 4 for place in (0, 2, 4)}
    steps = {runs[place + 2][1] - runs[place][1] for place in (0, 2)}
    assert inner == {IMAGE_WIDTH} and len(steps) == 1
    assert len(rows) == IMAGE_HEIGHT
    # Unknown identities are grey; the eleventh and twelfth result start a second line.
    lines = [len(runs) for runs in found[rows[-1] + 20 :] if {run[0] for run in runs} == {GREY}]
    assert lines.count(20) == IMAGE_HEIGHT and lines.count(4) == IMAGE_HEIGHT


def test_ranks_of_the_picture_count_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, place: tuple[int, int], words: str, **options: Any) -> None:
        drawn.append(words)
        draw(self, place, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    path = write_image(tmp_path / "a.png")
    draw_grid([ranked_query([path] * 3, [True, False, False])], "title", "subtitle")
    assert [words for words in drawn if words.startswith("#")] == ["#1", "#2", "#3"]
    assert [words for words in drawn if words.startswith("0.4")] == ["0.4900", "0.4800", "0.4700"]


def test_a_grid_survives_odd_texts(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    for text in ("", "x" * 5000, "word " * 5000, "y" * 1_100_000, "line\nbreak\x00 \ud800 \U0001f600 漢字 عربي"):
        write_grid(tmp_path / "grid.png", [ranked_query([image], [None], text)], "title " * 200, text)
        with Image.open(tmp_path / "grid.png") as picture:
            picture.load()
            assert picture.width < 1000
        page(text, {text: text}, {"": [ranked_query([image], [None], text)]}).encode("utf-8")


@pytest.mark.parametrize(
    "text", ["one two three four five six seven eight nine ten", "a", "", "W" * 70, "short " + "m" * 60 + " end"]
)
def test_wrapping_keeps_every_letter_and_the_width(text: str) -> None:
    font = load_font(12)
    lines = wrap(text, font, 100, 100)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 100 for line in lines)
    cut = wrap(text, font, 100, 2)
    assert (
        cut == lines
        if len(lines) <= 2
        else cut[0] == lines[0] and cut[1].endswith("…") and font.getlength(cut[1]) <= 100
    )


def test_small_helpers(tmp_path: Path) -> None:
    font = load_font(12)
    assert shorten("short", font, 100) == "short"
    cut = shorten("a long sentence that does not fit", font, 100)
    assert cut.endswith("…") and "a long sentence that does not fit".startswith(cut[:-1]) and font.getlength(cut) <= 100
    assert printable("a\nb\x00c\ud800") == "a b c?"
    fitted = np.asarray(fit_image(Image.open(write_image(tmp_path / "wide.png", (80, 20))), 60, 100))
    blue = np.abs(fitted.astype(int) - (10, 20, 240)).max(axis=2) < 8
    assert fitted.shape == (100, 60, 3) and blue.any(axis=0).all() and blue.any(axis=1).sum() == 15
    assert np.flatnonzero(blue.any(axis=1))[0] in (42, 43)
    assert "no match in the gallery" in describe_query(
        RankedQuery(query=Query(name="q", sources=(), person_id=3), results=(), matches=0, first_match=0)
    )


def made_up_result(folder: Path, people: int = 15) -> EvaluationResult:
    """Three lists of `people` queries each; feature of query i is axis i, of gallery image i axis i with a small
    tilt.
    """
    pictures = [write_image(folder / f"{person}.png", colour=(person, 20, 240)) for person in range(people)]
    asked = [write_image(folder / f"nir_{person}.png", colour=(person, 90, 90)) for person in range(people)]
    gallery = tuple(Source(modality=Modality.RGB, value=path) for path in pictures)
    combinations = [(Modality.NIR,), (Modality.TEXT,), (Modality.NIR, Modality.TEXT)]
    lists, results = [], []
    precision = np.random.default_rng(5).uniform(0, 100, (3, people)).round(1)
    features = torch.eye(people)
    for number, combination in enumerate(combinations):
        entries = tuple(
            tuple(
                Source(modality=kind, value=asked[person] if kind is Modality.NIR else f"person {person}")
                for kind in combination
            )
            for person in range(people)
        )
        lists.append(QueryList(combination=combination, entries=entries, person_ids=tuple(range(100, 100 + people))))
        first = np.ones(people, dtype=np.int64)
        first[3], first[4] = 0, -1
        values = np.where(first > 0, precision[number], np.nan)
        results.append(
            ListResult(
                task=lists[-1].name,
                combination=combination,
                gallery=people,
                first_rank=first,
                per_query=values_of(first, values, values),
            )
        )
    split = EvalSplit(
        name="test",
        protocol="made up",
        gallery=gallery,
        gallery_ids=tuple(range(100, 100 + people)),
        query_lists=tuple(lists),
    )
    tilted = 3 * (features + 0.01 * torch.arange(people)[:, None] * torch.ones(people))
    plan = plan_evaluation([split]).splits[0]
    plan = dataclasses.replace(
        plan, lists=tuple(dataclasses.replace(listed, rows=np.arange(people)) for listed in plan.lists)
    )
    ranked = RankedSplit(plan=plan, features=features, gallery_features=tilted, gallery=np.arange(people))
    return EvaluationResult(
        name="test",
        protocol="made up",
        lists=tuple(results),
        missing_lists={},
        ap_form="sum",
        precision="fp32",
        counts={},
        cache={},
        skipped=(),
        seconds={},
        ranked=ranked,
    )


def test_best_and_worst_queries_are_those_and_of_different_persons(tmp_path: Path) -> None:
    result = made_up_result(tmp_path)
    chosen = choose_queries(result, seed=0)
    flat = {
        (number, entry): value
        for number, listed in enumerate(result.lists)
        for entry, value in enumerate(listed.per_query["mAP"])
        if entry not in (3, 4)
    }
    for heading, largest in (("Best", True), ("Worst", False)):
        of_person: dict[int, tuple[int, int]] = {}
        for key in sorted(flat, key=flat.__getitem__, reverse=largest):
            of_person.setdefault(key[1], key)
        assert chosen[heading] == list(of_person.values())[:10]
    assert chosen["Random"] == choose_queries(result, seed=0)["Random"] != choose_queries(result, seed=1)["Random"]
    assert len({entry for _, entry in chosen["Random"]}) == 10 and not {3, 4} & {entry for _, entry in chosen["Random"]}


def test_the_page_of_an_evaluation(tmp_path: Path) -> None:
    result = made_up_result(tmp_path)
    provenance = Provenance(
        checkpoint=f"runs/{HOSTILE}.pth",
        checkpoint_fingerprint="abc",
        selected_on="test",
        dataset="made up",
        data_fingerprint="def",
    )
    path = write_report(tmp_path / "out", result, provenance)
    found = Page(path.read_text(encoding="utf-8"))
    assert path.name == "report.html" and len(found.all("article")) == 30
    assert found.texts["h2"] == "Best queriesWorst queriesRandom queries"
    # Gallery image i of person i is the nearest of query i by construction, the first of ten results.
    kinds = [attributes["class"] for attributes in found.all("figure") if attributes["class"] != "part"]
    assert kinds == ["match", *["other"] * 9] * 30
    assert HOSTILE in found.texts["dd"] and "ALL_AVER" in found.texts["td"]
    document = json.loads(write_results(tmp_path, result, provenance).read_text(encoding="utf-8"))
    for row in [*document["rows"], *document["averages"]]:
        assert "".join(f"{row[name]:.2f}" for name in ("R1", "R5", "R10", "mAP", "mINP")) in found.texts["td"]
    best = choose_queries(result, 0)["Best"][0]
    assert f"average precision {result.lists[best[0]].per_query['mAP'][best[1]]:.1f} %" in found.texts["h3"]
    assert path.stat().st_size < 1_500_000
    assert json.dumps(path.read_text(encoding="utf-8")) == json.dumps(
        write_report(tmp_path / "again", result, provenance).read_text(encoding="utf-8")
    )


def test_an_evaluation_without_any_match_has_a_page_without_queries(tmp_path: Path) -> None:
    result = made_up_result(tmp_path)
    for listed in result.lists:
        listed.first_rank[:] = 0
    provenance = Provenance(
        checkpoint="c", checkpoint_fingerprint="f", selected_on="", dataset="d", data_fingerprint="e"
    )
    found = Page(write_report(tmp_path, result, provenance).read_text(encoding="utf-8"))
    assert not found.all("article") and "–" in found.texts["td"]
