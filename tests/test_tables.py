"""Covers: utils/tables. Tables, group means and comparisons on rows worked out by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.errors import UserError
from utils.tables import compare_results, format_comparison, format_table, group_means, latex_rows, write_csv

ROWS: list[dict[str, Any]] = [
    {"task": "NIR", "R1": 10.0, "mAP": 20.12345, "queries": 4},
    {"task": "CP", "R1": 30.0, "mAP": 40.0, "queries": 5},
    {"task": "SK", "R1": None, "mAP": math.nan, "queries": 0},
]


def test_group_means_over_what_is_there() -> None:
    rows: list[dict[str, Any] | None] = [*ROWS, None]
    means = group_means(rows, {"PAIR": [0, 1], "ONE_AVER": [0, 1, 2, 3], "NOTHING": [2, 3]}, ["R1", "mAP"])
    assert means[0] == {"task": "PAIR", "R1": 20.0, "mAP": pytest.approx(30.061725), "lists": 2, "expected_lists": 2}
    assert means[1] == {
        "task": "ONE_AVER",
        "R1": 20.0,
        "mAP": pytest.approx(30.061725),
        "lists": 2,
        "expected_lists": 4,
    }
    assert means[2] == {"task": "NOTHING", "R1": None, "mAP": None, "lists": 0, "expected_lists": 2}


def test_deviations_by_hand() -> None:
    rows = [{"mAP": value} for value in (10.0, 20.0, 60.0)]
    mean, alone = group_means(rows, {"all": [0, 1, 2], "one": [1]}, ["mAP"], deviations=True)
    # 30, and the root of (400 + 100 + 900) / 2.
    assert mean["mAP"] == 30.0 and mean["mAP sd"] == pytest.approx(700**0.5)
    assert alone["mAP"] == 20.0 and "mAP sd" not in alone


def test_text_has_three_decimals_and_says_what_is_missing() -> None:
    averages = group_means(ROWS, {"TWO": [0, 1], "ONE_AVER": [0, 1, 2]}, ["R1", "mAP"])
    lines = format_table(ROWS, ["task", "R1", "mAP", "queries"], averages, title="ORBench").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells == [
        ["ORBench"],
        ["task", "R1", "mAP", "queries"],
        ["NIR", "10.000", "20.123", "4"],
        ["CP", "30.000", "40.000", "5"],
        ["SK", "-", "-", "0"],
        ["TWO", "20.000", "30.062", "-"],
        ["ONE_AVER (over 2 of 3)", "20.000", "30.062", "-"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert lines[-4].startswith("+") and lines[-4].endswith("+"), "a line between rows and averages"
    assert "task" in format_table(ROWS) and "queries" in format_table(ROWS)


def test_csv_is_rounded_as_the_table_is(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"task": "a,b", "mAP": 1 / 3}, {"task": "c", "mAP": None, "R1": math.nan}])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as stream:
        read = list(csv.reader(stream))
    assert read == [["task", "mAP", "R1"], ["a,b", "0.333", ""], ["c", "", ""]]


def test_rows_for_latex_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"task": "own_data/50 % & more", "mAP": 12.345, "lists": 3},
        {"task": "c", "mAP": None},
    ]
    assert latex_rows(rows, ["task", "mAP", "lists"]).splitlines() == [
        "% task & mAP & lists",
        r"own\_data/50 \% \& more & 12.35 & 3 \\",
        r"c & -- & -- \\",
    ]


FIRST = {
    "rows": [{"task": "NIR", "mAP": 50.0, "R1": 40.0}, {"task": "CP", "mAP": 10.0, "R1": 5.0}],
    "averages": [{"task": "ALL", "mAP": 30.0}],
}
SECOND = {
    "rows": [{"task": "NIR", "mAP": 52.5, "R1": None}, {"task": "SK", "mAP": 1.0}],
    "averages": [{"task": "ALL", "mAP": 26.75}],
}


def queries(precision: list[float], ranks: list[int], persons: list[int]) -> dict[str, dict[str, Any]]:
    return {
        "NIR": {
            "average_precision": np.array(precision),
            "first_rank": np.array(ranks),
            "person_ids": np.array(persons),
        }
    }


def test_comparison_by_hand() -> None:
    before = queries([10.0, 50.0, math.nan, 100.0, 7.0], [3, 2, 0, 1, 4], [1, 1, 2, 3, 3])
    after = queries([30.0, 45.0, 60.0, 100.0, 7.0 + 1e-9], [1, 2, 5, 1, 4], [1, 1, 2, 3, 3])
    comparison = compare_results(FIRST, SECOND, before, after)
    assert [row["task"] for row in comparison.rows] == ["NIR", "ALL"]
    assert comparison.rows[0]["mAP change"] == 2.5 and comparison.rows[1]["mAP change"] == -3.25
    assert comparison.rows[0]["R1 first"] == 40.0 and comparison.rows[0]["R1 change"] is None
    assert (comparison.only_first, comparison.only_second, comparison.incomparable) == (("CP",), ("SK",), ())
    (change,) = comparison.changes
    assert change.better == ((2, 0.0, 60.0), (0, 10.0, 30.0)) and change.worse == ((1, 50.0, 45.0),)
    assert change.ranks == ((2, 0, 5), (0, 3, 1)) and change.queries == 5
    text = format_comparison(comparison, ["mAP", "R1"], limit=1)
    assert "52.500 (+2.500)" in text and "26.750 (-3.250)" in text and "2 queries better, 1 worse, 2 equal" in text
    assert "better: 2 (0.0 to 60.0), ..." in text and "CP: only in the first result" in text


def test_other_queries_are_not_compared_one_by_one() -> None:
    before = queries([10.0, 50.0], [1, 2], [1, 2])
    for other in (queries([10.0], [1], [1]), queries([10.0, 50.0], [1, 2], [1, 3])):
        comparison = compare_results(FIRST, SECOND, before, other)
        assert comparison.incomparable == ("NIR",) and comparison.changes == ()
        assert "NIR: the queries are not the same" in format_comparison(comparison, ["mAP"])
    assert compare_results(FIRST, SECOND).changes == ()


def test_a_document_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="second result has no rows"):
        compare_results(FIRST, {"rows": []})
    with pytest.raises(UserError, match="first result has no rows"):
        compare_results({"rows": [3]}, SECOND)
