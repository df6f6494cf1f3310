"""Covers: solver/commands/trials, solver/reports/merging, solver/training/checkpoint. Series of trials: one run each, a
checkpoint that knows its trial, merged results against hand-worked numbers, wrong input.
"""

import csv
import dataclasses
import json
import math
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import ROOT, exit_code, global_state_kept
from several import forked

from configs.load import load_experiment
from configs.schema.data import DataConfig
from datasets.build import build_benchmark
from datasets.releases.joint import read as read_joint
from datasets.structures import ReadOptions
from datasets.synthetic.render import render
from solver.commands import trials as series_of_trials
from solver.commands.evaluate import load_test_benchmark, together
from solver.commands.search import SearchOptions, run_search
from solver.commands.trials import evaluate_trials
from solver.reports.merging import format_merged, merge_results, read_series, write_merged
from solver.reports.results import compare_files
from solver.runs import open_run
from solver.training.checkpoint import joined_trials
from utils.checkpoint_io import fingerprint_state, load_checkpoint, save_checkpoint
from utils.errors import UserError

REGDB = str(ROOT / "configs" / "vireid" / "regdb.yaml")
TINY = [
    "train.epochs=2",
    "train.max_steps=2",
    "train.batch_size=8",
    "train.instances=2",
    "train.select=last",
    "data.workers=0",
    "model.init=random",
    "model.image_size=[32,16]",
    "model.depth=18",
    "model.blocks=[1,1,1,1]",
    "model.width=4",
    "model.head_width=8",
    "augment.pad_crop=2",
]
TEST_PERSONS, SHOTS = 4, 2
"""A rendered trial takes four fifths of the five test persons."""
DIRECTIONS = ("regdb-visible-to-thermal", "regdb-thermal-to-visible")


def call(name: str, *arguments: object) -> int:
    """Run a script as the command line would; return its exit code."""
    with global_state_kept():
        return exit_code(name, "--device", "cpu", *arguments)


