"""Covers: solver/run_directory, utils/locks, solver/commands/train. Work that is not lost: a run that is replaced, two
starts of one name, files of no run, what killed processes leave.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_orbench import write_orbench

from configs.load import load_experiment
from solver.commands.train import run_training
from solver.run_directory import check_free, check_start, claimed, restore_previous
from solver.run_names import find_checkpoint
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError
from utils.files import files_together, is_leftover, remove_leftovers
from utils.locks import is_locked, locked_folder

pytestmark = pytest.mark.usefixtures("keep_logging")

ROOT = Path(__file__).resolve().parent.parent
OURS = {"config.yaml": "{family: reid5o, data: {}, train: {}}", "best.pth": "old best", "last.pth": "old last"}


def finished(directory: Path) -> dict[str, str]:
    """Write the files of a run, and two that are no artefacts; return the content of all."""
    (directory / "tensorboard").mkdir(parents=True)
    for name, text in {**OURS, "tensorboard/events": "old", "train.log": "old log", "notes.txt": "mine"}.items():
        (directory / name).write_text(text)
    return contents(directory)


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text(errors="replace")
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_run_comes_back_when_its_successor_fails_before_a_checkpoint(tmp_path: Path) -> None:
    before = finished(tmp_path / "run")
    for error in (UserError("wrong"), KeyboardInterrupt(), RuntimeError("a defect")):
        with pytest.raises(type(error)), claimed(tmp_path / "run", overwrite=True):
            assert (tmp_path / "run" / "notes.txt").exists() and not (tmp_path / "run" / "best.pth").exists()
            (tmp_path / "run" / "config.yaml").write_text("new")
            (tmp_path / "run" / "train.log").write_text("why it failed")
            (tmp_path / "run" / ".last.abcd1234.tmp.pth").write_text("half")
            raise error
        assert contents(tmp_path / "run") == {**before, "failed.log": "why it failed"}


def test_a_run_goes_when_its_successor_has_a_checkpoint(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    with pytest.raises(UserError), claimed(tmp_path / "run", overwrite=True) as claim:
        (tmp_path / "run" / "last.pth").write_text("new")
        claim.settle()
        raise UserError("later")
    assert contents(tmp_path / "run") == {"last.pth": "new", "notes.txt": "mine", "train.log": ""}


@pytest.mark.parametrize("moves", range(9))
def test_a_killed_start_loses_nothing_wherever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    before, real, left = finished(tmp_path / "run"), Path.rename, [moves]

    def dying(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, target)

    for place in (claimed(tmp_path / "run", overwrite=True).__enter__, lambda: restore_previous(tmp_path / "run")):
        monkeypatch.setattr(Path, "rename", dying)
        left[0] = moves
        with contextlib.suppress(KeyboardInterrupt):
            place()
        monkeypatch.undo()
    restore_previous(tmp_path / "run")
    # A start that is not killed but collected says so in its log.
    assert {name: text for name, text in contents(tmp_path / "run").items() if name != "failed.log"} == before


def test_a_start_that_never_saved_does_not_block_the_next(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", overwrite=False):
        for name in ("config.yaml", "metrics.jsonl"):
            (tmp_path / "run" / name).write_text(OURS["config.yaml"])
    check_free(tmp_path / "run", overwrite=False)
    # Killed while it saved its first state, or had just made the folder.
    states = tmp_path / "run" / "states"
    states.mkdir()
    check_start(tmp_path / "run", overwrite=False, resume=True)
    (states / ".step-000000004.k3_x9a0b.tmp.pth").write_bytes(b"half")
    check_start(tmp_path / "run", overwrite=False, resume=True)
    (states / "mine").write_text("no state")
    with pytest.raises(UserError, match="exists and is not empty"):
        check_start(tmp_path / "run", overwrite=False, resume=True)
    (states / "mine").unlink()
    with claimed(tmp_path / "run", overwrite=False):
        assert not (tmp_path / "run" / "metrics.jsonl").exists() and not states.exists()
    (tmp_path / "run" / "config.yaml").write_text(OURS["config.yaml"])
    (tmp_path / "run" / "last.pth").write_text("saved")
    with pytest.raises(UserError, match="--overwrite"):
        check_free(tmp_path / "run", overwrite=False)


@pytest.mark.parametrize("config", ["my: own", "[1]", "{", "\udcff", ""])
def test_files_of_no_run_are_never_replaced(tmp_path: Path, config: str) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events").write_text("mine")
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "config.yaml").write_bytes(config.encode("utf-8", "surrogateescape"))
    for overwrite in (False, True):
        for start in (lambda: check_free(tmp_path, overwrite), claimed(tmp_path, overwrite).__enter__):
            with pytest.raises(UserError, match="no run" if overwrite else "not empty"):
                start()
    assert contents(tmp_path)["tensorboard/events"] == "mine" and contents(tmp_path)["report.html"] == "mine"


def test_a_place_that_tensorboard_cannot_write_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TensorBoard writes no path that is not UTF-8; .*PYTHONUTF8=1"):
        check_start(tmp_path / "l\udcf6p", overwrite=False, resume=True)
    check_start(tmp_path / "löp 名", overwrite=False, resume=True)


HOLD = "import sys, time\nfrom pathlib import Path\nfrom utils.locks import locked_folder\n"
HOLD += "with locked_folder(Path(sys.argv[1]), ''):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OURS["config.yaml"])
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        for start in (lambda: check_free(tmp_path, True), claimed(tmp_path, True).__enter__):
            with pytest.raises(UserError, match="being written by another process; choose another name"):
                start()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert not is_locked(tmp_path)
    with locked_folder(tmp_path, ""):
        assert is_locked(tmp_path), "a second hold of the same process is refused too"
    assert not is_locked(tmp_path / "absent")


def test_what_killed_processes_leave_is_known_and_removed(tmp_path: Path) -> None:
    left = [".best.k3_x9a0b.tmp.pth", ".config.abcdefgh.tmp.yaml", ".together.abcdefgh.tmp", ".x.abcdefgh.tmp"]
    kept = ["best.pth", ".best.pth", ".notes.tmp", "a.abcdefgh.tmp.pth", "best.tmp.pth"]
    assert all(map(is_leftover, left)) and not any(map(is_leftover, kept))
    for name in (*left, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / left[2]).unlink()
    (tmp_path / left[2]).mkdir()
    with pytest.raises(
        UserError, match=r"there: best.pth, best.tmp.pth$|there: .best.pth, a.*, best.pth, best.tmp.pth"
    ):
        find_checkpoint(tmp_path, "other.pth")
    remove_leftovers(tmp_path, seconds=60)
    assert (tmp_path / left[0]).exists(), "it may have a writer"
    for name in left:
        os.utime(tmp_path / name, (time.time() - 100,) * 2)
    remove_leftovers(tmp_path, seconds=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path / "absent", seconds=0)


def test_files_that_belong_together_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.csv", "report.html", "results.json"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError), files_together(tmp_path, "results.json") as folder:
        (folder / "a.csv").write_text("new")
        raise ZeroDivisionError
    assert contents(tmp_path) == dict.fromkeys(("a.csv", "report.html", "results.json"), "old")
    (tmp_path / "old.png").write_text("old")
    with files_together(tmp_path, "results.json", ["old.png", "a.csv"]) as folder:
        for name in ("results.json", "a.csv", "z.png"):
            (folder / name).write_text("new")
    assert contents(tmp_path) == {"a.csv": "new", "report.html": "old", "results.json": "new", "z.png": "new"}
    real = Path.replace

    def dying(self: Path, target: Path) -> Path:
        if target.name == "z.png":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt), files_together(tmp_path, "results.json") as folder:
        for name in ("results.json", "a.csv", "z.png"):
            (folder / name).write_text("newer")
    assert "results.json" not in contents(tmp_path), "no results beside a report of others"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orbench(tmp_path_factory.mktemp("data"))


def train(data: Path, output: Path, *overrides: str, overwrite: bool = False) -> str:
    smoke = str(ROOT / "configs" / "reid5o" / "smoke.yaml")
    named = [f"data.root={data}", f"output_dir={output}", "name=run", "train.epochs=2", "train.max_steps=0"]
    return run_training(load_experiment(smoke, [*named, *overrides]), device="cpu", overwrite=overwrite)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["schedule.name=linear", "schedule.target_lr=1e-3"], "target_lr"),
        (["train.select=test", "eval.thresholds=[0.5]", "eval.relevance=garbage"], "garbage"),
        (["train.select=test", "eval.rerank=true", "eval.rerank_k1=500"], "rerank_k1=500"),
        (["train.select=test", "eval.rerank=true", "eval.memory_mb=1", "eval.rerank_k1=1"], ""),
    ],
)
def test_wrong_options_are_found_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    if not words:
        monkeypatch.setattr("solver.evaluation.evaluator.estimate_bytes", lambda *_: 1 << 30)
        words = "eval.memory_mb=1;"
    monkeypatch.setattr("solver.training.engine.Trainer.train_step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(UserError, match=words):
        train(data, tmp_path, *overrides)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_does_not_cost_the_finished_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train.epochs=1")
    before = load_checkpoint(tmp_path / "run" / "best.pth")["model"]
    other = write_orbench(tmp_path / "other")
    for path in (other / "ORBench" / "nir").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="nir"):
        train(other, tmp_path, "seed=9", overwrite=True)
    after = load_checkpoint(tmp_path / "run" / "best.pth")["model"]
    assert all((before[name] == after[name]).all() for name in before)
    assert "stopped: " in (tmp_path / "run" / "failed.log").read_text()
