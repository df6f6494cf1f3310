"""The directory of a run: what is in it, when it may be written to, and the log that starts before it exists."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

import yaml

from utils.errors import UserError
from utils.files import check_folder, is_leftover, ordinary, remove_leftovers
from utils.locks import is_locked, locked_folder
from utils.log import configure_logging

RETRIEVAL_EXTENSIONS = (".png", ".html", ".json")
"""A search writes its picture, its page and its results under one name."""
CALIBRATION_SUFFIX = ".calibration.json"
"""Of the thresholds of a checkpoint, behind its name without .pth."""

# Each name is given where it is listed, so that none can be forgotten.
ARTEFACTS = (
    CONFIG_FILE := "config.yaml",
    LOG_FILE := "train.log",
    METRICS_FILE := "metrics.jsonl",
    BOARD_FOLDER := "tensorboard",
    LAST_FILE := "last.pth",
    BEST_FILE := "best.pth",
    LAST_EMA_FILE := "last-ema.pth",
    BEST_EMA_FILE := "best-ema.pth",
    STATES_FOLDER := "states",
    OUTCOME_FILE := "outcome.json",
    RESULTS_FILE := "results.json",
    CSV_FILE := "results.csv",
    LATEX_FILE := "results.tex",
    PER_QUERY_FILE := "per_query.npz",
    CURVES_FILE := "curves.png",
    COMBINATIONS_FILE := "combinations.png",
    ERROR_CURVES_FILE := "error_rates.json",
    ERROR_PICTURE_FILE := "error_rates.png",
    *(f"{Path(name).stem}{CALIBRATION_SUFFIX}" for name in (LAST_FILE, BEST_FILE)),
    REPORT_FILE := "report.html",
    *(f"retrieval{extension}" for extension in RETRIEVAL_EXTENSIONS),
)
"""Everything that training, testing, drawing and searching write into a run directory by themselves; `--overwrite`
removes these and nothing else.
"""

START_FILES = (CONFIG_FILE, LOG_FILE, METRICS_FILE, BOARD_FOLDER)
"""What a run has before its first checkpoint."""
FAILED_FILE = "failed.log"
"""The log of a start that ended before its first checkpoint; nothing else of it is kept."""
PREVIOUS_FOLDER = ".previous"
"""The run that is being replaced, until the new one has a checkpoint."""
_MOVING = ".previous.moving"
"""The same while it is set aside or brought back, file by file."""
OTHER_NAME = "choose another name=..."

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


def check_no_artefact(path: Path, option: str) -> None:
    """Raise UserError for a name that training or testing writes, beside a run's configuration or results."""
    own = {*ARTEFACTS} - {f"retrieval{extension}" for extension in RETRIEVAL_EXTENSIONS}
    if path.name in own and any((path.parent / name).exists() for name in (CONFIG_FILE, RESULTS_FILE)):
        raise UserError(f"{option}: {path} is a file of training or testing; choose another name")


def state_files(directory: Path) -> list[Path]:
    """Return the states from which a run can go on, the newest first."""
    return sorted((directory / STATES_FOLDER).glob("step-*.pth"), reverse=True)


def remove_states(directory: Path) -> None:
    """Remove the states of a run that has finished: nothing goes on from them."""
    shutil.rmtree(directory / STATES_FOLDER, ignore_errors=True)


def has_progress(directory: Path) -> bool:
    """Return whether a run has anything that training it took time for: a state or a checkpoint."""
    return bool(state_files(directory)) or any((directory / name).is_file() for name in (LAST_FILE, BEST_FILE))


def check_start(directory: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a directory in which no run can begin and, under `resume`, none go on. Raises UserError."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"run directory {directory}: TensorBoard writes no path that is not UTF-8; choose another name=... or "
            "output_dir=..., or set PYTHONUTF8=1 where it is the locale that has no such letters"
        ) from error
    if resume:
        restore_previous(directory)
        if has_progress(directory) and is_run(directory) and not is_locked(directory):
            return
    check_free(directory, overwrite)


