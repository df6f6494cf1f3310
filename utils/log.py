"""The log of a run: text for people, one JSON line per step for programs, scalars for TensorBoard."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "open_clip_torch", "numpy", "pillow")


def configure_logging(log_file: Path | None = None) -> None:
    """Send records of every logger to stderr and, when given, to `log_file` (appended)."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    logging.captureWarnings(True)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


class MetricsWriter:
    """Writes each step as a JSON line and its numbers to TensorBoard; a context manager."""

    def __init__(self, lines: Path, board: Path) -> None:
        """lines: the JSON lines file. board: TensorBoard's folder."""
        from torch.utils.tensorboard import SummaryWriter

        self._lines = lines.open("w", encoding="utf-8")
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

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._board.close()
