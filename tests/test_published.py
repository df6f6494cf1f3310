"""Covers: configs/schema/published, solver/reports/published, solver/reports/results, solver/reports/merging. Figures
of a paper in columns beside ours.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_results import PROVENANCE, make_result

from configs.load import build_experiment, load_experiment, save_experiment
from solver.reports.examples_page import write_report
from solver.reports.merging import format_merged, merge_results
from solver.reports.published import Published, with_published
from solver.reports.results import compare_files, format_result, result_document, shown_columns, write_results
from utils.errors import UserError

FIGURES = {"NIR": {"mAP": 61.25, "R1": 70.0}, "ALL_AVER": {"R5": 80.5}, "elsewhere": {"mAP": 1.0}}
PUBLISHED = Published(figures=FIGURES, note="Table IV, protocol not named")


def built(**changes: Any) -> Any:
    return build_experiment([("a.yaml", {"family": "reid5o", **changes})])


def cells_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_configuration_quotes_figures_row_by_row(tmp_path: Path) -> None:
    config = built(published={"market mean": {"mAP": 90, "R1": 96.5}}, published_note="Table III")
    assert config.published == {"market mean": {"mAP": 90.0, "R1": 96.5}} and config.published_note == "Table III"
    save_experiment(config, tmp_path / "config.yaml")
    assert load_experiment(tmp_path / "config.yaml").published == config.published
    (tmp_path / "child.yaml").write_text("base: config.yaml\npublished: {llcm: {mAP: 1}}\n", encoding="utf-8")
    assert load_experiment(tmp_path / "child.yaml").published == {"llcm": {"mAP": 1.0}}, "a table is replaced whole"
    more = load_experiment(tmp_path / "child.yaml", ["published.cuhk={mAP: 2}"])
    assert more.published == {"llcm": {"mAP": 1.0}, "cuhk": {"mAP": 2.0}}
    assert built().published == {} and built().published_note == ""


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"a": {"mAP": "high"}}, "published"),
        ({"a": 3.0}, "published"),
        ({"a": {"mAP": True}}, "published"),
        (5, "published"),
        ({"a": {"map": 3.0}}, "published.a.map: a table has no column 'map'; give R1"),
        ({"a": {"R1": 130.0}}, "published.a.R1 = 130.0: must be a percentage, 0 to 100"),
        ({"a": {"R1": float("nan")}}, "published = .*: must be finite"),
    ],
)
def test_wrong_figures_are_refused(figures: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(published=figures)
    with pytest.raises(UserError, match="published_note = 7: must be a text"):
        built(published_note=7)


def test_columns_stand_beside_ours_in_the_table() -> None:
    text = format_result(make_result(), PUBLISHED)
    head, *rows = cells_of(text)
    assert head == ["task", "R1", "R1 published", "R5", "R5 published", "R10", "mAP", "mAP published", "mINP"]
    named = {row[0]: row for row in rows}
    assert named["NIR"][1:9] == ["33.333", "70.000", "66.667", "-", "100.000", "54.167", "61.250", "45.000"]
    assert next(row for name, row in named.items() if name.startswith("ALL_AVER"))[4] == "80.500"
    assert "published figures: Table IV, protocol not named" in text
    assert "published figures without a row here: elsewhere" in text
    assert "published" not in format_result(make_result())
    silent = format_result(make_result(), dataclasses.replace(PUBLISHED, note=""))
    assert "published figures: the configuration does not say by which protocol" in silent


def test_files_and_page_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.reports.examples_page.choose_queries", lambda *_: {})
    provenance = dataclasses.replace(PROVENANCE, published=PUBLISHED)
    document = result_document(make_result(), provenance)
    assert {row["task"]: row.get("mAP published") for row in document["rows"]}["NIR"] == 61.25
    assert any("Table IV" in note for note in document["notes"])
    file = write_results(tmp_path, make_result(), provenance)
    with (tmp_path / "results.csv").open(encoding="utf-8") as stream:
        assert next(csv.DictReader(stream))["mAP published"] == "61.250"
    page = write_report(tmp_path, make_result(), provenance).read_text(encoding="utf-8")
    assert "<th>mAP published</th>" in page and "<td>61.25</td>" in page and "Table IV" in page
    assert "published" not in compare_files(file, file)


def test_a_group_of_rows_is_called_by_its_name_or_its_rows_name() -> None:
    assert PUBLISHED.beside(["NIR mean", "NIR"]) == {"mAP published": 61.25, "R1 published": 70.0}
    assert PUBLISHED.beside(["TEXT"]) == {}
    rows: list[Mapping[str, Any]] = [{"task": "a", "mAP": 1.0, "mAP published": 2.0, "R20 published": 1.0}]
    assert with_published(["task", "mAP", "mINP"], rows) == ["task", "mAP", "mAP published", "mINP"]
    assert shown_columns(rows)[:6] == ["task", "R1", "R5", "R10", "mAP", "mAP published"]


def test_a_mean_of_runs_keeps_the_figure_and_averages_nothing_of_it() -> None:
    provenance = dataclasses.replace(PROVENANCE, published=PUBLISHED)
    runs = {
        label: json.loads(json.dumps(result_document(make_result(values), provenance)))
        for label, values in (("1", (100.0, 50.0, 12.5)), ("2", (100.0, 20.0, 62.5)))
    }
    document = merge_results(runs, ["1", "2"])
    (row,) = (row for row in document["averages"] if row["task"] == "ALL_AVER")
    assert row["R5 published"] == 80.5 and "R5 published sd" not in row and row["mAP sd"] > 0
    assert "80.500" in format_merged(document) and "80.500 ±" not in format_merged(document)
