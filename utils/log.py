"""The log of a run: text for people, one JSON line per step for programs, scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType

from utils.progress import line_between_bars
from utils.streams import say, visible

SHORT = "short"
"""Attribute of a record: what the terminal shows of it."""
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "open_clip_torch", "numpy", "pillow")


def configure_logging(log_file: Path | None = None) -> None:
    """Send records of every logger to stderr and, when given, to `log_file` (appended)."""
    handlers: list[logging.Handler] = [_Terminal(sys.stderr)]
    if log_file is not None:
        handlers.append(_File(log_file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(_Lines("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.captureWarnings(True)


class _Lines(logging.Formatter):
    """Control characters are escaped, and further lines of a record are set in, so that no name can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t").replace("\n", "\n  ")


def log_short(short: str, whole: str) -> None:
    """Log one thing in two lengths: a short line for the terminal, the whole one for the run's file."""
    logging.getLogger(__name__).info("%s", whole, extra={SHORT: short})


class _Terminal(logging.StreamHandler):
    """Lines between progress bars. A terminal that cannot be written loses lines, and the work goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, in its short form where it has one; bars are taken away for the line and drawn again."""
        short = getattr(record, SHORT, None)
        if short is not None:
            record = copy.copy(record)
            record.args = (short,)
        with line_between_bars(self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: there is no place to say it."""


class _File(logging.FileHandler):
    """A file that cannot be written any more is said to be so once, and the work goes on."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it on the terminal."""
        if not self._said:
            self._said = True
            say(f"{self.baseFilename} cannot be written ({sys.exc_info()[1]}); lines are missing in it from here on")

    def close(self) -> None:
        """Close the file, whatever of it can still be written."""
        with contextlib.suppress(OSError):
            super().close()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


@functools.cache
def _version(name: str) -> str:
    # Each reads and parses a file, and every checkpoint states them.
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _cut_off(path: Path, length: int) -> None:
    """Shorten a file; one of which nothing is left goes. A file that has lost lines is told."""
    present = path.stat().st_size if path.is_file() else 0
    if present < length:
        logging.getLogger(__name__).warning("%s has lost %d bytes, lines are missing in it", path, length - present)
    if not length:
        path.unlink(missing_ok=True)
    elif present > length:
        os.truncate(path, length)


class Mute:
    """Stands for a `MetricsWriter` in a process that writes nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def ends(self) -> dict[str, int]:
        """Return that there is no file."""
        return {}

    def __enter__(self) -> Mute:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


class MetricsWriter:
    """Writes each step as a JSON line and its numbers to TensorBoard; a context manager."""

    def __init__(self, lines: Path, board: Path, ends: Mapping[str, int] | None = None) -> None:
        """lines: the JSON lines file. board: TensorBoard's folder. ends: what `ends` returned in the process that this
        one goes on for; what was written behind that is removed. None = the files are new.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._files = lines, board
        if ends is not None:
            _cut_off(lines, ends.get(lines.name, 0))
            for path in _inside(board):
                _cut_off(path, ends.get(f"{board.name}/{path.name}", 0))
        self._lines = lines.open("w" if ends is None else "a", encoding="utf-8")
        self._board = SummaryWriter(log_dir=str(board))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; `step` counts optimiser steps from 1."""
        self._lines.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was written visible to readers."""
        self._lines.flush()
        self._board.flush()

    def ends(self) -> dict[str, int]:
        """Return the length in bytes of every file, `metrics.jsonl` and `tensorboard/...`, with all that was written so
        far, which is on the disk then.
        """
        self.flush()
        lines, board = self._files
        for path in (lines, *_inside(board)):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        return {lines.name: lines.stat().st_size} | {
            f"{board.name}/{path.name}": path.stat().st_size for path in _inside(board)
        }

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()
