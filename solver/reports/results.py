"""Result files: results.json, results.csv with the same numbers, and one compact file of per-query results."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.evaluation.list_result import ListResult, share_name, stamped
from solver.evaluation.result import TIE_RULE, AverageRow, EvaluationResult
from solver.reports.features_file import person_array, source_names
from solver.reports.published import SUFFIX, Published, with_published
from solver.run_directory import CSV_FILE, LATEX_FILE, PER_QUERY_FILE, RESULTS_FILE
from solver.run_names import find_run
from utils.errors import UserError
from utils.files import atomic_path, ordinary, read_json, write_json
from utils.foreign import foreign_file
from utils.retrieval.metrics import METRICS, SHOWN_METRICS, threshold_name
from utils.tables import (
    columns_of,
    compare_results,
    format_cell,
    format_comparison,
    format_table,
    latex_rows,
    write_csv,
)

CSV_COLUMNS = ("task", *METRICS, "queries", "gallery", "lists", "expected_lists")
PER_QUERY_VALUES = {metric.array: name for name, metric in METRICS.items() if metric.array}
"""Array of a per-query file -> metric."""
COMPARED_ARRAYS = ("first_rank", "average_precision", "person_ids")
"""What a comparison reads of a per-query file; one written before a metric was added lacks that metric's array only."""
SOURCE_NAMES = "source_names"
UNIT = "percent"
OTHER_UNITS = {name: metric.unit for name, metric in METRICS.items() if metric.unit != UNIT}
"""Metric -> what its value is, where that is not a percentage."""
AVERAGE_RULE = "a group's average is the plain mean over its lists; ALL_AVER is the mean of the group averages"
DEVIATION = "standard deviation over the lists of a group, n - 1 in the denominator"
PLUS_MINUS = "±"
PRECISION_AT, KEPT_AT = threshold_name(0).removesuffix("0"), share_name(0).removesuffix("0")
ALL_KEPT = (1, f"{format_cell(1.0)} {PLUS_MINUS} {format_cell(0.0)}")
"""What a share of kept matches reads where it is all of them."""
GROUP_RULE = (
    "a group's average is the plain mean over its lists, with the standard deviation over them (n - 1 in the "
    "denominator); a pooled group's is over all of its queries; ALL_AVER is the mean of the group averages and of the "
    "lists without a group"
)
NOTHING = Published()
LISTED = 1000
"""Skipped sources and unmatched entries that the result file names one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Which weights and which data a result belongs to. selected_on: the split that chose the checkpoint."""

    checkpoint: str
    checkpoint_fingerprint: str
    selected_on: str
    dataset: str
    data_fingerprint: str
    epoch: int | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None
    date: str = ""
    """When the result was made, UTC."""
    command: str = ""
    """By which command."""
    overrides: tuple[str, ...] = ()
    """Options that replaced those of the configuration."""
    commit: str = ""
    """Of the code."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Section `eval`."""
    published: Published = field(default_factory=Published)
    """Figures of a paper."""


def result_rows(result: EvaluationResult, published: Published = NOTHING) -> list[dict[str, Any]]:
    """Return one plain row per query list, in the units of METRICS.

    A list without scored queries has None for its metrics. Rows of a protocol name it and their group, and have
    mAP@tau and kept@tau, the share of matches that tau keeps.
    """
    return [
        {
            "task": entry.task,
            **_numbers(entry.metrics()),
            **published.beside([entry.task]),
            "queries": entry.queries,
            "gallery": entry.gallery,
            **_numbers(entry.threshold_metrics()),
            **_belongings(entry),
        }
        for entry in result.lists
    ]


def average_rows(result: EvaluationResult, published: Published = NOTHING) -> list[dict[str, Any]]:
    """Return one plain row per average, in the units of METRICS.

    It has the number of lists it is over and how many there should be. `NAME sd`: standard deviation over the
    lists of a group, where there are several.
    """
    return [
        {
            "task": row.task,
            **_numbers(row.metrics),
            **published.beside(_names(row)),
            "lists": row.lists,
            "expected_lists": row.expected,
            **_numbers({f"{name} sd": value for name, value in row.deviation.items()}),
            **_belongings(row),
        }
        for row in result.averages()
    ]


