"""Covers: configs/changes, solver/training/interruption, solver/training/selection, solver/training/state,
solver/commands/train, solver/run_directory. What --resume refuses and says, what signals do, what killed processes
leave: states that are damaged, locks, half-written files.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_training import lines_of, same
from scripts import SCRIPTS
from tiny_orbench import write_orbench

from configs.load import load_experiment
from solver.commands.train import run_training
from solver.run_directory import check_start, state_files
from solver.training.engine import Trainer
from solver.training.interruption import SIGNALS, Interruption
from solver.training.selection import best_so_far
from solver.training.state import StateFiles
from utils.checkpoint_io import load_checkpoint, load_tensors
from utils.errors import Interrupted, UserError
from utils.locks import is_locked, locked_folder

pytestmark = pytest.mark.usefixtures("keep_logging")
ROOT = Path(__file__).resolve().parent.parent
SMOKE = str(ROOT / "configs" / "reid5o" / "smoke.yaml")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"))


def options(data: Path, output: Path) -> list[str]:
    return [f"data.root={data}", f"output_dir={output}", "name=run", "train.batch_size=4", "train.save_steps=1"]


def train(data: Path, output: Path, *overrides: str, resume: bool = True) -> str:
    config = load_experiment(SMOKE, [*options(data, output), *overrides])
    return run_training(config, device="cpu", overwrite=False, resume=resume)


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of two steps that was killed behind its third step."""
    output = tmp_path_factory.mktemp("stopped")
    step = Trainer.save_state

    def dying(self: Trainer, writer: Any) -> None:
        step(self, writer)
        if self.step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "save_state", dying)
        train(data, output)
    return output


@pytest.fixture
def output(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped / "run", tmp_path / "run")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr: 0.0012 there, 0.5 now"),
        (["seed=3", "augment.flip=0.1"], "seed: 0 there, 3 now, augment.flip: 0.5 there, 0.1 now"),
        (["train.epochs=9"], "the learning rate was planned for 2 epochs"),
        (["train.max_steps=3"], "train.max_steps: 0 there, 3 now"),
        (["train.accumulate=2", "train.ema=0.9"], "train.accumulate: 1 there, 2 now"),
        (["model.mmt_depth=2"], "model.mmt_depth: 1 there, 2 now"),
    ],
)
def test_another_configuration_is_refused_with_its_differences(
    data: Path, output: Path, overrides: list[str], words: str
) -> None:
    before = contents(output / "run")
    with pytest.raises(UserError) as caught:
        train(data, output, *overrides)
    assert words in str(caught.value) and f"train.init_from={output / 'run'}" in str(caught.value)
    assert contents(output / "run") == before


def test_other_data_is_refused(output: Path, tmp_path: Path) -> None:
    other = write_orbench(tmp_path / "other", identities=5)
    with pytest.raises(UserError) as caught:
        train(other, output)
    text = str(caught.value)
    assert "data fingerprint: " in text and "model.classifier.weight: (4, 32) there, (5, 32) now" in text
    assert "loader" not in text and "train.init_from" in text


def test_other_shapes_and_formats_are_refused(data: Path, output: Path) -> None:
    newest = state_files(output / "run")[0]
    state = load_tensors(newest)
    groups = state["parts"]["optimizer"]["param_groups"]
    queue = {"queue": torch.zeros(4, 2)}
    for change, words in (
        ({"parts": {**state["parts"], "objective": queue}}, r"objective.queue: \(4, 2\) there, absent now"),
        ({"parts": {**state["parts"], "optimizer": {"state": {}, "param_groups": groups[1:]}}}, "optimizer.group 0: "),
        ({"format_version": 2}, "format of states: 2 there, 1 in this code"),
    ):
        torch.save({**state, **change}, newest)
        with pytest.raises(UserError, match=words):
            train(data, output)
    assert len(lines_of(output / "run")) == 3, "nothing is cut off before the run can go on"


