"""The three scripts, called in this process as the command line would, and a place to give them wrong input in."""

import contextlib
import importlib.util
import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from utils.errors import run_script

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    # By file: `import test` would find the standard library's.
    spec = importlib.util.spec_from_file_location(f"anyreid_script_{name}", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: script(name) for name in ("train", "test", "infer")}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that begins with `error:`."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.rstrip().endswith(lines[0]), self.err
        return lines[0]


Run = Callable[..., Outcome]


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Take back what a script sets for its whole process: log handlers, which are closed, and threads."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level
        torch.set_num_threads(threads)


def exit_code(name: str, *arguments: object) -> int:
    """Call the entry function of a script as the command line would."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        run_script(SCRIPTS[name].main)
    return int(caught.value.code or 0)


def module_exit_code(name: str, *arguments: object) -> int:
    """Run a module as `python -m name` would, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """`exit_code` together with what was printed."""

    def call(name: str, *arguments: object) -> Outcome:
        capfd.readouterr()
        return Outcome(exit_code(name, *arguments), *capfd.readouterr())

    return call


@dataclass
class Place:
    """Data that may be broken, a trained run, and the commands that use them and write below `folder`."""

    run: Run
    folder: Path
    config: str
    short: Sequence[str]
    """Overrides that keep a training short."""
    root: Path
    """What is given as data.root."""
    base_run: Path

    def train(self, *more: object, root: object = None) -> Outcome:
        """Train `name=new` into folder/runs."""
        where = (f"data.root={root or self.root}", f"output_dir={self.folder / 'runs'}", "name=new")
        return self.run("train", "--config", self.config, "--device", "cpu", *where, *self.short, *more)

    def test(self, *more: object) -> Outcome:
        """Evaluate the trained run into folder/out."""
        where = ("--output", self.folder / "out", f"data.root={self.root}")
        return self.run("test", "--run", self.base_run, "--device", "cpu", *where, *more)

    def infer(self, *more: object) -> Outcome:
        """Search with the trained run into folder/out and folder/cache."""
        where = ("--output", self.folder / "out" / "found.png", "--gallery-cache", self.folder / "cache")
        return self.run("infer", "--run", self.base_run, "--device", "cpu", *where, f"data.root={self.root}", *more)

    def written(self) -> list[Path]:
        """Everything below the places that the commands write to."""
        return [path for name in ("runs", "out", "cache") for path in (self.folder / name).rglob("*")]


def make_base_run(folder: Path, config: str, short: Sequence[str]) -> Path:
    """Train folder/runs/base on folder/data; return the run."""
    where = (f"data.root={folder / 'data'}", f"output_dir={folder / 'runs'}", "name=base")
    with global_state_kept():
        assert exit_code("train", "--config", config, "--device", "cpu", *where, *short) == 0
    return folder / "runs" / "base"


def refused(place: Place, outcome: Outcome, *words: str) -> None:
    """Exit code 2, one sentence that holds the words, no traceback, and nothing written."""
    assert outcome.code == 2, outcome.err
    missing = [word for word in words if word not in outcome.error]
    assert not missing, outcome.error
    assert "Traceback" not in outcome.err
    assert not place.written()
