"""The three scripts, called in this process as the command line would."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
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
    """Take back what a script sets for its whole process: log handlers and threads."""
    root, handlers, level, threads = (
        logging.getLogger(),
        list(logging.getLogger().handlers),
        logging.getLogger().level,
        torch.get_num_threads(),
    )
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = handlers, level
        torch.set_num_threads(threads)


def exit_code(name: str, *arguments: object) -> int:
    """Call the entry function of a script as the command line would."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        run_script(SCRIPTS[name].main)
    return int(caught.value.code or 0)


def runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """`exit_code` together with what was printed."""

    def call(name: str, *arguments: object) -> Outcome:
        capfd.readouterr()
        return Outcome(exit_code(name, *arguments), *capfd.readouterr())

    return call
