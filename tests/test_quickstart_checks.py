"""Covers: benchmarks/chance, benchmarks/instructions. What the quickstarts check in the end: tables that miss their bar
fail, and so do those that have no row at all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import chance, instructions
from configs.vocabulary import Modality
from datasets.protocols import Search, assemble_split
from datasets.structures import Record, Source
from utils.errors import UserError


def image(name: str, person: int) -> Record:
    return Record(person_id=person, sources={Modality.RGB: Source(modality=Modality.RGB, value=name)}, name=name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two persons, of whom one has two of four gallery images and the other one: chance is 3/8."""
    gallery = [image("a", 1), image("b", 1), image("c", 2), image("d", 3)]
    search = Search(title="task-free one", protocol="p", query=[image("x", 1), image("y", 2)], gallery=gallery)
    split = assemble_split("test", [search], {"p": ""})
    config = SimpleNamespace(data=None, instruction=None)
    monkeypatch.setattr(chance, "load_experiment", lambda path: config)
    monkeypatch.setattr(chance, "build_benchmark", lambda data, **options: SimpleNamespace(splits={"test": split}))
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{"task": "task-free one", "R1": 75.0}]}))
    return tmp_path


def measured(patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.setattr(sys, "argv", ["chance", *words])
    return chance.main()


def test_rank1_is_compared_with_chance(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for least, code in (("2", 0), ("2.1", 1)):
        assert measured(monkeypatch, str(run), "--least", least, "--lists", "task-free .*") == code
        assert "37.50 % | 2.0 x" in capsys.readouterr().out


def test_a_table_without_rows_does_not_pass(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--lists joint.*: no list of .* has such a name; there are task-free one"):
        measured(monkeypatch, str(run), "--lists", "joint.*")
    with pytest.raises(UserError, match=r"--lists \(x is no regular expression"):
        measured(monkeypatch, str(run), "--lists", "(x")
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="evaluate the run first: python test.py --run"):
        measured(monkeypatch, str(run))


def compared(patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.setattr(instructions, "configure_threads", lambda: None)
    patch.setattr(sys, "argv", ["instructions", *words])
    return instructions.main()


@pytest.mark.parametrize(
    ("right", "shuffled", "code"), [(24.1, 20.0, 0), (23.9, 20.0, 1), (1.0, 0.0, 0), (0.0, 0.0, 1)]
)
def test_right_instructions_are_compared_with_others(
    right: float, shuffled: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"right": right, "shuffled": shuffled, "none": 1.0}
    monkeypatch.setattr(instructions, "measured", lambda run, given, *rest: [("real2 target", values[given])])
    assert compared(monkeypatch, str(tmp_path)) == code


def test_a_protocol_without_such_lists_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tested(*, output: str, **options: object) -> None:
        Path(output).mkdir(parents=True)
        Path(output, "results.json").write_text(json.dumps({"rows": [{"task": "joint real2", "mAP": 3.0}]}))

    monkeypatch.setattr("solver.commands.evaluate.run_test", tested)
    with pytest.raises(UserError, match="--protocol joint of .* has no list whose name ends in `target`"):
        compared(monkeypatch, str(tmp_path), "--protocol", "joint")
