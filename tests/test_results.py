"""Covers: solver/reports/results, utils/origin. Result files: the same numbers in JSON and CSV, per-query arrays that
come back, where a result came from, comparison, the script's manners.
"""

import csv
import dataclasses
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from list_values import values_of
from scripts import exit_code

from configs.vocabulary import GROUP_NAMES, Modality, combination_name
from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.result import EvaluationResult, ListResult, RankedSplit, SkippedSource
from solver.reports.results import (
    Provenance,
    compare_files,
    format_result,
    read_per_query,
    read_results,
    shown_columns,
    write_results,
)
from utils.errors import UserError
from utils.origin import code_commit

ROOT = Path(__file__).parent.parent
PROVENANCE = Provenance(
    checkpoint="runs/x/best.pth",
    checkpoint_fingerprint="0123",
    selected_on="test",
    dataset="orbench",
    data_fingerprint="4567",
    epoch=3,
    step=9,
    versions={"torch": "x"},
    date="2026-01-02T03:04:05+00:00",
    command="python test.py --run runs/x eval.ap=sum",
    overrides=("eval.ap=sum",),
    commit="89ab",
    options={"ap": "sum"},
)
NIR, TEXT, CP = (Modality.NIR,), (Modality.TEXT,), (Modality.NIR, Modality.CP)


def make_result(nir_precision: tuple[float, ...] = (100.0, 50.0, 12.5), nir: str = "NIR") -> EvaluationResult:
    """Three lists: scored, without any match, and with one unmatched and one unreadable entry."""
    nan = math.nan
    values = {
        NIR: ([1, 2, 6], nir_precision, (100.0, 25.0, 10.0)),
        TEXT: ([0, 0], (nan, nan), (nan, nan)),
        CP: ([1, 0, -1, 11], (70.0, nan, nan, 10.0), (40.0, nan, nan, 20.0)),
    }
    names = {**{key: combination_name(key) for key in values}, NIR: nir}
    lists = tuple(
        ListResult(
            task=names[key],
            combination=key,
            gallery=20,
            first_rank=np.array(ranks),
            per_query=values_of(ranks, precision, penalty),
            group=GROUP_NAMES[len(key)],
            draws=False,
        )
        for key, (ranks, precision, penalty) in values.items()
    )
    split = EvalSplit(
        name="test",
        protocol="made up",
        gallery=(),
        gallery_ids=(),
        query_lists=tuple(
            QueryList(
                title=names[key],
                combination=key,
                entries=(tuple(Source(modality=kind, value="x") for kind in key),) * len(values[key][0]),
                person_ids=tuple(range(len(values[key][0]))),
            )
            for key in values
        ),
    )
    ranked = RankedSplit(
        plan=plan_evaluation([split]).splits[0],
        features=torch.empty(0, 2),
        gallery_features=torch.empty(0, 2),
        gallery=np.empty(0, dtype=np.int64),
    )
    skipped = SkippedSource(source=Source(modality=Modality.CP, value="cp/1.jpg", record="entry 7"), reason="damaged")
    return EvaluationResult(
        name="test",
        protocol="made up",
        lists=lists,
        missing_lists={"CP": "ONE_AVER", "SK": "ONE_AVER"},
        ap_form="sum",
        precision="fp32",
        counts={"sources_encoded_total": 5},
        cache={"stored": "nothing"},
        skipped=(skipped,),
        seconds={},
        ranked=ranked,
    )