def test_what_cannot_change_results_may_change(
    data: Path, output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    whole = tmp_path / "whole"
    train(data, whole)
    monkeypatch.setenv("OMP_NUM_THREADS", "2" if torch.get_num_threads() == 1 else "1")
    changed = ["data.workers=1", f"data.cache_dir={tmp_path / 'cache'}", "train.log_period=3", "train.save_steps=0"]
    (output / "run").rename(output / "renamed")
    train(moved, output, *changed, "train.save_minutes=1", "train.keep_states=1", "name=renamed")
    for name in ("last.pth", "best.pth"):
        first, second = (load_checkpoint(run / name)["model"] for run in (whole / "run", output / "renamed"))
        for key, value in first.items():
            # The gradient of an attention's key biases is zero but for rounding, which Adam makes a whole step of.
            if not key.endswith(("qkv.bias", "in_proj_bias")):
                torch.testing.assert_close(second[key], value)
    saved = load_experiment(output / "renamed" / "config.yaml")
    assert saved.data.root == str(moved) and saved.train.log_period == 3
    assert [line["step"] for line in lines_of(output / "renamed")] == [1, 2, 3, 4]
    log = (output / "renamed" / "train.log").read_text()
    assert "goes on after step 3, in epoch 2" in log and log.index("step 3: ") < log.index("goes on after")


def test_a_finished_run_says_so(data: Path, output: Path) -> None:
    train(data, output)
    assert not (output / "run" / "states").exists()
    before = contents(output / "run")
    assert "has finished, nothing is left to train" in train(data, output)
    with pytest.raises(UserError, match="planned for 2 epochs"):
        train(data, output, "train.epochs=3")
    assert contents(output / "run") == before
    with pytest.raises(UserError, match="go on with the run by --resume"):
        train(data, output, resume=False)


def test_a_damaged_state_falls_back_to_the_one_before(
    data: Path, output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = state_files(output / "run")
    assert (newest.name, before.name) == ("step-000000003.pth", "step-000000002.pth")
    newest.write_bytes(newest.read_bytes()[:-5000])
    train(data, output)
    train(data, tmp_path / "whole")
    assert same(*(load_checkpoint(run / "run" / "last.pth")["model"] for run in (output, tmp_path / "whole")))
    log = (output / "run" / "train.log").read_text()
    assert "step-000000003.pth" in log and "the state before it is taken" in log and "goes on after step 2" in log
    assert [line["step"] for line in lines_of(output / "run")] == [1, 2, 3, 4]


def test_a_newer_state_that_cannot_be_read_costs_no_good_one(data: Path, output: Path) -> None:
    newest, before = state_files(output / "run")
    newest.write_bytes(b"x")
    later = newest.with_name("step-000000004.pth")
    later.mkdir()
    files = StateFiles(newest.parent, minutes=0, steps=0, keep=1)
    assert files.save({"step": 3}) == newest and state_files(output / "run") == [newest]
    newest.rename(before)
    later.write_bytes(b"x")
    files.keep = 2
    files.save({"step": 3})
    assert state_files(output / "run") == [newest, before]


def changed(state: Any, *keys: Any) -> Any:
    """Return a copy of nested values in which the last of `keys` stands where the others lead to."""
    first, *rest = keys
    return {**state, first: changed(state[first], *rest)} if rest else first


@pytest.mark.parametrize(
    "change",
    [
        ("step", -3),
        ("epoch", 10**9),
        ("epoch_step", 2),
        ("metrics", "metrics.jsonl", -5),
        ("others", [3]),
        ("trials", {"orbench": 9}),
        ("parts", "loader", "batches", "batch", 0),
        ("parts", "optimizer", "state", {}),
        ("parts", "optimizer", "param_groups", []),
        ("parts", "model", "classifier.weight", torch.zeros(4, 32, dtype=torch.int64)),
        ("generators", "torch", torch.zeros(5056, dtype=torch.uint8)),
    ],
    ids=lambda change: ".".join(map(str, change[:-1])),
)
def test_a_state_that_is_not_what_was_written_is_refused(data: Path, output: Path, change: tuple[Any, ...]) -> None:
    newest = state_files(output / "run")[0]
    torch.save(changed(load_tensors(newest), *change), newest)
    before = contents(output / "run")
    with pytest.raises(UserError, match=r"remove the newest file in its states|cannot go on as another run"):
        train(data, output)
    assert contents(output / "run") == before


@pytest.mark.parametrize(
    ("score", "words"), [("high", "score is 'high'"), (math.nan, "score is nan"), (..., "no score")]
)
def test_a_best_checkpoint_that_does_not_say_its_score_is_named(
    data: Path, tmp_path: Path, score: Any, words: str
) -> None:
    content = {"model": {"x": torch.zeros(3)}, "config": {}, "family": "reid5o", "num_identities": 3}
    content |= {"epoch": 1, "step": 2, "selected_on": "val"} | ({} if score is ... else {"score": score})
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(UserError, match=f"remove {tmp_path / 'best.pth'} to choose .*{words}"):
        best_so_far(tmp_path, [""])


@pytest.mark.parametrize("change", ["damaged", "foreign", "gone"])
def test_a_run_without_a_state_cannot_go_on(data: Path, output: Path, change: str) -> None:
    for path in state_files(output / "run"):
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes(b"x") if change == "damaged" else torch.save({"format_version": 1, "step": "2"}, path)
    words = "checkpoints and no states" if change == "gone" else "none of its 2 states can be read"
    with pytest.raises(UserError, match=f"cannot go on: .*{words}.*train.init_from"):
        train(data, output)


def test_what_a_killed_process_left_is_removed(data: Path, output: Path) -> None:
    run = output / "run"
    for folder in (run, run / "states"):
        (folder / ".step-000000004.k3_x9a0b.tmp.pth").write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "total": 1.0}\n{"st')
    (run / "tensorboard" / "events.out.tfevents.99.later").write_bytes(b"behind the state")
    train(data, output)
    assert not list(run.rglob(".*")) and [line["step"] for line in lines_of(run)] == [1, 2, 3, 4]
    assert not (run / "tensorboard" / "events.out.tfevents.99.later").exists()


def test_a_run_that_has_not_begun_begins(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "failed.log").write_text("an earlier start")
    assert "best: " in train(data, tmp_path, "train.epochs=1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("no run")
    with pytest.raises(UserError, match="exists and is not empty"):
        train(data, tmp_path, "name=mine")


def test_a_run_that_is_being_trained_is_refused(data: Path, output: Path) -> None:
    with locked_folder(output / "run", ""), pytest.raises(UserError, match="being written by another process"):
        train(data, output)
    with locked_folder(output / "run", ""), pytest.raises(UserError, match="being written by another process"):
        check_start(output / "run", overwrite=False, resume=True)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_finishes_the_step_and_saves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step, before = Trainer.train_step, [signal.getsignal(each) for each in SIGNALS]

    def interrupted(self: Trainer, batches: Any) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), number)
            # `timeout` sends its signal to the process and to its group.
            os.kill(os.getpid(), number)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(Interrupted) as caught:
        train(data, tmp_path, "train.save_steps=0")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    run = tmp_path / "run"
    assert caught.value.signal == number and "\n" not in str(caught.value)
    assert f"stopped by {number.name}: the state of step 3 is saved, go on with: python train.py --config {run}" in str(
        caught.value
    )
    assert [path.name for path in state_files(run)] == ["step-000000003.pth", "step-000000002.pth"]
    monkeypatch.undo()
    train(data, tmp_path)
    assert [line["step"] for line in lines_of(run)] == [1, 2, 3, 4]


def test_a_signal_ends_an_evaluation_at_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(job: Any, split: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    monkeypatch.setattr("solver.training.engine.evaluate_job", evaluate)
    started = time.monotonic()
    with pytest.raises(Interrupted, match="the state of step 2 is saved"):
        train(data, tmp_path, "train.select=test", "train.eval_period=1")
    assert time.monotonic() - started < 25
    monkeypatch.undo()
    train(data, tmp_path, "train.select=test", "train.eval_period=1")
    evaluated = [line["epoch"] for line in lines_of(tmp_path / "run") if "lr" not in line]
    assert evaluated == [1, 2] and json.loads((tmp_path / "run" / "outcome.json").read_text())["score"] > 0


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.training.interruption.IMPATIENT_SECONDS", 0.0)
    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt), interruption():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)