def train(data: Path, output: Path, *arguments: str) -> int:
    return call("train", "--config", REGDB, f"data.root={data}", f"output_dir={output}", *TINY, *arguments)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RegDB's layout, rendered: five training and five test persons with two images of each modality."""
    root = tmp_path_factory.mktemp("data")
    render(
        "regdb",
        str(root),
        identities=5,
        test_identities=5,
        seed=0,
        image_size=(32, 16),
        images_per_modality=SHOTS,
        processes=1,
    )
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """runs/regdb with the trials 1 and 2. Tests leave it as it is."""
    output = tmp_path_factory.mktemp("runs")
    assert train(data, output, "--trials", "1-2") == 0
    return output / "regdb"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The results of both trials, and merged."""
    output = tmp_path_factory.mktemp("results")
    assert call("test", "--run", trained, "--trials", "1-2", "--output", output) == 0
    return output


@pytest.fixture
def copy(tmp_path: Path, trained: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "regdb"))


def document(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text())


def weights(run: Path) -> str:
    return fingerprint_state(load_checkpoint(run / "best.pth")["model"])


def error(capfd: pytest.CaptureFixture[str]) -> str:
    """The message of the one error line; no traceback."""
    lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def test_each_trial_is_an_ordinary_run_of_its_own(data: Path, trained: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["trial-01", "trial-02"]
    for trial in (1, 2):
        run = trained / f"trial-{trial:02d}"
        assert load_experiment(run / "config.yaml").data.trial == trial and load_checkpoint(run / "last.pth")[
            "trials"
        ] == {"regdb": trial}
        assert open_run(run).trials == {"regdb": trial} and json.loads((run / "outcome.json").read_text())["step"] == 2
    assert weights(trained / "trial-01") != weights(trained / "trial-02")
    # Trained alone, the second trial is the same to the last bit.
    assert train(data, tmp_path, "data.trial=2", "name=alone") == 0
    assert weights(tmp_path / "alone") == weights(trained / "trial-02")


def test_merged_results_are_mean_and_deviation_of_the_trials(
    evaluated: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    merged, single = document(evaluated), [document(evaluated / f"trial-{trial:02d}") for trial in (1, 2)]
    assert [row["task"] for row in merged["averages"]] == [*DIRECTIONS, "ALL_AVER"] and merged["missing_runs"] == []
    for average in merged["averages"]:
        for name in ("R1", "R5", "mAP", "mINP", "R20"):
            first, second = (
                next(
                    row[name]
                    for row in [*entry["rows"], *entry["averages"]]
                    if average["task"] in (row["task"], row.get("protocol"))
                )
                for entry in single
            )
            assert average[name] == pytest.approx((first + second) / 2) and average[f"{name} sd"] == pytest.approx(
                abs(first - second) / math.sqrt(2)
            )
        assert (average["lists"], average["expected_lists"]) == (2, 2)
    assert [row["task"] for row in merged["rows"][:4]] == [
        f"{name} trial {trial}" for name in DIRECTIONS for trial in (1, 2)
    ]
    assert (
        merged["rows"][1]["mAP"] == single[1]["rows"][0]["mAP"] and merged["rows"][0]["mAP"] != merged["rows"][1]["mAP"]
    )
    with (evaluated / "results.csv").open(newline="") as stream:
        rows = {row["task"]: row for row in csv.DictReader(stream)}
    assert float(rows[DIRECTIONS[1]]["mAP sd"]) == round(merged["averages"][1]["mAP sd"], 3) and len(rows) == 9
    assert call("test", "--compare", evaluated / "results.json", evaluated / "results.json") == 0
    out = capfd.readouterr().out
    assert f"{merged['averages'][0]['mAP']:.3f} (+0.000)" in out and f"| {DIRECTIONS[0]} trial 2 " in out
    assert not list(trained.glob("**/results.json")), "--output keeps the runs as they were"


def test_processes_share_each_trial(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": "", "output": str(tmp_path), "device": "cpu", "overrides": []}

    def work(_: int) -> str:
        return together("cpu", partial(evaluate_trials, run=str(trained), trials="1-2", **options))

    first, second = forked(2, tmp_path / "answers", work)
    assert "trial-01" in first and second == ""
    for name in (".", "trial-02"):
        ours, theirs = document(tmp_path / name), document(evaluated / name)
        assert len(ours["averages"]) > 0
        for ours_row, theirs_row in zip(ours["averages"], theirs["averages"], strict=True):
            assert ours_row == pytest.approx(theirs_row, abs=1e-6)


def test_each_image_is_encoded_once_in_a_trial(evaluated: Path) -> None:
    for trial in (1, 2):
        counts = document(evaluated / f"trial-{trial:02d}")["counts"]
        assert counts["sources_encoded"] == {"rgb": TEST_PERSONS * SHOTS, "nir": TEST_PERSONS * SHOTS}
        assert counts["query_list_entries"] == 2 * TEST_PERSONS * SHOTS
    runs = document(evaluated)["runs"]
    assert runs["trial 1"]["data"]["fingerprint"] != runs["trial 2"]["data"]["fingerprint"]


def test_results_lie_in_the_runs_and_a_missing_trial_is_named(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("test", "--run", copy, "--trials", "1-3") == 0
    merged, out = document(copy), capfd.readouterr().out
    assert {(row["lists"], row["expected_lists"]) for row in merged["averages"]} == {(2, 3)} and merged[
        "missing_runs"
    ] == ["trial 3"]
    assert "1 of 3 runs are missing (trial 3)" in out and f"{DIRECTIONS[0]} (mean of 2 of 3)" in out and "±" in out
    assert (
        all((copy / f"trial-{trial:02d}" / "report.html").is_file() for trial in (1, 2))
        and "no camera rule applies: regdb-visible-to-thermal, " in out
    )
    (copy / "trial-02" / "outcome.json").unlink()
    assert call("test", "--run", copy, "--trials", "2") == 0
    out = capfd.readouterr().out
    assert (
        "training is not finished in trial 2" in out
        and "±" not in out
        and "mAP sd" not in document(copy)["averages"][0]
    )


def test_a_finished_trial_is_kept_and_an_unfinished_one_is_trained_again(
    data: Path, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = weights(copy / "trial-02")
    (copy / "trial-02" / "outcome.json").unlink()
    (copy / "trial-02" / "best.pth").write_bytes(b"half")
    (copy / "trial-01" / "train.log").write_text("the first training")
    (copy / "results.json").write_text("of weights that are gone")
    assert train(data, copy.parent, "--trials", "2,1", "data.workers=0", "train.log_period=7") == 0
    out = capfd.readouterr().out
    assert (
        "trial 1: finished before and kept" in out
        and f"trial 2: best: {copy / 'trial-02' / 'best.pth'}" in out
        and f"--run {copy} --trials 2,1" in out
    )
    assert (copy / "trial-01" / "train.log").read_text() == "the first training" and weights(
        copy / "trial-02"
    ) == before
    assert not (copy / "results.json").exists()
    assert train(data, copy.parent, "--trials", "1", "optimizer.lr=0.5") == 2
    assert "optimizer.lr: 0.0001 there, 0.5 now" in error(capfd)
    for name in ("results.json", "results.csv", "results.tex"):
        (copy / name).write_text("of other weights")
    assert train(data, copy.parent, "--trials", "1", "optimizer.lr=0.5", "--overwrite") == 0
    assert not list(copy.glob("results.*"))
    assert (
        load_experiment(copy / "trial-01" / "config.yaml").optimizer.lr == 0.5 and weights(copy / "trial-02") == before
    )
    (copy / "trial-03").mkdir()
    (copy / "trial-03" / "mine.txt").write_text("mine")
    assert train(data, copy.parent, "--trials", "3") == 2
    assert "trial-03 exists and is not empty" in error(capfd)


@pytest.mark.parametrize(
    "option",
    [
        "seed=5",
        "data.val_fraction=0.25",
        "augment.flip=0.125",
        "model.width=8",
        "objective.margin=0.5",
        "train.epochs=3",
        "optimizer.bias_lr_factor=3.0",
        "schedule.gamma=0.25",
        "eval.ap=trapezoid",
    ],
)
def test_a_trial_of_another_configuration_is_not_finished(
    data: Path, trained: Path, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One option of every section."""
    assert train(data, trained.parent, "--trials", "1", option) == 2
    assert f"with another configuration ({option.partition('=')[0]}: " in error(capfd)