def test_json_holds_hand_worked_numbers(tmp_path: Path) -> None:
    document = json.loads(write_results(tmp_path, make_result(), PROVENANCE).read_text())
    nir, text, pair = document["rows"]
    assert nir == pytest.approx(
        {
            "task": "NIR",
            "R1": 100 / 3,
            "R5": 200 / 3,
            "R10": 100,
            "mAP": 162.5 / 3,
            "mINP": 45,
            "R20": 100,
            "median_rank": 2,
            "queries": 3,
            "gallery": 20,
            "group": "ONE_AVER",
        }
    )
    assert text == {
        "task": "TEXT",
        "R1": None,
        "R5": None,
        "R10": None,
        "mAP": None,
        "mINP": None,
        "R20": None,
        "median_rank": None,
        "queries": 0,
        "gallery": 20,
        "group": "ONE_AVER",
    }
    shares = {"R1": 50, "R5": 50, "R10": 50, "R20": 100}
    # First matches at ranks 1 and 11: the median lies between them.
    counts = {"queries": 2, "gallery": 20, "group": "TWO_AVER"}
    assert pair == {"task": "NIR+CP", **shares, "mAP": 40, "mINP": 30, "median_rank": 6, **counts}
    one, two, total = document["averages"]
    assert (one["task"], one["lists"], one["expected_lists"]) == ("ONE_AVER", 1, 4) and one["mAP"] == nir["mAP"]
    assert (two["task"], two["lists"], two["expected_lists"]) == ("TWO_AVER", 1, 1)
    assert total["task"] == "ALL_AVER" and total["mAP"] == pytest.approx((162.5 / 3 + 40) / 2)
    assert document["without_match"] == {"TEXT": [0, 1], "NIR+CP": [1]} and document["counts"]["entries_left_out"] == 1
    assert document["unreadable_sources"] == [{"modality": "cp", "record": "entry 7", "reason": "damaged"}]
    assert document["selected_on"] == "test" and any(note.startswith("selected on test") for note in document["notes"])
    assert (
        document["protocol"] == "made up"
        and document["ap"] == "sum"
        and document["checkpoint"]["fingerprint"] == "0123"
    )


def test_a_threshold_that_keeps_every_match_has_no_column() -> None:
    rows: list[dict[str, Any]] = [
        {"task": "a", "mAP@0.25": 40.0, "kept@0.25": 1.0, "mAP@0.5": 30.0, "kept@0.5": 0.99999},
        {"task": "b", "mAP@0.25": "40.000 ± 0.000", "kept@0.25": "1.000 ± 0.000", "mAP@0.5": None, "kept@0.5": None},
    ]
    assert shown_columns(rows)[-2:] == ["mAP@0.5", "kept@0.5"] and "mAP@0.25" not in shown_columns(rows)
    assert "kept@0.25" in shown_columns(rows, [{"task": "c", "mAP@0.25": 1.0, "kept@0.25": 0.5}])


def test_a_result_says_how_it_was_made(tmp_path: Path) -> None:
    document = json.loads(write_results(tmp_path, make_result(), PROVENANCE).read_text())
    assert document["made"] == {
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python test.py --run runs/x eval.ap=sum",
        "overrides": ["eval.ap=sum"],
        "commit": "89ab",
    }
    assert document["options"] == {"ap": "sum"}


