"""Which weights a run chooses: evaluations, their record, and the checkpoints that hold what is best so far."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from solver.evaluation.result import EvaluationResult
from solver.run_directory import BEST_EMA_FILE, BEST_FILE, LAST_EMA_FILE, LAST_FILE
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

logger = logging.getLogger(__name__)

EMA = "ema"
"""Name of the averaged weights; those that are trained have an empty one."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Where a run ended. best: the chosen weights; score: their mean mAP in percent, None when nothing was
    evaluated. ema: the same of the moving average, where there is one.
    """

    best: Path
    epoch: int
    step: int
    selected_on: str
    score: float | None
    ema: TrainingOutcome | None = None


def file_name(file: str, name: str) -> str:
    """Return the checkpoint of the weights of a name: last.pth, last-ema.pth."""
    return {LAST_FILE: LAST_EMA_FILE, BEST_FILE: BEST_EMA_FILE}[file] if name == EMA else file


def best_so_far(directory: Path, names: Iterable[str]) -> dict[str, TrainingOutcome]:
    """Return what the best checkpoints of a run's directory say of themselves. Raises UserError for one that is
    damaged, or says nothing.

    They may be of an evaluation behind the state that a run goes on from: it comes out the same and is no better then.
    """
    found = {}
    for name in names:
        file = directory / file_name(BEST_FILE, name)
        if file.is_file():
            try:
                content = load_checkpoint(file)
                fields = {key: content[key] for key in ("epoch", "step", "selected_on", "score")}
            except (UserError, KeyError) as error:
                raise UserError(
                    f"the best weights so far cannot be known, remove {file} to choose among what follows alone: "
                    f"{error if isinstance(error, UserError) else f'it has no {error.args[0]}'}"
                ) from error
            found[name] = TrainingOutcome(best=file, **fields)
    return found


def evaluated_numbers(result: EvaluationResult, name: str) -> dict[str, float]:
    """Return the finite averages of an evaluation by `split/task/metric`, of averaged weights `ema/split/...`."""
    of = f"{name}/" if name else ""
    return {
        f"{of}{result.name}/{row.task}/{metric}": value
        for row in result.averages()
        for metric, value in row.metrics.items()
        if math.isfinite(value)
    }


def is_best(result: EvaluationResult, name: str, before: TrainingOutcome | None, epoch: int) -> bool:
    """Return whether the mean mAP of the groups is the highest so far, and log it. before: the best until now."""
    score = result.average("ALL_AVER", "mAP")
    best = before.score if before is not None and before.score is not None else -math.inf
    shown = result.averages()[:-1] or result.averages()
    logger.info(
        "epoch %d on %s%s: %s; mean mAP of the groups %.3f %s",
        epoch,
        result.name,
        f" ({name})" if name else "",
        ", ".join(f"{row.task} mAP {row.metrics['mAP']:.2f} R1 {row.metrics['R1']:.2f}" for row in shown),
        score,
        "(best so far)" if score > best else f"(best {best:.3f})",
    )
    return score > best
