"""The directory of a run: what is in it, when it may be written to, and the log that starts before it exists."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from utils.errors import UserError
from utils.log import configure_logging

RETRIEVAL_EXTENSIONS = (".png", ".html", ".json")
"""A search writes its picture, its page and its results under one name."""

# Each name is given where it is listed, so that none can be forgotten.
ARTEFACTS = (
    CONFIG_FILE := "config.yaml",
    LOG_FILE := "train.log",
    METRICS_FILE := "metrics.jsonl",
    BOARD_FOLDER := "tensorboard",
    LAST_FILE := "last.pth",
    BEST_FILE := "best.pth",
    OUTCOME_FILE := "outcome.json",
    RESULTS_FILE := "results.json",
    CSV_FILE := "results.csv",
    PER_QUERY_FILE := "per_query.npz",
    CURVES_FILE := "curves.png",
    COMBINATIONS_FILE := "combinations.png",
    REPORT_FILE := "report.html",
    *(f"retrieval{extension}" for extension in RETRIEVAL_EXTENSIONS),
)
"""Everything that training, testing, drawing and searching write into a run directory by themselves; `--overwrite`
removes these and nothing else.
"""

RETRIEVAL_FILE = f"retrieval{RETRIEVAL_EXTENSIONS[0]}"
"""The picture of a search that is given no name."""
GALLERY_CACHE_FOLDER = "gallery_cache"
"""Encoded galleries. `--overwrite` keeps it: each file is told by the weights and answers for no others."""

TRIAL_FOLDERS = "trial-*"
"""Pattern of the names of `trial_folder`."""

BUFFERED_RECORDS = 100_000


def trial_folder(trial: int) -> str:
    """Return the name of a trial's run directory inside that of its series."""
    return f"trial-{trial:02d}"


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
def buffered_log() -> Iterator[list[logging.LogRecord]]:
    """Log to stderr and collect the records, for a run directory that is opened only when nothing can go wrong any
    more.
    """
    configure_logging()
    handler = MemoryHandler(BUFFERED_RECORDS, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        root.removeHandler(handler)


def start_log(directory: Path, records: list[logging.LogRecord]) -> None:
    """Log to stderr and to the run's file, which begins with the records collected so far."""
    configure_logging(directory / LOG_FILE)
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for record in records:
        for handler in files:
            handler.handle(record)
