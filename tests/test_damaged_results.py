"""Covers: solver/reports/results, utils/tables. Result files that are damaged or crafted end in one sentence when
they are compared.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.reports.results import compare_files
from utils.errors import UserError
from utils.tables import is_number

ROWS = [{"task": "NIR", "mAP": 50.0, "R1": 40.0, "queries": 2}]
ARRAYS = {
    "NIR/first_rank": np.array([1, 2], np.int32),
    "NIR/average_precision": np.array([100.0, 50.0], np.float32),
    "NIR/person_ids": np.array([4, 5]),
}


def write(folder: Path, document: Any, arrays: dict[str, np.ndarray] | bytes | None = None) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(document if isinstance(document, str) else json.dumps(document))
    if isinstance(arrays, bytes):
        (folder / "per_query.npz").write_bytes(arrays)
    elif arrays is not None:
        np.savez(folder / "per_query.npz", **arrays)  # type: ignore[arg-type]
    return folder / "results.json"


GOOD = {"rows": ROWS, "averages": [], "protocol": "p", "per_query": "per_query.npz"}
DOCUMENTS: dict[str, Any] = {
    "rows of numbers": {**GOOD, "rows": [1, 2]},
    "a task of lists": {**GOOD, "rows": [{"task": [1], "mAP": 1.0}]},
    "a number of lists": {**GOOD, "rows": [{"task": "NIR", "mAP": [1.0]}]},
    "averages of texts": {**GOOD, "averages": ["x"]},
    "no rows": {**GOOD, "rows": []},
    "deep": "[" * 100_000,
    "a list": "[]",
    "cut": json.dumps(GOOD)[:-4],
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_damaged_documents(tmp_path: Path, name: str) -> None:
    good, bad = write(tmp_path / "good", GOOD, ARRAYS), write(tmp_path / "bad", DOCUMENTS[name])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(UserError):
            compare_files(*pair)


PER_QUERY: dict[str, Any] = {
    "noise": b"\x93NUMPY" * 50,
    "empty": b"",
    "matrix": {**ARRAYS, "NIR/first_rank": np.ones((2, 2), np.int32)},
    "scalar": {name: array[0] for name, array in ARRAYS.items()},
    "short": {**ARRAYS, "NIR/average_precision": np.ones(1, np.float32)},
    "texts": {**ARRAYS, "NIR/average_precision": np.array(["a", "b"])},
    "ranks of floats": {**ARRAYS, "NIR/first_rank": np.array([np.nan, 1.0])},
    "lacking": {"NIR/first_rank": ARRAYS["NIR/first_rank"]},
}


@pytest.mark.parametrize("name", PER_QUERY)
def test_damaged_arrays(tmp_path: Path, name: str) -> None:
    good, bad = write(tmp_path / "good", GOOD, ARRAYS), write(tmp_path / "bad", GOOD, PER_QUERY[name])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match="per_query.npz"):
            compare_files(*pair)


@pytest.mark.parametrize("change", [{"mAP": 10**400}, {"mAP": "high"}, {"mAP": None}, {"mAP": True}])
def test_odd_numbers_are_no_numbers(tmp_path: Path, change: dict[str, Any]) -> None:
    good = write(tmp_path / "good", GOOD, ARRAYS)
    odd = write(tmp_path / "odd", {**GOOD, "rows": [{**ROWS[0], **change}]}, ARRAYS)
    assert "NIR" in compare_files(good, odd) and "NIR" in compare_files(odd, good)
    assert not is_number(change["mAP"])


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "absent.npz", ""])
def test_per_query_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    good, odd = write(tmp_path / "good", GOOD, ARRAYS), write(tmp_path / "odd", {**GOOD, "per_query": name})
    compare: Callable[..., str] = compare_files
    assert "queries are not compared" in compare(good, odd)