def test_the_commit_is_that_of_the_folder(tmp_path: Path) -> None:
    assert code_commit(tmp_path) == "unknown"
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")

    def call(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=b@c"]
        return subprocess.run([git, *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    call("init", "-q")
    (tmp_path / "a").write_text("one")
    call("add", "a")
    call("commit", "-qm", "first")
    commit = call("rev-parse", "HEAD").strip()
    assert code_commit(tmp_path) == commit
    (tmp_path / "a").write_text("two")
    assert code_commit(tmp_path) == f"{commit}-dirty"


def test_csv_holds_the_same_numbers(tmp_path: Path) -> None:
    document = json.loads(write_results(tmp_path, make_result(), PROVENANCE).read_text())
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = [*document["rows"], *document["averages"]]
    assert [row["task"] for row in rows] == [row["task"] for row in expected]
    names = ("R1", "R5", "R10", "mAP", "mINP", "R20", "median_rank")
    for row, wanted in zip(rows, expected):
        assert [float(row[name]) if row[name] else None for name in names] == [
            None if wanted[name] is None else round(wanted[name], 3) for name in names
        ]
    assert document["units"] == "percent" and document["other_units"] == {"median_rank": "rank"}


def test_per_query_results_come_back(tmp_path: Path) -> None:
    path = write_results(tmp_path, make_result(), PROVENANCE)
    found = read_per_query(path, read_results(path))
    assert list(found) == ["NIR", "TEXT", "NIR+CP"]
    for entry in make_result().lists:
        assert np.array_equal(found[entry.task]["first_rank"], entry.first_rank)
        assert np.array_equal(found[entry.task]["average_precision"], entry.per_query["mAP"], equal_nan=True)
        assert np.array_equal(found[entry.task]["inverse_penalty"], entry.per_query["mINP"], equal_nan=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "per_query.npz",
        "results.csv",
        "results.json",
        "results.tex",
    ]
    with np.load(tmp_path / "per_query.npz", allow_pickle=False) as arrays:
        names = json.loads(arrays["source_names"].tobytes())
        asked = make_result().ranked.split.query_lists[2]
        assert [[names[number] for number in row] for row in arrays["NIR+CP/sources"]] == [
            [source.value for source in entry] for entry in asked.entries
        ]


def test_a_task_may_have_a_slash_in_its_name(tmp_path: Path) -> None:
    """Tasks of own data are called own-data/same-camera."""
    paths = []
    for name, values in (("a", (100.0, 50.0, 12.5)), ("b", (100.0, 20.0, 62.5))):
        result = make_result(values, "own-data/same-camera")
        paths.append(write_results(tmp_path / name, result, PROVENANCE))
        assert list(read_per_query(paths[-1], read_results(paths[-1]))) == ["own-data/same-camera", "TEXT", "NIR+CP"]
    assert "own-data/same-camera: 1 queries better, 1 worse, 1 equal" in compare_files(*paths)


def test_printed_table_has_the_references_columns() -> None:
    lines = format_result(make_result()).splitlines()
    assert [cell.strip() for cell in lines[1].strip("|").split("|")] == ["task", "R1", "R5", "R10", "mAP", "mINP"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert ["NIR", "33.333", "66.667", "100.000", "54.167", "45.000"] in cells
    assert cells[-1][0].startswith("ALL_AVER (over 2 of 5)") and any("CP, SK" in line for line in lines)


def test_compare_lists_what_changed(tmp_path: Path) -> None:
    first = write_results(tmp_path / "a", make_result(), PROVENANCE)
    other = dataclasses.replace(PROVENANCE, checkpoint_fingerprint="89ab")
    second = write_results(tmp_path / "b", make_result((100.0, 20.0, 62.5)), other)
    text = compare_files(first, second)
    assert "different checkpoint" in text and "89ab" in text
    assert "NIR: 1 queries better, 1 worse, 1 equal" in text
    assert f"{182.5 / 3:.3f} ({20 / 3:+.3f})" in text
    (tmp_path / "b" / "per_query.npz").unlink()
    assert "queries are not compared" in compare_files(first, second)
    assert compare_files(first.parent, second.parent).splitlines()[2:] == compare_files(first, second).splitlines()[2:]


def test_results_of_before_a_metric_are_compared(tmp_path: Path) -> None:
    now = write_results(tmp_path / "now", make_result(), PROVENANCE)
    text = compare_files(now, now)
    assert "lower is better: median_rank\n" in text
    header = ["task", "R1", "R5", "R10", "mAP", "mINP", "R20", "median_rank"]
    assert [cell.strip() for cell in text.splitlines()[4].strip("|").split("|")] == header
    before = write_results(tmp_path / "before", make_result(), PROVENANCE)
    document = json.loads(before.read_text())
    for row in [*document["rows"], *document["averages"]]:
        del row["median_rank"]
    before.write_text(json.dumps(document))
    with np.load(tmp_path / "now" / "per_query.npz") as archive:
        older = {name: archive[name] for name in archive.files if not name.endswith("/inverse_penalty")}
    np.savez(tmp_path / "before" / "per_query.npz", **older)
    text = compare_files(before, now)
    assert "median_rank" not in text and "R20" in text and "NIR: 0 queries better, 0 worse, 3 equal" in text
    np.savez(tmp_path / "before" / "per_query.npz", **{"NIR/first_rank": older["NIR/first_rank"]})
    with pytest.raises(UserError, match="lacks arrays of NIR; run test.py again"):
        compare_files(before, now)


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path, make_result(), PROVENANCE)
    (tmp_path / "per_query.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="per_query.npz cannot be read"):
        compare_files(path, path)
    path.write_text('{"rows": 1}')
    with pytest.raises(UserError, match="not a results.json"):
        read_results(path)
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "absent.json")


@pytest.mark.parametrize("arguments", [[], ["--run", "x", "--config", "y"], ["--config", "y"], ["--compare", "a"]])
def test_wrong_command_lines_are_refused(arguments: list[str]) -> None:
    assert exit_code("test", *arguments) == 2
