"""What train.py does: check, assemble, train, record where the run ended, return what is to be printed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.load import save_experiment
from configs.schema.experiment import ExperimentConfig
from solver.reports.figures import draw_curves
from solver.run_directory import CONFIG_FILE, OUTCOME_FILE, buffered_log, check_free, claimed, start_log
from solver.run_names import find_run
from solver.training.engine import Trainer, TrainingOutcome, assemble
from utils.device import resolve_device
from utils.errors import UserError
from utils.files import DISK_FULL, real_path, write_json

logger = logging.getLogger(__name__)


def run_training(config: ExperimentConfig, *, device: str, overwrite: bool) -> str:
    """Train in output_dir/name and return what is to be printed.

    Raises UserError for wrong input; until the first step is ready to run, nothing is written, and until the first
    checkpoint the previous run of that name comes back.
    """
    directory = Path(config.output_dir) / config.name
    check_free(directory, overwrite)
    if config.train.init_from and real_path(directory) == real_path(find_run(config.train.init_from)[0]):
        raise UserError(
            f"train.init_from = {config.train.init_from!r} is the run itself, which would be replaced; choose another "
            "name=..."
        )
    with buffered_log() as held:
        job = assemble(config, resolve_device(device))
    with claimed(directory, overwrite) as claim:
        save_experiment(config, directory / CONFIG_FILE)
        start_log(directory, held)
        try:
            with failures_as_user_errors(directory):
                outcome = Trainer(job, directory, claim.settle).fit()
                draw_curves(directory)
                write_outcome(directory, outcome)
        except UserError as error:
            logger.error("stopped: %s", error)
            raise
    score = "" if outcome.score is None else f", mean mAP of the groups {outcome.score:.3f} %"
    return (
        f"best: {outcome.best} (after epoch {outcome.epoch}, selected on {outcome.selected_on}{score})\n"
        f"evaluate it: python test.py --run {directory}"
    )


def write_outcome(directory: Path, outcome: TrainingOutcome) -> None:
    """Record where the run ended. The file is written last: a directory without it holds an unfinished run."""
    write_json(directory / OUTCOME_FILE, dataclasses.asdict(outcome) | {"best": outcome.best.name})


@contextlib.contextmanager
def failures_as_user_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk and an exhausted device into a UserError; every other exception passes."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the device has too little memory for this run; set train.checkpoint_activations=true, "
            "train.precision=bf16, or lower train.batch_size (during an evaluation eval.batch_size or "
            "eval.cache_device_mb)"
        ) from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"no space left while writing to {directory} ({error}); the checkpoints there are whole, free some space "
            "and start again"
        ) from error