def _names(row: AverageRow) -> list[str]:
    """What an average may be called where its published figures are given."""
    return [row.task, stamped(row.group, row.stamp)] if row.group else [row.task]


def published_notes(result: EvaluationResult, published: Published) -> list[str]:
    """Return what a reader must know of published figures beside a result."""
    names = {entry.task for entry in result.lists} | {name for row in result.averages() for name in _names(row)}
    return published.notes(names)


def _belongings(row: ListResult | AverageRow) -> dict[str, str]:
    return {name: getattr(row, name) for name in ("protocol", "group", "stamp") if getattr(row, name)}


def _numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def result_document(
    result: EvaluationResult, provenance: Provenance, verification: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return everything that results.json holds, as plain values. verification: see solver.reports.error_rates."""
    selected_on = provenance.selected_on or "unknown"
    return {
        "rows": result_rows(result, provenance.published),
        "averages": average_rows(result, provenance.published),
        "units": UNIT,
        "other_units": OTHER_UNITS,
        "averages_rule": GROUP_RULE if result.folded else AVERAGE_RULE,
        "split": result.name,
        "protocol": result.protocol,
        "similarity": result.ranked.comparison.name,
        "tie_rule": TIE_RULE,
        "ap": result.ap_form,
        **({"relevance": dict(result.relevance)} if result.relevance else {}),
        "precision": result.precision,
        **({} if verification is None else {"verification": dict(verification)}),
        "selected_on": selected_on,
        "checkpoint": {
            "file": provenance.checkpoint,
            "fingerprint": provenance.checkpoint_fingerprint,
            "epoch": provenance.epoch,
            "step": provenance.step,
        },
        "data": {"dataset": provenance.dataset, "fingerprint": provenance.data_fingerprint},
        "made": {
            "date": provenance.date,
            "command": provenance.command,
            "overrides": list(provenance.overrides),
            "commit": provenance.commit,
        },
        "options": dict(provenance.options),
        "notes": [
            *provenance.notes,
            *result.notes(),
            *published_notes(result, provenance.published),
            *_selection_note(selected_on),
        ],
        "missing_lists": list(result.missing_lists),
        "without_match": {
            entry.task: entry.without_match[:LISTED].tolist() for entry in result.lists if len(entry.without_match)
        },
        "unreadable_sources": [
            {"modality": skipped.source.modality.value, "record": skipped.source.record, "reason": skipped.reason}
            for skipped in result.skipped[:LISTED]
        ],
        "counts": {
            **result.counts,
            "entries_without_match": sum(len(entry.without_match) for entry in result.lists),
            "unreadable_sources": len(result.skipped),
            "entries_left_out": sum(len(entry.unreadable) for entry in result.lists),
        },
        "token_cache": dict(result.cache),
        "seconds": dict(result.seconds),
        "versions": dict(provenance.versions or {}),
        "per_query": PER_QUERY_FILE,
    }


def _selection_note(selected_on: str) -> tuple[str, ...]:
    return (
        ("selected on test: the checkpoint was chosen by the same split that is reported",)
        if selected_on == "test"
        else ()
    )


def write_results(
    directory: str | Path,
    result: EvaluationResult,
    provenance: Provenance,
    verification: Mapping[str, Any] | None = None,
) -> Path:
    """Write results.json, results.csv and per_query.npz into `directory`, each whole or not at all; return the first.

    results.json is written last: when it is there, the files it names are there too.
    """
    folder = Path(directory)
    document = result_document(result, provenance, verification)
    _write_per_query(folder / PER_QUERY_FILE, result)
    return write_tables(folder, document)


def write_tables(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write results.csv, results.tex and results.json of a results document, each whole or not at all; return the last.

    The numbers of the first two are rounded as the printed table's (CSV) and to two decimals (LaTeX rows).
    """
    rows = [*document["rows"], *document["averages"]]
    write_csv(folder / CSV_FILE, rows, list(dict.fromkeys([*CSV_COLUMNS, *columns_of(rows)])))
    with atomic_path(folder / LATEX_FILE) as temporary:
        temporary.write_text(latex_rows(rows, ["task", *SHOWN_METRICS]), encoding="utf-8")
    write_json(folder / RESULTS_FILE, document)
    return folder / RESULTS_FILE


def _write_per_query(path: Path, result: EvaluationResult) -> None:
    """Arrays per list under `TASK/name`, and `source_names` beside them.

    `TASK/sources` (n, size) int32 counts in source_names, the UTF-8 bytes of a JSON list: the files and texts that each
    query is made of. `TASK/persons` (n,): the user's names, where there are any.
    """
    split = result.ranked.split
    names, parts = source_names(split)
    arrays: dict[str, NDArray[Any]] = {SOURCE_NAMES: np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)}
    by_name = {listed.name: (listed, sources) for listed, sources in zip(split.query_lists, parts)}
    for entry in result.lists:
        listed, sources = by_name[entry.name]
        arrays[f"{entry.task}/first_rank"] = entry.first_rank.astype(np.int32)
        arrays |= {f"{entry.task}/{array}": entry.per_query[name] for array, name in PER_QUERY_VALUES.items()}
        arrays[f"{entry.task}/person_ids"] = np.asarray(listed.person_ids, dtype=np.int64)
        arrays[f"{entry.task}/sources"] = sources
        if split.person_names:
            arrays[f"{entry.task}/persons"] = person_array([split.person(one) for one in listed.person_ids])
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def format_result(result: EvaluationResult, published: Published = NOTHING) -> str:
    """Return the reference's table, in percent with three decimals: the query lists, the averages, then the notes.

    published: figures of a paper, in columns beside ours.
    """
    rows, averages = shown_rows(result, published)
    table = format_table(rows, shown_columns(rows, averages), averages)
    notes = [f"deviation: {DEVIATION}"] if any(PLUS_MINUS in str(row["mAP"]) for row in rows) else []
    protocol = result.protocol
    for name in dict.fromkeys(entry.protocol for entry in result.plain_lists):
        protocol = protocol.replace(f"; {name}: ", f"\n{name}: ", 1) if name else protocol
    return "\n".join(
        [
            table,
            f"{protocol}; {result.ranked.comparison.name}; {TIE_RULE}; "
            f"average precision: {result.ap_form} form; {result.precision}",
            *notes,
            *result.notes(),
            *published_notes(result, published),
        ]
    )


