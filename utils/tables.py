"""Rows of plain numbers as text, CSV and differences. Knows nothing of what the numbers mean."""

from __future__ import annotations

import csv
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from prettytable import PrettyTable

from utils.errors import UserError
from utils.files import atomic_path

Row = Mapping[str, Any]
QueryValues = Mapping[str, Mapping[str, Any]]

DECIMALS = 3
LATEX_DECIMALS = 2
LATEX_ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
ABSENT = "-"
# Average precisions in percent that differ by less are the same: two computations of one ranking.
SAME_VALUE = 1e-6


def is_number(value: Any) -> bool:
    """True for a finite int or float, NumPy's included; False for a bool, nan or None."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return False
    # An int may be larger than any float.
    return abs(value) <= sys.float_info.max


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return every key of the rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def format_cell(value: Any) -> str:
    """Text of one cell: floats with three decimals, `-` for None and nan."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ABSENT
    return f"{value:.{DECIMALS}f}" if isinstance(value, (float, np.floating)) else str(value)


def format_table(
    rows: Sequence[Row], columns: Sequence[str] | None = None, averages: Sequence[Row] = (), title: str = ""
) -> str:
    """Return rows, then a line, then averages as an aligned text table; the first column is left-aligned.

    columns: all keys of the rows when None; a missing key shows as `-`. An average over fewer rows than it should be
    over (`lists` below `expected_lists`) says so in its first cell.
    """
    names = list(columns) if columns is not None else columns_of([*rows, *averages])
    table = PrettyTable(names)
    table.align = "r"
    if names:
        table.align[names[0]] = "l"
    if title:
        table.title = title
    for position, row in enumerate(rows):
        last = bool(averages) and position == len(rows) - 1
        table.add_row([format_cell(row.get(name)) for name in names], divider=last)
    for row in averages:
        cells = [format_cell(row.get(name)) for name in names]
        if cells and is_number(row.get("expected_lists")) and row["lists"] < row["expected_lists"]:
            cells[0] += f" (over {row['lists']} of {row['expected_lists']})"
        table.add_row(cells)
    return table.get_string()


