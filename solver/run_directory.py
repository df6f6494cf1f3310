"""The directory of a run: what is in it, when it may be written to, and the log that starts before it exists."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from solver.reports.results import CSV_FILE, PER_QUERY_FILE, RESULTS_FILE
from solver.runs import BEST_FILE, CONFIG_FILE, LAST_FILE
from utils.errors import UserError
from utils.log import configure_logging

LOG_FILE, METRICS_FILE, BOARD_FOLDER, OUTCOME_FILE = "train.log", "metrics.jsonl", "tensorboard", "outcome.json"
CURVES_FILE, COMBINATIONS_FILE = "curves.png", "combinations.png"

ARTEFACTS = (
    CONFIG_FILE,
    LOG_FILE,
    METRICS_FILE,
    BOARD_FOLDER,
    LAST_FILE,
    BEST_FILE,
    OUTCOME_FILE,
    RESULTS_FILE,
    CSV_FILE,
    PER_QUERY_FILE,
    CURVES_FILE,
    COMBINATIONS_FILE,
    "report.html",
    "retrieval.png",
    "retrieval.json",
    "retrieval.html",
)
"""Everything that training, testing, drawing and searching write into a run directory by themselves; `--overwrite`
removes these and nothing else.
"""

HELD_RECORDS = 100_000


def check_free(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that holds anything, unless it is to be overwritten. Raises UserError."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"run directory {directory} is a file; choose another name=... or output_dir=...")
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        raise UserError(
            f"run directory {directory} exists and is not empty; choose another name=... or replace the run with "
            "--overwrite"
        )


def open_directory(directory: Path) -> None:
    """Make the directory and remove the artefacts of a previous run. Raises UserError when it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ARTEFACTS:
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (directory / LOG_FILE).touch()
    except OSError as error:
        raise UserError(
            f"cannot write to run directory {directory}: {error.strerror}; choose another output_dir=..."
        ) from error


@contextmanager
def held_log() -> Iterator[list[logging.LogRecord]]:
    """Log to stderr and collect the records, for a run directory that is opened only when nothing can go wrong any
    more.
    """
    configure_logging()
    handler = MemoryHandler(HELD_RECORDS, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        root.removeHandler(handler)


def start_log(directory: Path, held: list[logging.LogRecord]) -> None:
    """Log to stderr and to the run's file, which begins with the records held so far."""
    configure_logging(directory / LOG_FILE)
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for record in held:
        for handler in files:
            handler.handle(record)
