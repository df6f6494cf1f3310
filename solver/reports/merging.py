"""Results of several runs (trials, seeds) as one: mean and standard deviation of every protocol over the runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solver.evaluation.list_result import stamped
from solver.evaluation.result import TOTAL
from solver.reports.published import SUFFIX
from solver.reports.results import OTHER_UNITS, PLUS_MINUS, folded_row, read_results, shown_columns, write_tables
from solver.run_directory import RESULTS_FILE
from utils.errors import UserError
from utils.files import files_together
from utils.retrieval.metrics import SHOWN_METRICS
from utils.tables import columns_of, format_table, group_means, is_number

MERGED_RULE = (
    "an average is the plain mean over the runs, with the standard deviation over them (n - 1 in the denominator); "
    "within a run, averages are its own"
)
NO_MEASURES = frozenset({"task", "queries", "gallery", "lists", "expected_lists"})
SAME = ("split", "ap", "tie_rule", "relevance", "units")
"""What results must agree in to be averaged."""
DESCRIBED = ("protocol", "precision", "selected_on")
"""What results may differ in; a difference becomes a note."""
BELONGINGS = ("protocol", "stamp")

Key = tuple[str, str]
"""(protocol, or task of a row without one; stamp)"""


def read_series(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Read the results.json of each run, by label. Raises UserError naming the file that is not one."""
    documents = {}
    for label, path in files.items():
        document = read_results(path)
        for number, row in enumerate([*document["rows"], *document["averages"]]):
            if (
                not isinstance(row, Mapping)
                or not isinstance(row.get("task"), str)
                or not all(name in row and (row[name] is None or is_number(row[name])) for name in SHOWN_METRICS)
            ):
                raise UserError(
                    f"{path} is not a whole results.json: row {number} lacks a task or a number for one of "
                    f"{', '.join(SHOWN_METRICS)}; run test.py again"
                )
        documents[label] = document
    return documents


def merge_results(documents: Mapping[str, Mapping[str, Any]], expected: Sequence[str]) -> dict[str, Any]:
    """Return one results document over the runs that `documents` holds by label (`trial 1`).

    rows: each protocol of each run, called `PROTOCOL LABEL`. averages: each protocol over the runs, `lists` of
    `expected_lists` runs, `NAME sd`. Rows of one protocol belong together whatever their tasks are called; a run's own
    average stands for a group of lists (draws). expected: labels of all runs that there should be, in order. Raises
    UserError when the results cannot be averaged.
    """
    labels = [label for label in expected if label in documents]
    chosen = {label: documents[label] for label in labels}
    _check_same(chosen)
    units = _units(chosen)
    rows: list[dict[str, Any]] = []
    averages: list[dict[str, Any]] = []
    for key in _ordered(units.values()):
        members = [units[label].get(key) if label in units else None for label in expected]
        present = [row for row in members if row is not None]
        belongs = {name: present[0][name] for name in BELONGINGS if present[0].get(name)}
        # Quoted, not measured: the same in every run, and no mean of anything.
        belongs |= {name: value for name, value in present[0].items() if name.endswith(SUFFIX)}
        measures = [
            name
            for name in columns_of(present)
            if name not in NO_MEASURES
            and not name.endswith((" sd", SUFFIX))
            and all(is_number(row.get(name)) or row["mAP"] is None for row in present)
        ]
        name = stamped(*key)
        columns = list(dict.fromkeys([*SHOWN_METRICS, *measures]))
        averages += [
            row | belongs for row in group_means(members, {name: range(len(members))}, columns, deviations=True)
        ]
        rows += [
            dict(units[label][key]) | {"task": stamped(f"{key[0]} {label}", key[1]), "run": label}
            for label in labels
            if key in units[label]
        ]
    missing = [label for label in expected if label not in documents]
    described = {name: _described(chosen, name) for name in DESCRIBED}
    return {
        "rows": rows,
        "averages": averages,
        "averages_rule": MERGED_RULE,
        **_common(chosen),
        "other_units": OTHER_UNITS,
        **described,
        "data": {"dataset": _dataset(next(iter(chosen.values())))},
        "runs": {
            label: {
                name: document.get(name)
                for name in ("checkpoint", "data", "selected_on", "precision", "counts", "notes")
            }
            for label, document in chosen.items()
        },
        "missing_runs": missing,
        "notes": [*_missing_note(missing, expected), *_difference_notes(chosen), *_joined_notes(chosen)],
        "made": _made(chosen),
        **{name: next(iter(chosen.values())).get(name, {}) for name in ("options", "versions")},
    }