def write_csv(path: str | os.PathLike[str], rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, atomically, numbers as in the printed table; None and nan are empty cells."""
    names = list(columns) if columns is not None else columns_of(rows)
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([["" if cell == ABSENT else cell for cell in _cells(row, names)] for row in rows])


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    return [format_cell(row.get(name)) for name in names]


def latex_rows(rows: Sequence[Row], columns: Sequence[str]) -> str:
    r"""Return rows of a LaTeX table, `NAME & 12.34 & ... \\`, under a comment that names the columns.

    Floats have two decimals, None and nan are `--`.
    """
    lines = [f"% {' & '.join(columns)}"]
    lines += [" & ".join(_latex_cell(row.get(name)) for name in columns) + r" \\" for row in rows]
    return "\n".join([*lines, ""])


def _latex_cell(value: Any) -> str:
    if format_cell(value) == ABSENT:
        return "--"
    if isinstance(value, (float, np.floating)):
        return f"{value:.{LATEX_DECIMALS}f}"
    return "".join(LATEX_ESCAPES.get(character, character) for character in str(value))


def group_means(
    rows: Sequence[Row | None], groups: Mapping[str, Sequence[int]], columns: Sequence[str], deviations: bool = False
) -> list[dict[str, Any]]:
    """Return one row per group: `task` = its name, the plain means of `columns`, `lists` and `expected_lists`.

    deviations: also `NAME sd`, the standard deviation (n - 1 in the denominator), for groups with two rows or more.

    groups: name -> indices into rows. A row that is None, or has no number in one of the columns, enters no mean; a
    group without any row left has None for its means.
    """
    means: list[dict[str, Any]] = []
    for name, indices in groups.items():
        members = [rows[index] for index in indices]
        present = [row for row in members if row is not None and all(is_number(row.get(column)) for column in columns)]
        values = {
            column: sum(float(row[column]) for row in present) / len(present) if present else None for column in columns
        }
        spread = {}
        if deviations and len(present) > 1:
            spread = {f"{column} sd": statistics.stdev(float(row[column]) for row in present) for column in columns}
        means.append({"task": name, **values, "lists": len(present), "expected_lists": len(members), **spread})
    return means


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskChange:
    """Queries of one task that changed between two results, strongest change first.

    better, worse: (query index, value before, value after). ranks: (index, first rank before, after) of those whose
    first match moved.
    """

    task: str
    queries: int
    better: tuple[tuple[int, float, float], ...]
    worse: tuple[tuple[int, float, float], ...]
    ranks: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Differences between two results: one row per task (`X first`, `X second`, `X change`), and queries that changed.

    only_first, only_second: tasks that the other result lacks. incomparable: tasks whose queries are not the same.
    """

    rows: tuple[Row, ...]
    changes: tuple[TaskChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    incomparable: tuple[str, ...] = ()


def compare_results(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    first_queries: QueryValues | None = None,
    second_queries: QueryValues | None = None,
) -> Comparison:
    """Compare two results documents (`rows` and `averages`, each row with a `task`), the second against the first.

    first_queries, second_queries: task -> `average_precision` (n,), `first_rank` (n,) and, optionally, `person_ids`
    (n,). Raises UserError when a document has no rows.
    """
    before, after = (_rows_by_task(document, name) for document, name in ((first, "first"), (second, "second")))
    shared = [task for task in before if task in after]
    left, right = first_queries or {}, second_queries or {}
    comparable = [task for task in shared if task in left and task in right]
    same = [task for task in comparable if _same_queries(left[task], right[task])]
    return Comparison(
        rows=tuple(_difference(task, before[task], after[task]) for task in shared),
        changes=tuple(_changes(task, left[task], right[task]) for task in same),
        only_first=tuple(task for task in before if task not in after),
        only_second=tuple(task for task in after if task not in before),
        incomparable=tuple(task for task in comparable if task not in same),
    )


def format_comparison(comparison: Comparison, columns: Sequence[str], limit: int = 5) -> str:
    """Return a comparison as text: a table of `second (change)` for `columns`, then the queries that moved most."""
    rows = [{"task": row["task"], **{name: _change_text(row, name) for name in columns}} for row in comparison.rows]
    lines = [format_table(rows, ["task", *columns])]
    lines += [f"{task}: only in the first result" for task in comparison.only_first]
    lines += [f"{task}: only in the second result" for task in comparison.only_second]
    lines += [
        f"{task}: the queries are not the same, so they are not compared one by one" for task in comparison.incomparable
    ]
    for change in comparison.changes:
        lines.append(
            f"{change.task}: {len(change.better)} queries better, {len(change.worse)} worse, "
            f"{change.queries - len(change.better) - len(change.worse)} equal (by average precision)"
        )
        for name, moved in (("better", change.better), ("worse", change.worse)):
            listed = ", ".join(f"{index} ({before:.1f} to {after:.1f})" for index, before, after in moved[:limit])
            lines += [f"  {name}: {listed}" + (", ..." if len(moved) > limit else "")] if listed else []
    return "\n".join(lines)


def _rows_by_task(document: Mapping[str, Any], which: str) -> dict[str, Row]:
    rows = [*document.get("rows", ()), *document.get("averages", ())]
    if not rows or not all(isinstance(row, Mapping) and "task" in row for row in rows):
        raise UserError(f"the {which} result has no rows with a task; give a results.json that was written by test.py")
    return {str(row["task"]): row for row in rows}


def _difference(task: str, before: Row, after: Row) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task}
    for name in columns_of([before, after]):
        first, second = before.get(name), after.get(name)
        if is_number(first) or is_number(second):
            both = is_number(first) and is_number(second)
            row |= {
                f"{name} first": first,
                f"{name} second": second,
                f"{name} change": float(second) - float(first) if both else None,  # type: ignore[arg-type]
            }
    return row


def _change_text(row: Row, name: str) -> str:
    change = row.get(f"{name} change")
    value = format_cell(row.get(f"{name} second"))
    return value if change is None else f"{value} ({change:+.{DECIMALS}f})"


def _same_queries(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> bool:
    if len(first["average_precision"]) != len(second["average_precision"]):
        return False
    if "person_ids" not in first or "person_ids" not in second:
        return True
    return np.array_equal(first["person_ids"], second["person_ids"])


def _changes(task: str, first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> TaskChange:
    # A query without a match has no average precision; finding one, or losing it, is a change from or to 0.
    before, after = (np.nan_to_num(np.asarray(side["average_precision"], dtype=np.float64)) for side in (first, second))
    difference = np.abs(after - before)
    order = np.argsort(-difference, kind="stable")
    moved = [
        (int(index), float(before[index]), float(after[index])) for index in order if difference[index] > SAME_VALUE
    ]
    ranks = tuple(
        (int(index), int(first["first_rank"][index]), int(second["first_rank"][index]))
        for index in order
        if first["first_rank"][index] != second["first_rank"][index]
    )
    return TaskChange(
        task=task,
        queries=len(before),
        ranks=ranks,
        better=tuple(entry for entry in moved if entry[2] > entry[1]),
        worse=tuple(entry for entry in moved if entry[2] < entry[1]),
    )