def test_a_failing_trial_stops_the_series_by_its_name(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    (broken / "RegDB" / "idx" / "train_thermal_2.txt").unlink()
    assert train(broken, tmp_path / "runs", "--trials", "1-3") == 2
    assert "error: trial 2: " in (message := error(capfd)) and "train_thermal_2.txt" in message
    assert not (tmp_path / "runs").exists(), "all lists are read before the first step"

    def stopped(config: Any, *, device: str, overwrite: bool, resume: bool) -> str:
        if config.data.trial == 2:
            raise UserError("loss id is nan at step 7")
        return "best: made up\nevaluate it"

    monkeypatch.setattr(series_of_trials, "run_training", stopped)
    assert train(data, tmp_path / "runs", "--trials", "1-3") == 2
    assert error(capfd) == "error: trial 2: loss id is nan at step 7"


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ("0-3", "--trials 0-3: regdb has the trials 1..10"),
        ("11", "--trials 11: regdb has the trials 1..10"),
        ("a-b", "--trials 'a-b': must be numbers like 1-10"),
        ("3-1", "3-1 runs backwards"),
        ("", "must be numbers"),
        ("1,,2", "must be numbers"),
        ("1-999999", "the trials 1..10"),
    ],
)
def test_wrong_trials_are_refused(
    data: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], trials: str, expected: str
) -> None:
    assert train(data, tmp_path / "runs", f"--trials={trials}") == 2
    assert expected in error(capfd) and not (tmp_path / "runs").exists()
    assert call("test", "--run", trained, f"--trials={trials}", "--output", tmp_path / "out") == 2
    assert expected in error(capfd) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dataset", ["sysu", "orbench"])
def test_a_data_set_without_trials_refuses_the_option(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], dataset: str
) -> None:
    assert train(data, tmp_path, "--trials", "1-2", f"data.dataset={dataset}") == 2
    assert f"data set {dataset} has no trials; remove the option" in error(capfd)


def test_trials_and_their_numbers_belong_together(
    data: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, "--trials", "1", "data.trial=2") == 2
    assert "not both" in error(capfd)
    assert call("test", "--config", REGDB, "--checkpoint", "x.pth", "--trials", "1") == 2
    assert "--trials needs --run" in error(capfd)
    assert call("test", "--run", trained / "trial-01", "--trials", "1") == 2
    assert "is a single run, not a series" in error(capfd)
    assert call("test", "--run", trained) == 2
    assert "it holds the runs trial-01, trial-02" in error(capfd)
    assert call("test", "--run", trained, "--trials", "3-4") == 2
    assert "of the trials 3-4; there: trial-01, trial-02" in error(capfd)
    assert call("test", "--run", tmp_path / "nothing", "--trials", "1") == 2
    assert "no such run directory" in error(capfd)
    assert train(data, trained.parent, "name=regdb", "data.trial=11") == 2
    assert "data.trial = 11: must be 1..10" in error(capfd)


