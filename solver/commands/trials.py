"""A series of trials: one run for each division of a data set's persons into train and test, and their results merged.

`output_dir/name/trial-01`, `trial-02`, ... are ordinary run directories; the merged results lie in the folder that
holds them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.changes import differences
from configs.load import load_experiment
from configs.schema.experiment import ExperimentConfig
from datasets.build import build_benchmark, number_of_trials
from datasets.fitting import needs_of
from solver.commands.evaluate import run_test
from solver.commands.train import run_training
from solver.reports.merging import format_merged, merge_results, read_series, write_merged
from solver.run_directory import (
    CONFIG_FILE,
    CSV_FILE,
    LATEX_FILE,
    OUTCOME_FILE,
    RESULTS_FILE,
    TRIAL_FOLDERS,
    check_free,
    check_start,
    has_progress,
    restore_previous,
    trial_folder,
)
from solver.run_names import find_checkpoint, find_run
from utils.errors import UserError
from utils.processes import ALONE, Processes

logger = logging.getLogger(__name__)

PATTERN = re.compile(r"\d{1,6}(?:-\d{1,6})?(?:,\d{1,6}(?:-\d{1,6})?)*")


def parse_trials(text: str, dataset: str) -> tuple[int, ...]:
    """Return the trials that `1-10`, `1,2` or `3` names, ascending. Raises UserError, also for a data set without
    trials.
    """
    available = number_of_trials(dataset)
    if not available:
        raise UserError(f"--trials {text}: data set {dataset} has no trials; remove the option")
    if not PATTERN.fullmatch(text.replace(" ", "")):
        raise UserError(f"--trials {text!r}: must be numbers like 1-{available} or 1,2")
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, last = (int(number) for number in (part.split("-") * 2)[:2])
        if not 1 <= first <= available or not 1 <= last <= available:
            raise UserError(f"--trials {text}: {dataset} has the trials 1..{available}")
        if first > last:
            raise UserError(f"--trials {text}: {part} runs backwards; write {last}-{first}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def trial_label(trial: int) -> str:
    """Return what a trial is called in messages and merged results."""
    return f"trial {trial}"


def train_trials(config: ExperimentConfig, trials: str, *, device: str, overwrite: bool, resume: bool = False) -> str:
    """Train one model for each trial into output_dir/name/trial-NN and return what is to be printed.

    A finished trial is kept, an unfinished one is trained again from its start, or goes on under `resume`; `overwrite`
    trains all of them again.
    All trials' lists are read before the first step. Raises UserError that names the trial.
    """
    series = Path(config.output_dir) / config.name
    configs = {trial: _of_trial(config, series, trial) for trial in parse_trials(trials, config.data.dataset)}
    if (series / CONFIG_FILE).is_file():
        raise UserError(f"{series} is the directory of a single run; choose another name=... for the trials")
    folders = {trial: series / trial_folder(trial) for trial in configs}
    states = {trial: _state(folders[trial], entry, overwrite, resume) for trial, entry in configs.items()}
    for trial, entry in configs.items():
        if states[trial] != "finished":
            with _named(trial):
                build_benchmark(
                    entry.data,
                    select=entry.train.select,
                    need_train=True,
                    instruction=entry.instruction,
                    needs=needs_of(entry.model, entry.objective),
                )
    lines = []
    for place, (trial, entry) in enumerate(configs.items(), start=1):
        if states[trial] == "finished":
            lines.append(f"{trial_label(trial)}: finished before and kept, --overwrite trains it again")
            continue
        if states[trial] == "replaced":
            # They would hold numbers of weights that are gone.
            for name in (RESULTS_FILE, CSV_FILE, LATEX_FILE):
                (series / name).unlink(missing_ok=True)
        logger.info("%s (%d of %d)", trial_label(trial), place, len(configs))
        with _named(trial):
            text = run_training(entry, device=device, overwrite=states[trial] == "replaced", resume=resume)
        lines.append(f"{trial_label(trial)}: {text.splitlines()[0]}")
    return "\n".join([*lines, f"evaluate them: python test.py --run {series} --trials {trials}"])


def evaluate_trials(
    *,
    run: str,
    trials: str,
    checkpoint: str,
    output: str,
    device: str,
    overrides: Sequence[str],
    processes: Processes = ALONE,
) -> str:
    """Evaluate the run of each trial on its own test lists, merge the results and return what is to be printed.

    Results of a trial go into its run directory, merged ones into `run`; with `output` both go below that folder. A
    trial without a checkpoint is left out and named. processes: share each evaluation; the first of them writes, and
    the others return nothing. Raises UserError that names the trial; merged results are then not written.
    """
    series = Path(find_run(run)[0])
    wanted = parse_trials(trials, _series_dataset(series, trials, overrides))
    looked = wanted if processes.leader else ()
    present = processes.of_leader([one for one in looked if _has_checkpoint(series / trial_folder(one), checkpoint)])
    if not present:
        raise UserError(
            f"{series} has no checkpoint {checkpoint or 'best or last'} of the trials {trials}; there: "
            f"{_listed(series)}; train them with train.py --trials {trials}"
        )
    files: dict[str, Path] = {}
    for place, trial in enumerate(present, start=1):
        folder = series / trial_folder(trial)
        target = Path(output) / folder.name if output else folder
        with _named(trial):
            table = run_test(
                run=str(folder),
                config="",
                checkpoint=checkpoint,
                output=str(target),
                device=device,
                overrides=[*overrides, f"data.trial={trial}"],
                processes=processes,
            )
        logger.info("%s (%d of %d)\n%s", trial_label(trial), place, len(present), table)
        files[trial_label(trial)] = target / RESULTS_FILE
    if not processes.leader:
        return ""
    document = merge_results(read_series(files), [trial_label(trial) for trial in wanted])
    unfinished = [
        trial_label(trial) for trial in present if not (series / trial_folder(trial) / OUTCOME_FILE).is_file()
    ]
    if unfinished:
        document["notes"].insert(0, f"training is not finished in {', '.join(unfinished)}: stopped, or still running")
    written = write_merged(Path(output) if output else series, document)
    each = f"and the results of each trial in {trial_folder(present[0])}, ..."
    tables = ", ".join(str(written.with_name(name)) for name in (RESULTS_FILE, CSV_FILE, LATEX_FILE))
    return f"{format_merged(document)}\nwritten: {tables}, {each}"


def _of_trial(config: ExperimentConfig, series: Path, trial: int) -> ExperimentConfig:
    return dataclasses.replace(
        config, name=trial_folder(trial), output_dir=str(series), data=dataclasses.replace(config.data, trial=trial)
    )


def _state(directory: Path, config: ExperimentConfig, overwrite: bool, resume: bool) -> str:
    """Return `new`, `finished`, `resumed` or `replaced`. Raises UserError for a directory that is none of them, or that
    was trained differently.
    """
    ours = (directory / CONFIG_FILE).is_file()
    if ours and not overwrite and (directory / OUTCOME_FILE).is_file():
        changed = differences(load_experiment(directory / CONFIG_FILE), config)
        if changed:
            raise UserError(
                f"{directory} was trained with another configuration "
                f"({'; '.join(changed[:3])}{' and more' if changed[3:] else ''}); choose another name=... or train it "
                "again with --overwrite"
            )
        return "finished"
    if resume and has_progress(directory):
        check_start(directory, overwrite=False, resume=True)
        return "resumed"
    check_free(directory, overwrite or ours)
    return "replaced" if directory.is_dir() and any(directory.iterdir()) else "new"


def _series_dataset(series: Path, trials: str, overrides: Sequence[str]) -> str:
    """Return the data set of a series. Raises UserError when the folder holds no run of it."""
    if not series.is_dir():
        raise UserError(f"no such run directory: {series}; train the trials with train.py --trials {trials}")
    own = series / CONFIG_FILE
    inner = sorted(series.glob(f"{TRIAL_FOLDERS}/{CONFIG_FILE}"))
    if not own.is_file() and not inner:
        raise UserError(
            f"{series} holds no trials ({trial_folder(1)}, ...); train them with train.py --trials {trials}"
        )
    dataset = load_experiment(own if own.is_file() else inner[0], overrides).data.dataset
    if own.is_file() and number_of_trials(dataset):
        raise UserError(
            f"{series} is a single run, not a series of trials; evaluate it without --trials, or train a series with "
            f"train.py --trials {trials}"
        )
    return dataset


def _has_checkpoint(directory: Path, checkpoint: str) -> bool:
    restore_previous(directory)
    if not (directory / CONFIG_FILE).is_file():
        return False
    try:
        find_checkpoint(directory, checkpoint)
    except UserError as error:
        logger.warning("left out: %s", error)
        return False
    return True


def _listed(series: Path) -> str:
    return ", ".join(sorted(path.name for path in series.iterdir() if path.is_dir())) or "nothing"


@contextmanager
def _named(trial: int) -> Iterator[None]:
    """Put the trial before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{trial_label(trial)}: {error}") from error
