"""What a checkpoint holds, and weights taken over from another run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.load import experiment_to_dict
from configs.schema.experiment import ExperimentConfig
from configs.vocabulary import Family
from model.interface import RetrievalModel
from solver.run_names import find_run, locate_run
from solver.runs import check_trials, trials_of
from utils.checkpoint_io import FORMAT_VERSION, load_checkpoint
from utils.errors import UserError, shortened
from utils.log import library_versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: finished epochs and optimiser steps, what chose the weights, its metrics in percent, and the
    mean mAP of the groups that was the highest so far.
    """

    epoch: int
    step: int
    selected_on: str
    metrics: Mapping[str, float]
    score: float | None = None


def checkpoint_payload(
    model: RetrievalModel,
    config: ExperimentConfig,
    progress: Progress,
    data_fingerprint: str,
    trials: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return tensors and plain values only.

    trials: data set -> trial that the weights have been trained on, see `Benchmark.trials`.
    Raises UserError when a weight is not finite, so that no such checkpoint replaces a good one.
    """
    refuse_broken(model, progress.step)
    return {
        "format_version": FORMAT_VERSION,
        "model": model.state_dict(),
        "config": experiment_to_dict(config),
        "family": config.family.value,
        "num_identities": model.num_identities,
        "epoch": progress.epoch,
        "step": progress.step,
        "selected_on": progress.selected_on,
        "metrics": dict(progress.metrics),
        "score": progress.score,
        "data_fingerprint": data_fingerprint,
        "trials": dict(trials or {}),
        "versions": library_versions(),
    }


def refuse_broken(model: nn.Module, step: int) -> None:
    """Raise UserError when a weight is not finite after so many steps."""
    broken = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise UserError(
            f"weights are not finite after step {step} ({len(broken)} tensors, first {broken[0]}); the "
            "previous checkpoint is unchanged, lower optimizer.lr or set train.clip_norm"
        )


def take_weights(model: RetrievalModel, family: Family, run: str, same_identities: bool = False) -> str:
    """Copy the weights of a run (best, else last) into `model` and return a report of what was and was not copied.

    A tensor with one row per training identity (the classifier) keeps its own values where the number of identities
    differs. same_identities: refuse another number. Raises UserError when the run is missing, of another family, or its
    other tensors do not fit.
    """
    path, content = _first_checkpoint(run)
    if content["family"] != family.value:
        raise UserError(f"train.init_from: {path} is of family {content['family']}, this run of {family.value}")
    if same_identities and content["num_identities"] != model.num_identities:
        raise UserError(
            f"train.init_from: {path} was trained on {content['num_identities']} identities, this run has "
            f"{model.num_identities}, and the memory banks of its objective have a slot for each; train on the same "
            "identities, or set train.init_banks=new to begin with new banks and a new classifier"
        )
    own, theirs = model.state_dict(), content["model"]
    new = [
        name
        for name in own
        if name in theirs and _per_identity(own[name], theirs[name], model.num_identities, content["num_identities"])
    ]
    problems = [
        f"{name} is {_shape(theirs, name)} there and {_shape(own, name)} here"
        for name in sorted({*own, *theirs} - {*new})
        if _shape(own, name) != _shape(theirs, name)
    ]
    if problems:
        raise UserError(
            f"train.init_from: {path} does not fit the model of this run: {shortened(problems, 3)}; "
            "use the model section of its config.yaml"
        )
    model.load_state_dict({name: own[name] if name in new else theirs[name] for name in own}, strict=True)
    origin = (
        f"weights from {path} (epoch {content.get('epoch')}, data {content.get('data_fingerprint')}): "
        f"{len(own) - len(new)} tensors"
    )
    kept = ", ".join(f"{name} {_shape(theirs, name)} there, {_shape(own, name)} here" for name in new)
    return f"{origin}; new because the number of identities differs: {kept}" if new else origin


def joined_trials(trials: Mapping[str, int], run: str) -> dict[str, int]:
    """Return the trials of the training data together with those that the weights of `run` (train.init_from) have seen.

    run: empty = none. Raises UserError where the two are of different trials of one data set.
    """
    if not run:
        return dict(trials)
    path, content = _first_checkpoint(run)
    earlier = trials_of(content)
    check_trials(earlier, trials, f"train.init_from: {path}", "this run trains on")
    return earlier | dict(trials)


def _first_checkpoint(run: str) -> tuple[Path, dict[str, Any]]:
    try:
        _, path = locate_run(*find_run(run))
    except UserError as error:
        raise UserError(f"train.init_from = {run!r}: {error}") from error
    return path, load_checkpoint(path)


def _per_identity(own: Tensor, theirs: Tensor, own_identities: int, their_identities: int) -> bool:
    return (
        own_identities != their_identities
        and own.shape[:1] == (own_identities,)
        and theirs.shape[:1] == (their_identities,)
        and own.shape[1:] == theirs.shape[1:]
    )


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"