def _made(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how the results were made: as the first, with the overrides that all runs share."""
    first, *others = (document.get("made", {}) for document in documents.values())
    kept = [text for text in first.get("overrides", ()) if all(text in other.get("overrides", ()) for other in others)]
    return {**first, "overrides": kept} if first else {}


def write_merged(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write results.csv, results.tex and results.json of a merged document, together; return the last."""
    with files_together(folder, RESULTS_FILE) as together:
        write_tables(together, document)
    return folder / RESULTS_FILE


def format_merged(document: Mapping[str, Any]) -> str:
    """Return the averages as a table, `mean ± deviation` over the runs, then what a reader must know."""
    rows = [folded_row(row) for row in document["averages"]]
    totals = [
        {name: value for name, value in row.items() if name not in ("lists", "expected_lists")}
        for row in rows
        if row["task"].startswith(TOTAL)
    ]
    listed = [row for row in rows if not row["task"].startswith(TOTAL)]
    table = format_table(listed, shown_columns(listed, totals), totals if len(listed) > 1 else [])
    has_deviations = any(PLUS_MINUS in str(row["mAP"]) for row in rows)
    deviation = [f"{PLUS_MINUS} standard deviation over the runs, n - 1 in the denominator"] if has_deviations else []
    protocol = document["protocol"]
    for name in dict.fromkeys(row.get("protocol") for row in document["averages"]):
        protocol = protocol.replace(f"; {name}: ", f"\n{name}: ", 1) if name else protocol
    return "\n".join(
        [
            table,
            f"{protocol}; {document['tie_rule']}; average precision: {document['ap']} form; {document['precision']}",
            *deviation,
            *document["notes"],
        ]
    )


def _units(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[Key, Mapping[str, Any]]]:
    """Return by run what is averaged over the runs: lists without a group, and the run's own averages."""
    found = {
        label: [*(row for row in document["rows"] if not row.get("group")), *document["averages"]]
        for label, document in documents.items()
    }
    # Several lists of one protocol in a run cannot be told apart by it.
    ambiguous = {
        protocol
        for rows in found.values()
        for (protocol, _), count in Counter((row.get("protocol"), row.get("stamp", "")) for row in rows).items()
        if protocol and count > 1
    }
    return {label: {_key(row, ambiguous): row for row in rows} for label, rows in found.items()}


def _key(row: Mapping[str, Any], ambiguous: set[str]) -> Key:
    protocol, stamp = row.get("protocol", ""), row.get("stamp", "")
    if protocol and protocol not in ambiguous:
        return protocol, stamp
    return row["task"].removesuffix(stamped("", stamp)), stamp


def _ordered(units: Any) -> list[Key]:
    return list(dict.fromkeys(key for rows in units for key in rows))


def _check_same(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError where results differ in something that forbids their mean."""
    if not documents:
        raise UserError("no results to merge; evaluate at least one run with test.py")
    first, *others = documents
    for other in others:
        for name in SAME:
            if documents[first].get(name) != documents[other].get(name):
                raise UserError(
                    f"the results of {first} and {other} cannot be averaged: {name} is {documents[first].get(name)!r} "
                    f"and {documents[other].get(name)!r}; evaluate both in the same way"
                )
        if _dataset(documents[first]) != _dataset(documents[other]):
            raise UserError(
                f"the results of {first} and {other} are of different data sets ({_dataset(documents[first])}, "
                f"{_dataset(documents[other])}); merge those of one data set"
            )


def _common(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(documents.values()))
    return {name: first[name] for name in SAME if name in first}


def _dataset(document: Mapping[str, Any]) -> Any:
    data = document.get("data")
    return data.get("dataset") if isinstance(data, Mapping) else None


def _described(documents: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return ", ".join(dict.fromkeys(str(document.get(name, "unknown")) for document in documents.values()))


def _missing_note(missing: Sequence[str], expected: Sequence[str]) -> list[str]:
    return (
        [f"{len(missing)} of {len(expected)} runs are missing ({', '.join(missing)}); the means are over the others"]
        if missing
        else []
    )


def _difference_notes(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line for each property in which the runs differ."""
    notes = []
    for name in DESCRIBED:
        values = {label: str(document.get(name, "unknown")) for label, document in documents.items()}
        if len(set(values.values())) > 1:
            notes.append(
                f"the runs differ in {name}: {', '.join(f'{label} {value}' for label, value in values.items())}"
            )
    return notes


def _joined_notes(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the notes of the runs: once where all have it, label apart; else behind the label of its run."""
    said: dict[str, list[tuple[str, str]]] = {}
    for label, document in documents.items():
        for note in document.get("notes", ()):
            said.setdefault(re.sub(rf"\s?\b{re.escape(label)}\b", "", note).lstrip(" :,;"), []).append((label, note))
    return [
        line
        for common, notes in said.items()
        for line in (
            [common]
            if {label for label, _ in notes} == set(documents) and len(documents) > 1
            else dict.fromkeys(f"{label}: {note}" for label, note in notes)
        )
    ]