START = [sys.executable, "train.py", "--config", SMOKE, "--device", "cpu", "--resume"]


def test_a_process_is_killed_and_another_goes_on(data: Path, tmp_path: Path) -> None:
    """Loader processes outlive a killed parent for seconds; the folder is free at once. What ends a run in good order
    reaches them too, and is not for them.
    """
    run, said = tmp_path / "run", tmp_path / "said"
    more = [*options(data, tmp_path), "data.workers=1", "train.epochs=400"]
    codes = []
    for number, send in ((signal.SIGKILL, os.kill), (signal.SIGTERM, os.killpg)):
        with said.open("w") as stream:
            process = subprocess.Popen([*START, *more], cwd=ROOT, stderr=stream, start_new_session=True)
        known = state_files(run)
        while process.poll() is None and state_files(run)[:1] == known[:1]:
            time.sleep(0.05)
        assert is_locked(run)
        send(process.pid, number)
        codes.append(process.wait(timeout=60))
        assert not is_locked(run)
    assert codes == [-signal.SIGKILL, 128 + signal.SIGTERM], said.read_text()
    (line,) = [line for line in said.read_text().splitlines() if line.startswith("stopped by SIGTERM")]
    assert line.endswith(f"python train.py --config {run}/config.yaml --resume")


def test_resume_and_overwrite_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        SCRIPTS["train"].parse_arguments(["--config", "x", "--resume", "--overwrite"])
    assert caught.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_damaged_metrics_cost_the_curves_and_no_run(data: Path, output: Path) -> None:
    metrics = output / "run" / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(b"\xff" + content[1:])
    assert "best.pth" in train(data, output)
    log = (output / "run" / "train.log").read_text()
    assert "no curves.png: " in log and "line 1 is not a line of metrics" in log
    assert (output / "run" / "outcome.json").is_file() and not (output / "run" / "curves.png").exists()


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_a_pipe_that_would_be_written_on_is_refused(name: str, data: Path, output: Path) -> None:
    place = output / "run" / name
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(UserError, match=f"{name} is no ordinary file.*remove it"):
        train(data, output)
