"""Commands in forked processes of this one, where torch is already imported: a crash or a hang ends the case alone."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 12 << 30
"""Bytes of address space that a case may have: a huge number must not take the machine's memory."""
OUT, ERR = "out.txt", "err.txt"
CRASHED = 70
"""Exit code of a case that let an exception out."""
POLL = 0.01
IMPORTED = (
    "matplotlib.pyplot",
    "timm",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "datasets.check",
    "solver.commands.calibrate",
    "solver.commands.evaluate",
    "solver.commands.search",
    "solver.commands.train",
    "solver.gallery.commands",
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """script: train, test, infer, or a module that is run with -m."""

    script: str
    arguments: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """code: exit code, negative = ended by that signal; None = it was still running after its time."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether it is one sentence and exit code 2."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code == 2 and len(lines) == 1 and self.err.rstrip().endswith(lines[0]) and not self.broken

    @property
    def broken(self) -> bool:
        """Whether a traceback shows, or a sentence that asks for a report."""
        return "Traceback (most recent call last)" in self.err or "this is a defect of the program" in self.err

    @property
    def problem(self) -> str:
        """What is wrong with how it ended; empty for a success and for a refusal."""
        if self.code is None:
            return f"hangs: no end after {self.seconds:.0f} s"
        last = (self.err.strip().splitlines() or [""])[-1]
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}: {last}"
        if self.broken:
            return f"traceback: {last}"
        if self.code == 0 or self.refused:
            return ""
        return f"exit code {self.code} without one sentence: {last}"


def entry(script: str) -> Callable[[], int | None]:
    """Return the main function of a script at the root, or of a module that is run with -m."""
    name = script.replace(".", "/")
    path = ROOT / f"{name}.py" if (ROOT / f"{name}.py").is_file() else ROOT / name / "__main__.py"
    # By file: `import test` would find the standard library's.
    spec = importlib.util.spec_from_file_location(f"anyreid_script_{script.replace('.', '_')}", path)
    if spec is None or spec.loader is None:
        raise ImportError(script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[], int | None] = module.main
    return main


def import_all() -> None:
    """Import what the commands import, so that forked ones need not."""
    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    # A pool of threads does not survive a fork.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def _child(folder: Path, prepare: Callable[[], Command]) -> int:
    """What a forked process does; returns its exit code."""
    from utils.errors import run_script

    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number, name in ((1, OUT), (2, ERR)):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stdin = Path(os.devnull).open(encoding="utf-8")
    # A damaged option may name a place relative to here, or to the home.
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    os.environ["HOME"] = str(folder)
    try:
        command = prepare()
        sys.argv = [command.script, *command.arguments]
        run_script(entry(command.script))
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return CRASHED
    return 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case: a folder of its own, what makes its command (in the forked process), and whatever belongs to it."""

    folder: Path
    prepare: Callable[[], Command]
    about: Any = None


def _start(job: Job) -> int:
    job.folder.mkdir(parents=True)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = CRASHED
        try:
            code = _child(job.folder, job.prepare)
        finally:
            # Nothing of the parent is torn down here.
            os._exit(code)
    return pid


def _end(pid: int, started: float, limit: float) -> tuple[bool, int | None]:
    """Return whether a process has ended, and its exit code, None for one that was ended here."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    late = not ended and time.monotonic() - started > limit
    if ended or late:
        # Loader processes of a case that was killed end with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if late:
        os.waitpid(pid, 0)
        return True, None
    return bool(ended), os.waitstatus_to_exitcode(status) if ended else None


def run_jobs(jobs: Iterable[Job], workers: int, limit: float) -> Iterator[tuple[Job, Outcome]]:
    """Run jobs in so many processes at once; yield each with its outcome as it ends. limit: seconds of one."""
    waiting, running = iter(jobs), dict[int, tuple[Job, float]]()
    exhausted = False
    while running or not exhausted:
        while not exhausted and len(running) < workers:
            job = next(waiting, None)
            exhausted = job is None
            if job is not None:
                running[_start(job)] = (job, time.monotonic())
        time.sleep(POLL)
        for pid, (job, started) in list(running.items()):
            ended, code = _end(pid, started, limit)
            if ended:
                del running[pid]
                texts = [(job.folder / name) for name in (OUT, ERR)]
                out, err = (path.read_text("utf-8", "replace") if path.exists() else "" for path in texts)
                yield job, Outcome(code=code, out=out, err=err, seconds=time.monotonic() - started)


def run_one(
    folder: Path,
    script: str | Callable[[], Command],
    arguments: Sequence[str],
    limit: float,
    codes: Sequence[int] = (0,),
) -> Outcome:
    """Run one command, or what a function makes in the forked process. Raises RuntimeError when it ends in another exit
    code: what the cases start from is sound.
    """
    prepare = script if callable(script) else lambda: Command(script=script, arguments=list(arguments))
    _, outcome = next(run_jobs([Job(folder=folder, prepare=prepare)], 1, limit))
    if outcome.code not in codes:
        raise RuntimeError(f"{folder.name}: {outcome.problem or outcome.err}")
    return outcome
