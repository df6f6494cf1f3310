"""Covers: solver/training/engine, solver/commands/train, solver/training/state, utils/processes. Runs of several
processes: their record is that of one, they go on bit for bit, and what ends one ends all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from instructed_family import write_captioned, write_data
from linear_training import lines_of, same
from official_trees import sysu
from PIL import Image
from several import forked
from tiny_orbench import write_orbench

from configs.load import load_experiment
from solver.commands.train import run_training
from solver.training.engine import Trainer
from utils.checkpoint_io import load_checkpoint
from utils.errors import Interrupted, UserError

pytestmark = [pytest.mark.threads(2), pytest.mark.figures]

ROOT = Path(__file__).resolve().parent.parent
OWN_TIME = ("images_per_second",)


def textured(folder: Path) -> None:
    """Noise in place of one colour, which a batch norm divides by next to nothing: rounding would decide."""
    draws = np.random.default_rng(0)
    for path in sorted(folder.rglob("*.jpg")):
        Image.fromarray(draws.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in ("reid5o", "vireid", "irm")}
    write_orbench(roots["reid5o"], identities=5, images=2)
    textured(sysu(roots["vireid"]))
    write_captioned(write_data(roots["irm"]))
    roots["irmpp"] = roots["irm"]
    return roots


Started = Callable[..., list[Any]]


@pytest.fixture
def start(roots: dict[str, Path], tmp_path: Path) -> Started:
    """Number of processes, family, name and overrides -> what `run_training` returned or raised in each process."""

    def started(count: int, family: str, name: str, *overrides: str, **options: Any) -> list[Any]:
        words = [f"model.tokenizer=bert:{roots[family] / 'words'}", "model.vocab_size=200"]
        quiet = ["model.dropout=0", "model.drop_path=0"]
        own = {
            # Five rows of a batch: two and three.
            "reid5o": ["train.batch_size=5", "train.select=test", "train.eval_period=1"],
            "vireid": ["train.batch_size=8", "train.instances=2", "train.epochs=4", "model.conv_bias=false"],
            "irm": ["train.batch_size=16", *words, *quiet, "data.protocols=[lists]"],
            "irmpp": ["train.batch_size=16", *words, *quiet, "data.protocols=[task-free]"],
        }[family]
        where = [f"data.root={roots[family]}", f"output_dir={tmp_path}", f"name={name}", "data.workers=0"]
        short = ["train.epochs=2", "train.max_steps=4", *own, *overrides]
        config = load_experiment(ROOT / "configs" / family / "smoke.yaml", [*where, *short])
        before: Callable[[int], None] = options.pop("before", lambda rank: None)

        def work(rank: int) -> Any:
            before(rank)
            try:
                return run_training(config, device="cpu", overwrite=False, **options)
            except Interrupted as error:
                return int(error.signal), str(error)

        return forked(count, tmp_path / f"answers-{name}", work)

    return started


def record(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in OWN_TIME} for line in lines_of(run)]


@pytest.mark.parametrize("family", ["reid5o", "vireid", "irm", "irmpp"])
def test_the_record_of_two_processes_is_that_of_one(family: str, start: Started, tmp_path: Path) -> None:
    assert "best: " in start(1, family, "one")[0]
    first, second = start(2, family, "two")
    assert "best: " in first and second == ""
    one, two = record(tmp_path / "one"), record(tmp_path / "two")
    assert [line.keys() for line in one] == [line.keys() for line in two] and len(one) >= 3
    for line, other in zip(one, two, strict=True):
        for name, value in line.items():
            # Later steps begin from weights that rounding has moved.
            share, least = (1e-5, 1e-5) if line["step"] == 1 else (1e-2, 1e-4)
            assert other[name] == pytest.approx(value, rel=share, abs=least), name
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    assert "2 processes share the rows" in (tmp_path / "two" / "train.log").read_text()


def killed_after(steps: int, rank: int, number: int) -> Callable[[int], None]:
    """In one process: send itself a signal when a step of the run is done."""
    original = Trainer.train_step

    def step(self: Trainer, batches: Any) -> Any:
        found = original(self, batches)
        if self.step == steps:
            os.kill(os.getpid(), number)
        return found

    def before(own: int) -> None:
        if own == rank:
            Trainer.train_step = step  # type: ignore[method-assign]

    return before


def test_a_run_of_two_goes_on_bit_for_bit_and_in_one_process(start: Started, tmp_path: Path) -> None:
    """Killed and stopped by a signal to the second process alone; another number of processes may go on."""
    start(2, "irm", "whole", "model.dropout=0.3")
    often = ("model.dropout=0.3", "train.save_steps=1")
    first, second = start(2, "irm", "cut", *often, resume=True, before=killed_after(2, 1, signal.SIGKILL))
    assert second is None and isinstance(first, UserError) and "process 1 of 2 died without a word" in str(first)
    stopped = start(2, "irm", "cut", *often, resume=True, before=killed_after(3, 1, signal.SIGTERM))
    assert [number for number, _ in stopped] == [signal.SIGTERM] * 2
    assert "torchrun --nproc-per-node 2 train.py" in stopped[0][1]
    assert "best: " in start(2, "irm", "cut", *often, resume=True)[0]
    whole, cut = (load_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "cut"))
    assert same(whole["model"], cut["model"]) and same(whole["objective"], cut["objective"])
    assert record(tmp_path / "whole") == record(tmp_path / "cut")
    assert start(2, "irm", "cut", *often, resume=True)[0].startswith(str(tmp_path / "cut") + " has finished")
    start(2, "reid5o", "less", "train.save_steps=1", resume=True, before=killed_after(2, 0, signal.SIGTERM))
    assert "best: " in start(1, "reid5o", "less", "train.save_steps=1", resume=True)[0]
    assert "processes 2 before, 1 now" in (tmp_path / "less" / "train.log").read_text()
    assert len(record(tmp_path / "less")) >= 4


def test_what_one_process_cannot_do_stops_all_and_leaves_nothing(start: Started, tmp_path: Path) -> None:
    def fails(rank: int) -> None:
        if rank == 1:
            raise_in("train_step", UserError("loss id is nan at step 1"))

    for found in start(2, "reid5o", "failing", before=fails):
        assert isinstance(found, UserError) and str(found).endswith("loss id is nan at step 1")
    assert {path.name for path in (tmp_path / "failing").iterdir()} == {"failed.log"}
    assert "stopped because process 1 of 2 did" in (tmp_path / "failing" / "failed.log").read_text()


def test_other_options_stop_all_and_another_folder_does_not(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        other = [f"data.root={tmp_path}/{rank}", f"data.workers={rank}", f"optimizer.lr={0.5 - rank / 4}"]
        config = load_experiment(ROOT / "configs" / "reid5o" / "smoke.yaml", [*other, f"output_dir={tmp_path}"])
        return run_training(config, device="cpu", overwrite=False)

    for found in forked(2, tmp_path / "answers", work):
        said = "process 1 of 2 has another optimizer.lr than process 0 (0.25, not 0.5): give all the same files and "
        assert str(found) == f"{said}options"


def raise_in(method: str, error: Exception) -> None:
    def failing(*_: Any) -> Any:
        raise error

    setattr(Trainer, method, failing)
