"""Which run and which checkpoint a command means. Imports no torch: it is asked before anything slow is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from configs.load import SCALARS, load_experiment
from solver.run_directory import BEST_FILE, CONFIG_FILE, LAST_FILE, restore_previous
from utils.device_words import check_device
from utils.errors import UserError, shortened
from utils.files import is_leftover
from utils.log import configure_logging

logger = logging.getLogger(__name__)

SHOWN = 5
RUNS_FOLDER = SCALARS["output_dir"]
"""Where runs are made by default."""


def find_run(run: str, checkpoint: str = "") -> tuple[str, str]:
    """Return the directory and the checkpoint of a run that is named by its directory, by its name below `runs`, or by
    a checkpoint in it. What is none of these is returned as it is.
    """
    folder, name = os.path.split(run)
    if run and (os.path.isdir(run) or os.path.isfile(os.path.join(folder, CONFIG_FILE))):
        # A start that was killed may have set the run's files aside.
        restore_previous(Path(run if os.path.isdir(run) else folder or "."))
    if not run or os.path.isdir(run):
        return run, checkpoint
    if os.path.isfile(run) and os.path.isfile(os.path.join(folder, CONFIG_FILE)):
        return folder or ".", checkpoint or run
    named = os.path.join(RUNS_FOLDER, name)
    return (named, checkpoint) if not folder and os.path.isdir(named) else (run, checkpoint)


def locate_run(run: str | Path, checkpoint: str = "") -> tuple[Path, Path]:
    """Return the directory of a run, which may have to be restored, and the file of its checkpoint. Raises UserError.

    checkpoint: best, last or a file; empty = best, else last.
    """
    directory = Path(run)
    restore_previous(directory)
    if not directory.is_dir():
        raise UserError(f"no such run directory: {directory}; train one, or use --config FILE --checkpoint FILE")
    if not (directory / CONFIG_FILE).is_file():
        inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}"))
        raise UserError(
            f"{directory} is not a run directory: it has no {CONFIG_FILE}; "
            + (
                f"it holds the runs {shortened(inner, SHOWN)}: give one of them, or --trials for a series"
                if inner
                else "give the folder that train.py made"
            )
        )
    return directory, find_checkpoint(directory, checkpoint)


def find_checkpoint(directory: Path, name: str) -> Path:
    """Return the file of `best`, `last`, a file name, or (empty) best, else last. Raises UserError when it is
    absent.
    """
    candidates = {"": (BEST_FILE, LAST_FILE), "best": (BEST_FILE,), "last": (LAST_FILE,)}.get(name)
    paths = [directory / file for file in candidates] if candidates else [Path(name), directory / name]
    for path in paths:
        if path.is_file():
            return path
    present = ", ".join(sorted(path.name for path in directory.glob("*.pth") if not is_leftover(path.name))) or "none"
    raise UserError(f"no checkpoint {name or BEST_FILE} in {directory}; there: {present}")


def say_start(script: str, source: str | Path, target: str | Path) -> None:
    """Say what begins, before the slow imports."""
    configure_logging()
    logger.info("%s: %s -> %s", script, source, target)


def begin_series(script: str, series: str, output: str, device: str) -> None:
    """Refuse a folder of trials that is not there and a word that is no device, and say what begins.

    output: where results go, empty = there. Raises UserError.
    """
    check_device(device)
    folder = find_run(series)[0]
    if not os.path.isdir(folder):
        raise UserError(f"no such run directory: {folder}; make it with train.py --trials")
    say_start(script, folder, output or folder)


def begin(
    script: str, run: str, config: str, checkpoint: str, output: str, device: str, overrides: Sequence[str]
) -> None:
    """Refuse what can be known to be wrong about a trained model and its options without torch, and say what begins.

    output: where results go, empty = beside the checkpoint. Raises UserError.
    """
    check_device(device)
    file = Path(checkpoint)
    if run:
        run, checkpoint = find_run(run, checkpoint)
        directory, file = locate_run(run, checkpoint)
        load_experiment(directory / CONFIG_FILE, overrides)
    else:
        for path, what in ((config, "configuration"), (checkpoint, "checkpoint")):
            if not os.path.isfile(path):
                raise UserError(f"no such {what}: {path}; correct the path")
    say_start(script, file if run else config, output or (run or file.parent))
