"""Covers: benchmarks/reproduce, benchmarks/runs. A band holds for its configuration and its data, and tells other
figures from the same ones.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reproduce, runs
from benchmarks.runs import mean_and_deviation, parse_with_seeds, run_command
from utils.errors import UserError

FIGURES = {0: (70.0, 30.0), 1: (74.0, 31.0), 2: (72.0, 29.0)}
"""Seed -> rank-1 and mAP."""


def results(rank1: float, mean_ap: float, fingerprint: str = "f1") -> dict[str, Any]:
    """What a results.json holds of two groups, a list of one of them, and one of none."""
    row = {"R1": rank1, "mAP": mean_ap, "queries": 5}
    return {
        "rows": [{"task": "in a group", "group": "g", **row}, {"task": "alone", "R1": 50.0, "mAP": None}],
        "averages": [{"task": "g", "group": "g", **row, "mINP": 7.0}, {"task": "ALL_AVER", **row}],
        "data": {"fingerprint": fingerprint},
    }


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("family: reid5o\ntrain: {epochs: 3}\n")
    return path


def called(patch: pytest.MonkeyPatch, config: Path, found: dict[int, dict[str, Any]], *arguments: str) -> int:
    """Exit code of the command, the results of its seeds being given."""

    def trained(name: str, run: Path, options: list[str], *, resume: bool) -> dict[str, Any]:
        assert name == str(config) and not resume
        return found[int(options[0].removeprefix("seed="))]

    with patch.context() as inner:
        inner.setattr(reproduce, "train_and_test", trained)
        inner.setattr(sys, "argv", ["reproduce", str(config), "--output-dir", str(config.parent), *arguments])
        return reproduce.main()


def test_what_is_recorded_passes_and_a_shift_fails(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {seed: results(*values) for seed, values in FIGURES.items()}
    assert called(monkeypatch, config, made, "--record") == 0
    band = json.loads((config.parent / "mine.band.json").read_text())
    assert band["seeds"] == [0, 1, 2] and band["data_fingerprint"] == "f1" and band["config"]["train"]["epochs"] == 3
    assert list(band["rows"]) == ["g", "ALL_AVER", "alone"] and list(band["rows"]["alone"]) == ["R1"]
    assert band["rows"]["g"]["R1"] == {"mean": 72.0, "sd": 2.0, "values": [70.0, 74.0, 72.0]}
    assert not {"root", "cache_dir"} & band["config"]["data"].keys(), "no place of a machine"
    capsys.readouterr()
    # 72 ± 3 x 2 and 30 ± 3 x 1; `alone` has no spread, so that half a point counts.
    assert called(monkeypatch, config, made) == 0
    assert called(monkeypatch, config, {0: results(77.9, 30.0)}, "--seeds", "0") == 0
    capsys.readouterr()
    assert called(monkeypatch, config, {0: results(78.1, 30.0)}, "--seeds", "0") == 1
    out = capsys.readouterr().out
    assert "FAIL: 2 figures outside mean ± 3 deviations" in out and "78.10 ± 0.00 FAIL" in out
    assert called(monkeypatch, config, {0: results(72.0, 26.9)}, "--seeds", "0") == 1
    absent = results(72.0, 30.0)
    del absent["averages"][0]
    assert called(monkeypatch, config, {0: absent}, "--seeds", "0") == 1
    assert "absent FAIL" in capsys.readouterr().out


def test_options_may_follow_the_seeds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--seeds` takes several words, and a command often ends in options."""

    def parsed(*words: str) -> tuple[list[int] | None, list[str]]:
        monkeypatch.setattr(sys, "argv", ["script", *words])
        parser = argparse.ArgumentParser()
        parser.add_argument("--seeds", nargs="+")
        parser.add_argument("overrides", nargs="*")
        found = parse_with_seeds(parser)
        return found.seeds, found.overrides

    assert parsed("a.b=1", "--seeds", "3", "-1", "c={x: 1}", "d=") == ([3, -1], ["a.b=1", "c={x: 1}", "d="])
    assert parsed() == (None, [])
    for words, said in ((["0", "one"], "seeds are integers, not 0 one"), (["a=1"], "give at least one seed")):
        with pytest.raises(SystemExit, match="2"):
            parsed("--seeds", *words)
        assert said in capsys.readouterr().err


def test_a_band_says_nothing_of_other_options_or_data(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {seed: results(*values) for seed, values in FIGURES.items()}
    with pytest.raises(UserError, match=r"mine.band.json \(a recorded band; make one with --record\)"):
        called(monkeypatch, config, made)
    assert called(monkeypatch, config, made, "--record") == 0
    with pytest.raises(UserError, match="other options: train.epochs: 3 there, 4 now"):
        called(monkeypatch, config, made, "train.epochs=4")
    assert called(monkeypatch, config, made, "data.root=elsewhere", "data.workers=1", "output_dir=x") == 0
    with pytest.raises(UserError, match="recorded on data f1, these are f2"):
        called(monkeypatch, config, {0: results(72.0, 30.0, "f2")}, "--seeds", "0")
    with pytest.raises(UserError, match="the seeds have seen other data"):
        called(monkeypatch, config, {0: made[0], 1: results(72.0, 30.0, "f2")}, "--seeds", "0", "1")
    (config.parent / "mine.band.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match="is no recorded band"):
        called(monkeypatch, config, made)


def test_runs_are_made_by_the_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(runs, "run_command", lambda arguments, what: commands.append(list(arguments)))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "results.json").write_text('{"rows": 1}')
    assert runs.train_and_test("c.yaml", tmp_path / "r", ["seed=3"], ["eval.ap=interpolated"]) == {"rows": 1}
    place = ["name=r", f"output_dir={tmp_path}"]
    assert commands == [
        ["train.py", "--config", "c.yaml", "--overwrite", "seed=3", *place],
        ["test.py", "--run", str(tmp_path / "r"), "eval.ap=interpolated"],
    ]
    runs.train_and_test("c.yaml", tmp_path / "r", resume=True)
    assert "--resume" in commands[2] and "--overwrite" not in commands[2]


def test_a_failure_and_the_spread() -> None:
    with pytest.raises(UserError, match="^making x: no way$"):
        run_command(["-c", "import sys; print('error: no way', file=sys.stderr); sys.exit(2)"], "making x")
    assert mean_and_deviation([1.0]) == (1.0, 0.0) and mean_and_deviation([1.0, 3.0]) == (2.0, 2**0.5)
