"""Result files: results.json, results.csv with the same numbers, and one compact file of per-query results."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.evaluation_result import METRICS, TIE_RULE, EvaluationResult
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.tables import compare_results, format_comparison, format_table, write_csv

RESULTS_FILE, CSV_FILE, PER_QUERY_FILE = "results.json", "results.csv", "per_query.npz"
CSV_COLUMNS = ("task", *METRICS, "queries", "gallery", "lists", "expected_lists")
PER_QUERY_ARRAYS = ("first_rank", "average_precision", "inverse_penalty", "person_ids")
AVERAGE_RULE = "a group's average is the plain mean over its lists; ALL_AVER is the mean of the group averages"
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


def result_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return one plain row per query list, in percent; a list without scored queries has None for its metrics."""
    return [{"task": entry.task, **_numbers(entry.metrics()), "queries": entry.queries, "gallery": entry.gallery}
            for entry in result.lists]


def average_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return one plain row per average, in percent, with the number of lists it is over and how many there should be."""
    return [{"task": row.task, **_numbers(row.metrics), "lists": row.lists, "expected_lists": row.expected}
            for row in result.averages()]


def _numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(metrics[name]) else metrics[name] for name in METRICS}


def result_document(result: EvaluationResult, provenance: Provenance) -> dict[str, Any]:
    """Return everything that results.json holds, as plain values."""
    selected_on = provenance.selected_on or "unknown"
    return {
        "rows": result_rows(result),
        "averages": average_rows(result),
        "units": "percent",
        "averages_rule": AVERAGE_RULE,
        "split": result.name,
        "protocol": result.protocol,
        "tie_rule": TIE_RULE,
        "ap": result.ap_form,
        "precision": result.precision,
        "selected_on": selected_on,
        "checkpoint": {"file": provenance.checkpoint, "fingerprint": provenance.checkpoint_fingerprint,
                       "epoch": provenance.epoch, "step": provenance.step},
        "data": {"dataset": provenance.dataset, "fingerprint": provenance.data_fingerprint},
        "notes": [*provenance.notes, *result.notes(), *_selection_note(selected_on)],
        "missing_lists": list(result.missing_lists),
        "without_match": {entry.task: entry.without_match[:LISTED].tolist() for entry in result.lists if len(entry.without_match)},
        "unreadable_sources": [
            {"modality": skipped.source.modality.value, "record": skipped.source.record, "reason": skipped.reason}
            for skipped in result.skipped[:LISTED]
        ],
        "counts": {**result.counts, "entries_without_match": sum(len(entry.without_match) for entry in result.lists),
                   "unreadable_sources": len(result.skipped),
                   "entries_left_out": sum(len(entry.unreadable) for entry in result.lists)},
        "token_cache": dict(result.cache),
        "seconds": dict(result.seconds),
        "versions": dict(provenance.versions or {}),
        "per_query": PER_QUERY_FILE,
    }


def _selection_note(selected_on: str) -> tuple[str, ...]:
    return ("selected on test: the checkpoint was chosen by the same split that is reported",) if selected_on == "test" else ()


def write_results(directory: str | Path, result: EvaluationResult, provenance: Provenance) -> Path:
    """Write results.json, results.csv and per_query.npz into `directory`, each whole or not at all; return the first.

    results.json is written last: when it is there, the files it names are there too.
    """
    folder = Path(directory)
    document = result_document(result, provenance)
    _write_per_query(folder / PER_QUERY_FILE, result)
    write_csv(folder / CSV_FILE, [*document["rows"], *document["averages"]], CSV_COLUMNS)
    write_json(folder / RESULTS_FILE, document)
    return folder / RESULTS_FILE


def _write_per_query(path: Path, result: EvaluationResult) -> None:
    """Arrays per list under `TASK/name`: 20 bytes a query before compression."""
    arrays: dict[str, NDArray[Any]] = {}
    for entry, listed in zip(result.lists, result.ranked.split.query_lists):
        arrays[f"{entry.task}/first_rank"] = entry.first_rank.astype(np.int32)
        arrays[f"{entry.task}/average_precision"] = entry.average_precision
        arrays[f"{entry.task}/inverse_penalty"] = entry.inverse_penalty
        arrays[f"{entry.task}/person_ids"] = np.asarray(listed.person_ids, dtype=np.int64)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def format_result(result: EvaluationResult) -> str:
    """Return the reference's table, in percent with three decimals: the query lists, the averages, then the notes."""
    table = format_table(result_rows(result), ("task", *METRICS), average_rows(result))
    return "\n".join([table, f"{result.protocol}; {TIE_RULE}; average precision: {result.ap_form} form; {result.precision}", *result.notes()])


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results.json. Raises UserError when it is not one."""
    document = read_json(path, "a results.json of test.py")
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list) or not isinstance(document.get("averages"), list):
        raise UserError(f"{path} is not a results.json: it has no rows and averages; give the file that test.py wrote")
    return document


def read_per_query(path: str | Path, document: Mapping[str, Any]) -> dict[str, dict[str, NDArray[Any]]]:
    """Read the per-query file that the results.json at `path` names: task -> array name -> (n,).

    Returns nothing when the file is absent (the table was copied alone). Raises UserError when it is damaged.
    """
    file = Path(path).parent / Path(str(document.get("per_query", PER_QUERY_FILE))).name
    if not file.is_file():
        return {}
    found: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for key in archive.files:
                task, _, name = key.rpartition("/")
                found.setdefault(task, {})[name] = archive[key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}); run test.py again") from error
    incomplete = [task for task, arrays in found.items() if set(arrays) != set(PER_QUERY_ARRAYS)]
    if incomplete:
        raise UserError(f"{file} lacks arrays of {', '.join(incomplete)}; run test.py again")
    return found


def compare_files(first: str | Path, second: str | Path) -> str:
    """Return what changed from one results.json to another: rows, averages, and the queries that moved most.

    Raises UserError when a file is missing or is not a result.
    """
    before, after = read_results(first), read_results(second)
    queries = read_per_query(first, before), read_per_query(second, after)
    lines = [f"first:  {first}", f"second: {second}; in brackets the change from the first"]
    lines += [f"different {name}: {before.get(name)} and {after.get(name)}" for name in ("protocol", "ap", "precision", "selected_on", "checkpoint", "data")
              if before.get(name) != after.get(name)]
    lines += [f"{path}: its {PER_QUERY_FILE} is absent, so queries are not compared" for path, found in zip((first, second), queries) if not found]
    return "\n".join([*lines, format_comparison(compare_results(before, after, *queries), METRICS)])