def shown_rows(
    result: EvaluationResult, published: Published = NOTHING
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows and the averages that a table for readers has.

    The lists of a group that repeat one measurement (draws, trials) are folded into one row, mean and deviation; all of
    them are in results.json. ALL_AVER is left out where it is over one row.
    """
    averages = {
        (average.group, average.stamp): (average, row)
        for average, row in zip(result.averages(), average_rows(result, published))
    }
    units = Counter(stamp for stamp, _ in {(listed.stamp, listed.group or listed.task) for listed in result.lists})
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for listed, row in zip(result.lists, result_rows(result, published)):
        average, folded = averages[listed.group, listed.stamp]
        if listed.group and listed.draws and not average.pooled:
            rows.setdefault(("group", listed.group, listed.stamp), folded_row(folded) if average.expected > 1 else row)
        else:
            rows["list", listed.task] = row
    shown = {listed.group for listed in result.lists if not listed.draws} | set(result.missing_lists.values())
    return list(rows.values()), [
        row
        for average, row in averages.values()
        if average.pooled or average.group in shown or (not average.group and (units[average.stamp] > 1 or shown))
    ]


def folded_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a group for readers, with `mean ± deviation` as texts."""
    cells = {
        name: f"{format_cell(value)} {PLUS_MINUS} {format_cell(row[f'{name} sd'])}" if f"{name} sd" in row else value
        for name, value in row.items()
        if not name.endswith(" sd")
    }
    lists = str(row["lists"]) if row["lists"] == row["expected_lists"] else f"{row['lists']} of {row['expected_lists']}"
    return {**cells, "task": f"{row['task']} (mean of {lists})"}


def shown_columns(*rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of a table for readers: the task, the reference's, mAP@tau and the shares they keep, each with
    its published figures where there are any.

    Those of a tau that keeps every match of every row are left out; the notes of the result say so.
    """
    listed = [row for part in rows for row in part]
    columns = [
        name
        for name in columns_of(listed)
        if name.startswith((PRECISION_AT, KEPT_AT)) and not name.endswith((" sd", SUFFIX))
    ]
    silent = {
        name.removeprefix(KEPT_AT)
        for name in columns
        if name.startswith(KEPT_AT) and all(row[name] in ALL_KEPT for row in listed if row.get(name) is not None)
    }
    shown = [name for name in columns if name.removeprefix(KEPT_AT).removeprefix(PRECISION_AT) not in silent]
    return with_published(["task", *SHOWN_METRICS, *shown], listed)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results.json. Raises UserError when it is not one."""
    document = read_json(path, "a results.json of test.py")
    if (
        not isinstance(document, dict)
        or not isinstance(document.get("rows"), list)
        or not isinstance(document.get("averages"), list)
    ):
        raise UserError(f"{path} is not a results.json: it has no rows and averages; give the file that test.py wrote")
    for number, row in enumerate([*document["rows"], *document["averages"]]):
        if not isinstance(row, Mapping) or not isinstance(row.get("task"), str) or any(map(_is_nested, row.values())):
            raise UserError(f"{path} is damaged: row {number} lacks a task or holds a list; run test.py again")
    return document


def _is_nested(value: Any) -> bool:
    return isinstance(value, (list, dict))


def read_per_query(path: str | Path, document: Mapping[str, Any]) -> dict[str, dict[str, NDArray[Any]]]:
    """Read the per-query file that the results.json at `path` names: task -> array name -> (n,).

    Returns nothing when the file is absent (the table was copied alone). Raises UserError when it is damaged.
    """
    file = Path(path).parent / Path(str(document.get("per_query", PER_QUERY_FILE))).name
    if not os.path.isfile(file):
        return {}
    by_task: dict[str, dict[str, NDArray[Any]]] = {}
    with foreign_file(f"{file} cannot be read", "run test.py again"):
        with np.load(ordinary(file), allow_pickle=False) as archive:
            for key in archive.files:
                if key == SOURCE_NAMES:
                    continue
                task, _, name = key.rpartition("/")
                by_task.setdefault(task, {})[name] = archive[key]
    incomplete = [task for task, arrays in by_task.items() if not arrays.keys() >= set(COMPARED_ARRAYS)]
    if incomplete:
        raise UserError(f"{file} lacks arrays of {', '.join(incomplete)}; run test.py again")
    for task, arrays in by_task.items():
        compared = [arrays[name] for name in COMPARED_ARRAYS]
        kinds = [array.dtype.kind for array in compared]
        flat = compared[0].ndim == 1 and len({array.shape for array in compared}) == 1
        if not flat or kinds[0] not in "iu" or kinds[1] != "f":
            raise UserError(f"{file} is damaged: the arrays of {task} are not those of its queries; run test.py again")
    return by_task


def compare_files(first: str | Path, second: str | Path) -> str:
    """Return what changed from one results.json to another: rows, averages, and the queries that moved most.

    A folder, or the name of a run, stands for the results.json in it. The table has the columns of every table, and the
    other metrics that both results have. Raises UserError when a file is missing or is not a result.
    """
    first, second = (find_run(str(name))[0] for name in (first, second))
    first, second = (Path(name) / RESULTS_FILE if Path(name).is_dir() else name for name in (first, second))
    before, after = read_results(first), read_results(second)
    queries = read_per_query(first, before), read_per_query(second, after)
    lines = [f"first:  {first}", f"second: {second}; in brackets the change from the first"]
    compared = ("protocol", "ap", "precision", "selected_on", "checkpoint", "data")
    lines += [
        f"different {name}: {before.get(name)} and {after.get(name)}"
        for name in compared
        if before.get(name) != after.get(name)
    ]
    lines += [
        f"{path}: its {PER_QUERY_FILE} is absent, so queries are not compared"
        for path, arrays in zip((first, second), queries)
        if not arrays
    ]
    comparison = compare_results(before, after, *queries)
    metrics = [
        name
        for name, metric in METRICS.items()
        if metric.shown or any(row.get(f"{name} change") is not None for row in comparison.rows)
    ]
    lines += [f"lower is better: {name}" for name in metrics if not METRICS[name].higher_is_better]
    return "\n".join([*lines, format_comparison(comparison, metrics)])