def test_a_checkpoint_refuses_another_trial(
    copy: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("test", "--run", copy / "trial-01", "data.trial=2", "--output", tmp_path / "out") == 2
    message = error(capfd)
    assert (
        "trained on trial 1 of regdb, but the test lists are of trial 2" in message
        and "data.trial=1" in message
        and not (tmp_path / "out").exists()
    )
    shutil.copytree(copy / "trial-01", copy / "trial-03")
    assert call("test", "--run", copy, "--trials", "3") == 2
    assert "error: trial 3: " in (message := error(capfd)) and "was trained on trial 1 of regdb" in message
    with global_state_kept(), pytest.raises(UserError, match="trained on trial 1 of regdb"):
        run_search(
            SearchOptions(
                run=str(copy / "trial-01"),
                tasks=(f"{DIRECTIONS[0]} trial 2",),
                output=str(tmp_path / "found.png"),
                device="cpu",
                overrides=["data.trial=2"],
            )
        )
    assert train(data, tmp_path, "name=next", "data.trial=2", f"train.init_from={copy / 'trial-01'}") == 2
    assert "this run trains on trial 2" in error(capfd) and not (tmp_path / "next").exists()


def test_trials_are_inherited_and_known_in_joint_data(copy: Path, data: Path) -> None:
    assert joined_trials({}, str(copy / "trial-02")) == {"regdb": 2} == joined_trials({"regdb": 2}, "")
    joint = read_joint(
        data,
        ReadOptions(
            data=DataConfig(
                trial=2,
                members=("regdb",),
            )
        ),
    )
    assert joint.trials == {"regdb": 2}
    benchmark = build_benchmark(
        DataConfig(dataset="joint", root=str(data), trial=2, members=("regdb",)), select="last", need_train=False
    )
    assert benchmark.trials == {"regdb": 2}
    trained = open_run(copy / "trial-01")
    other = dataclasses.replace(trained.config, data=benchmark_config(data, 2))
    with pytest.raises(UserError, match="trained on trial 1 of regdb"):
        load_test_benchmark(other, trained)
    # A checkpoint that records no trial is used with any.
    content = load_checkpoint(copy / "trial-01" / "best.pth")
    save_checkpoint(copy / "trial-01" / "best.pth", {key: value for key, value in content.items() if key != "trials"})
    assert load_test_benchmark(other, open_run(copy / "trial-01")).trials == {"regdb": 2}


def benchmark_config(data: Path, trial: int) -> DataConfig:
    return DataConfig(dataset="joint", root=str(data), trial=trial, members=("regdb",))


def row(task: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"task": task, **dict.fromkeys(("R1", "R5", "R10", "mAP", "mINP"), value), **more}


def result(rows: list[dict[str, Any]], averages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "rows": rows,
        "averages": averages,
        "split": "test",
        "ap": "sum",
        "tie_rule": "ties",
        "units": "percent",
        "protocol": "p: made up",
        "precision": "fp32",
        "selected_on": "last",
        "data": {"dataset": "made up", "fingerprint": "0"},
        "notes": [],
        **more,
    }


def test_merging_by_hand() -> None:
    documents = {
        f"trial {number}": result(
            [
                row(f"p {number}", value, protocol="p", R20=value),
                row(f"p {number} [flip]", value + 1, protocol="p", stamp="flip"),
            ],
            [row("ALL_AVER", 2 * value, lists=1, expected_lists=1)],
        )
        for number, value in ((1, 10.0), (2, 20.0), (4, 60.0))
    }
    merged = merge_results(documents, ["trial 1", "trial 2", "trial 3", "trial 4"])
    plain, flipped, total = merged["averages"]
    # Mean of 10, 20, 60 = 30; deviation: (400 + 100 + 900) / 2 = 700.
    assert (
        plain["task"] == plain["protocol"] == "p"
        and plain["mAP"] == 30.0
        and plain["mAP sd"] == pytest.approx(math.sqrt(700)) == plain["R20 sd"]
    )
    assert (
        flipped["task"] == "p [flip]" and flipped["stamp"] == "flip" and flipped["R1"] == 31.0 and "R20" not in flipped
    )
    assert total["task"] == "ALL_AVER" and total["mAP"] == 60.0 and total["mAP sd"] == pytest.approx(2 * math.sqrt(700))
    assert {(entry["lists"], entry["expected_lists"]) for entry in merged["averages"]} == {(3, 4)} and merged[
        "missing_runs"
    ] == ["trial 3"]
    assert [entry["task"] for entry in merged["rows"][:4]] == [
        "p trial 1",
        "p trial 2",
        "p trial 4",
        "p trial 1 [flip]",
    ]
    text = format_merged(merged)
    assert "| p (mean of 3 of 4) " in text and "30.000 ± 26.458" in text and "1 of 4 runs are missing (trial 3)" in text


def test_a_run_without_a_number_enters_no_mean() -> None:
    merged = merge_results(
        {"a": result([row("p", 5.0, protocol="p")], []), "b": result([row("p", None, protocol="p")], [])}, ["a", "b"]
    )
    assert merged["averages"] == [row("p", 5.0, lists=1, expected_lists=2, protocol="p")]


def test_draws_are_merged_as_the_mean_that_each_run_made_of_them() -> None:
    documents = {
        label: result(
            [row(f"p draw {draw}", value + draw, protocol="p", group="p") for draw in (1, 2)],
            [
                row("p", value, protocol="p", group="p", lists=2, expected_lists=2, **{"mAP sd": 99.0}),
                row("ALL_AVER", value),
            ],
        )
        for label, value in (("seed 0", 40.0), ("seed 1", 44.0))
    }
    merged = merge_results(documents, list(documents))
    assert merged["averages"][0]["mAP"] == 42.0 and merged["averages"][0]["mAP sd"] == pytest.approx(math.sqrt(8))
    assert Counter(entry["task"] for entry in merged["rows"]) == dict.fromkeys(
        ("p seed 0", "p seed 1", "ALL_AVER seed 0", "ALL_AVER seed 1"), 1
    )


def test_lists_that_share_a_protocol_within_a_run_stay_apart() -> None:
    documents = {
        label: result(
            [row("first", value, protocol="p"), row("second", value + 50, protocol="p"), row("NIR", value)], []
        )
        for label, value in (("a", 10.0), ("b", 30.0))
    }
    assert {entry["task"]: entry["mAP"] for entry in merge_results(documents, list(documents))["averages"]} == {
        "first": 20.0,
        "second": 70.0,
        "NIR": 20.0,
    }


def test_what_forbids_or_explains_a_mean() -> None:
    one = result([row("p", 1.0)], [], notes=["trial 1: is alike", "selected on test", "only here"])
    two = result([row("p", 2.0)], [], notes=["trial 2: is alike", "selected on test"], precision="bf16")
    merged = merge_results({"trial 1": one, "trial 2": two}, ["trial 1", "trial 2"])
    assert merged["notes"] == [
        "the runs differ in precision: trial 1 fp32, trial 2 bf16",
        "is alike",
        "selected on test",
        "trial 1: only here",
    ]
    for change, message in (
        ({"ap": "trapezoid"}, "ap is 'sum' and 'trapezoid'"),
        ({"relevance": {"encoder": "tfidf"}}, "relevance"),
        ({"data": {"dataset": "else"}}, "different data sets"),
    ):
        with pytest.raises(UserError, match=message):
            merge_results({"trial 1": one, "trial 2": two | change}, ["trial 1", "trial 2"])
    with pytest.raises(UserError, match="no results to merge"):
        merge_results({}, ["trial 1"])


def test_corrupted_results_are_named(evaluated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = document(evaluated / "trial-01")
    broken = tmp_path / "results.json"
    for change, message in (
        ("{", "is not valid JSON"),
        (json.dumps({"rows": []}), "is not a results.json"),
        (json.dumps({**whole, "rows": [{"task": "p", "R1": 1.0}]}), "row 0 lacks"),
        (json.dumps({**whole, "rows": [3]}), "row 0 lacks"),
        (json.dumps({**whole, "averages": [row("p", 1.0) | {"mAP": "high"}]}), "row 2 lacks"),
    ):
        broken.write_text(change)
        with pytest.raises(UserError, match=f"{broken.name}.*{message}"):
            read_series({"trial 1": evaluated / "trial-01" / "results.json", "trial 2": broken})
    broken.write_text((evaluated / "results.json").read_text()[:200])
    assert call("test", "--compare", evaluated / "results.json", broken) == 2
    assert "is not valid JSON" in error(capfd)


def test_a_merged_file_can_be_compared(tmp_path: Path) -> None:
    for name, values in (("a", (10.0, 20.0)), ("b", (14.0, 30.0))):
        write_merged(
            tmp_path / name,
            merge_results(
                {f"run {index}": result([row("p", value)], []) for index, value in enumerate(values)},
                ["run 0", "run 1"],
            ),
        )
    text = compare_files(tmp_path / "a" / "results.json", tmp_path / "b" / "results.json")
    assert "22.000 (+7.000)" in text and "14.000 (+4.000)" in text
    assert np.isclose(document(tmp_path / "b")["averages"][0]["mAP sd"], np.std([14.0, 30.0], ddof=1))