def check_free(directory: Path, overwrite: bool) -> None:
    """Refuse a directory that holds anything, unless it is a run that is to be overwritten, or the start of one that
    never had a checkpoint. Raises UserError.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise UserError(f"run directory {directory} is a file; choose another name=... or output_dir=...")
    check_folder(directory.parent, "output_dir")
    if _contents(directory) and is_locked(directory):
        raise UserError(f"run directory {directory} is being written by another process; {OTHER_NAME}")
    _check_contents(directory, overwrite)


def _check_contents(directory: Path, overwrite: bool) -> None:
    names, ours = _contents(directory), is_run(directory)
    if not names or (ours and names <= {*START_FILES}):
        return
    if not overwrite:
        raise UserError(
            f"run directory {directory} exists and is not empty; go on with the run by --resume, replace it by "
            "--overwrite, or choose another name=..."
        )
    if not ours:
        raise UserError(
            f"run directory {directory} holds files and no run ({CONFIG_FILE} of this project is not among them), so "
            f"--overwrite does not touch it; {OTHER_NAME}"
        )


def _contents(directory: Path) -> set[str]:
    """Return the names in a directory that count: no log of a failed start, and nothing that a killed process left, nor
    the folder of states where that is all it holds: the process was killed while it saved its first.
    """
    if not directory.is_dir():
        return set()
    try:
        names = {path.name for path in directory.iterdir() if path.name != FAILED_FILE and not is_leftover(path.name)}
        states = directory / STATES_FOLDER
        if states.is_dir() and all(is_leftover(path.name) for path in states.iterdir()):
            names.discard(STATES_FOLDER)
        return names
    except OSError as error:
        raise UserError(
            f"run directory {directory} cannot be entered: {error.strerror}; choose another name=... or output_dir=..."
        ) from error


def is_run(directory: Path) -> bool:
    """Return whether a directory has the configuration of a run, its own or that of the run it is replacing."""
    for path in (directory / CONFIG_FILE, directory / PREVIOUS_FOLDER / CONFIG_FILE, directory / _MOVING / CONFIG_FILE):
        try:
            found = yaml.safe_load(ordinary(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(found, dict) and {"family", "data", "train"} <= found.keys():
            return True
    return False


class Claim:
    """A run directory that this process holds. The previous run is kept in it until `settle`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settled = False

    def settle(self) -> None:
        """Give up the previous run: the new one has a checkpoint."""
        if not self.settled:
            self.settled = True
            shutil.rmtree(self.directory / PREVIOUS_FOLDER, ignore_errors=True)


@contextmanager
def claimed(directory: Path, overwrite: bool) -> Iterator[Claim]:
    """Hold a run directory, made if need be, empty of artefacts. The previous run's are set aside within it, and come
    back when the block ends in an exception before `Claim.settle`; its log is then FAILED_FILE.

    Raises UserError when another process holds it, or when it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(directory, OTHER_NAME))
            # Another process may have come and gone since it was looked at first.
            _check_contents(directory, overwrite)
            _set_aside(directory)
        except OSError as error:
            raise UserError(
                f"cannot write to run directory {directory}: {error.strerror}; choose another output_dir=..."
            ) from error
        claim = Claim(directory)
        try:
            yield claim
        except BaseException:
            if not claim.settled:
                _give_up(directory)
            raise


@contextmanager
def continued(directory: Path) -> Iterator[None]:
    """Hold the directory of a run that is to go on, without what a killed process has left.

    Raises UserError when another process holds it, or when it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(directory, OTHER_NAME))
            _restore(directory)
            for folder in (directory, directory / STATES_FOLDER):
                remove_leftovers(folder, seconds=0)
            for path in (directory / LOG_FILE, directory / METRICS_FILE):
                # They are opened to write on; a pipe would be waited for.
                if path.exists() and not path.is_file():
                    raise UserError(f"{path} is no ordinary file, and the run writes on it; remove it")
        except OSError as error:
            raise UserError(
                f"cannot write to run directory {directory}: {error.strerror}; correct its permissions"
            ) from error
        yield


def restore_previous(directory: Path) -> None:
    """Bring back the run that a start without a checkpoint had set aside, if the process of that start is gone."""
    if any((directory / name).is_dir() for name in (PREVIOUS_FOLDER, _MOVING)):
        with contextlib.suppress(UserError, OSError), locked_folder(directory, ""):
            _restore(directory)


def _set_aside(directory: Path) -> None:
    """Move the artefacts of the run that is there into PREVIOUS_FOLDER."""
    _restore(directory)
    remove_leftovers(directory, seconds=0)
    (directory / FAILED_FILE).unlink(missing_ok=True)
    present = [name for name in ARTEFACTS if os.path.lexists(directory / name)]
    if present:
        (directory / _MOVING).mkdir()
        for name in present:
            (directory / name).rename(directory / _MOVING / name)
        (directory / _MOVING).rename(directory / PREVIOUS_FOLDER)
    # Whether the place can be written is known before the first step.
    (directory / LOG_FILE).touch()


def _restore(directory: Path) -> None:
    previous, moving = directory / PREVIOUS_FOLDER, directory / _MOVING
    if previous.is_dir():
        if has_progress(directory):
            shutil.rmtree(previous)
            return
        for name in ARTEFACTS:
            remove_artefact(directory / name)
        previous.rename(moving)
    if moving.is_dir():
        for path in moving.iterdir():
            remove_artefact(directory / path.name)
            path.rename(directory / path.name)
        moving.rmdir()


def _give_up(directory: Path) -> None:
    """Undo a start: its log stays as FAILED_FILE, everything else of it goes, the previous run comes back."""
    if (directory / LOG_FILE).exists():
        (directory / LOG_FILE).replace(directory / FAILED_FILE)
        if any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers):
            configure_logging(directory / FAILED_FILE)
    for name in ARTEFACTS:
        remove_artefact(directory / name)
    remove_leftovers(directory, seconds=0)
    _restore(directory)


def remove_artefact(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; a link alone; nothing where nothing is. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
