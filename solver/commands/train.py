"""What train.py does: check, assemble, train, record where the run ended, return what is to be printed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.changes import shared_options
from configs.load import load_experiment, save_experiment
from configs.schema.experiment import ExperimentConfig
from solver.reports.figures import draw_curves
from solver.run_directory import (
    CONFIG_FILE,
    CURVES_FILE,
    OUTCOME_FILE,
    buffered_log,
    check_start,
    claimed,
    continued,
    has_progress,
    remove_states,
    start_log,
)
from solver.run_names import find_run
from solver.training.engine import Trainer, assemble
from solver.training.selection import TrainingOutcome
from solver.training.state import check_unchanged, config_of, newest_state, notes_of_change
from utils.device import describe_device, resolve_device
from utils.errors import Interrupted, UserError
from utils.files import DISK_FULL, real_path, write_json
from utils.processes import Processes, agree, join_processes, started_together

logger = logging.getLogger(__name__)


def run_training(config: ExperimentConfig, *, device: str, overwrite: bool, resume: bool = False) -> str:
    """Train in output_dir/name and return what is to be printed, nothing in all processes but the first.

    resume: go on where the run of that name stopped; one that has finished is left as it is, and one that has not begun
    begins. Raises UserError for wrong input; until the first step is ready to run, nothing is written, and until the
    first checkpoint the previous run of that name comes back.
    """
    if started_together() == 1:
        check_start(Path(config.output_dir) / config.name, overwrite=overwrite, resume=resume)
    processes = join_processes(resolve_device(device))
    with processes.together():
        agree(processes, {**shared_options(config), "--resume or --overwrite": f"{resume}, {overwrite}"})
        text = _start(config, device, overwrite, resume, processes)
        # Whoever is done first waits: its end would end the others.
        processes.told(None)
        return text if processes.leader else ""


def _start(config: ExperimentConfig, device: str, overwrite: bool, resume: bool, processes: Processes) -> str:
    directory = Path(config.output_dir) / config.name
    if processes.leader and processes.count > 1:
        check_start(directory, overwrite=overwrite, resume=resume)
    if processes.of_leader(processes.leader and resume and has_progress(directory)):
        with continued(directory) if processes.leader else contextlib.nullcontext():
            # Nobody looks at the files before the leader has put them in order.
            processes.told(None)
            return _go_on(config, directory, device, processes)
    if config.train.init_from and real_path(directory) == real_path(find_run(config.train.init_from)[0]):
        raise UserError(
            f"train.init_from = {config.train.init_from!r} is the run itself, which would be replaced; choose another "
            "name=..."
        )
    with buffered_log() as held:
        job = assemble(config, resolve_device(device), processes=processes)
    if not processes.leader:
        return _train(Trainer(job, directory), directory)
    with claimed(directory, overwrite) as claim:
        save_experiment(config, directory / CONFIG_FILE)
        start_log(directory, held)
        return _train(Trainer(job, directory, claim.settle), directory)


def _go_on(config: ExperimentConfig, directory: Path, device: str, processes: Processes) -> str:
    """Train from the newest state of a run that this process holds. Raises UserError for another run's options."""
    if processes.of_leader((directory / OUTCOME_FILE).is_file()):
        check_unchanged(load_experiment(directory / CONFIG_FILE), config, directory)
        if processes.leader:
            remove_states(directory)
        return f"{directory} has finished, nothing is left to train\nevaluate it: python test.py --run {directory}"
    with buffered_log() as held:
        trainer = _restored(config, directory, device, processes)
    if processes.leader:
        save_experiment(config, directory / CONFIG_FILE)
        start_log(directory, held)
    return _train(trainer, directory)


def _restored(config: ExperimentConfig, directory: Path, device: str, processes: Processes) -> Trainer:
    """Return a trainer at the newest state of a run. Raises UserError."""
    state = newest_state(directory)
    check_unchanged(config_of(state, directory), config, directory)
    agree(processes, {"state to go on from": f"step {state['step']}"})
    trainer = Trainer(assemble(config, resolve_device(device), state["trials"], processes), directory)
    trainer.restore(state)
    for note in notes_of_change(state, describe_device(trainer.job.device), processes.count):
        logger.warning("%s", note)
    logger.info("%s goes on after step %d, in epoch %d", directory, state["step"], state["epoch"] + 1)
    return trainer


def _train(trainer: Trainer, directory: Path) -> str:
    """Run a trainer to its end and record where it is. Raises UserError."""
    try:
        with failures_as_user_errors(directory):
            with trainer.processes.translated():
                outcome = trainer.fit()
            if trainer.processes.leader:
                _draw(directory)
                write_outcome(directory, outcome)
                remove_states(directory)
    except (UserError, Interrupted) as error:
        logger.error("stopped: %s", error)
        raise
    score = "" if outcome.score is None else f", mean mAP of the groups {outcome.score:.3f} %"
    return (
        f"best: {outcome.best} (after epoch {outcome.epoch}, selected on {outcome.selected_on}{score})\n"
        f"evaluate it: python test.py --run {directory}"
    )


def _draw(directory: Path) -> None:
    """Draw the curves; a run that was trained has finished also where its metrics are damaged."""
    try:
        draw_curves(directory)
    except UserError as error:
        logger.warning("no %s: %s", CURVES_FILE, error)


def write_outcome(directory: Path, outcome: TrainingOutcome) -> None:
    """Record where the run ended. The file is written last: a directory without it holds an unfinished run."""
    fields = dataclasses.asdict(outcome) | {"best": outcome.best.name}
    if outcome.ema is not None:
        fields["ema"] |= {"best": outcome.ema.best.name}
    write_json(directory / OUTCOME_FILE, fields)


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
            "and go on with --resume"
        ) from error
