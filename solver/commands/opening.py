"""What test.py and infer.py begin with: the trained model on its device, threads, and how to evaluate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from configs.load import load_experiment
from configs.schema.experiment import ExperimentConfig
from configs.schema.family import FollowsInstructions
from model.weights.reid5o import is_flat_config
from solver.evaluation.spec import EvaluationSpec
from solver.run_directory import CONFIG_FILE
from solver.run_names import find_run, locate_run
from solver.runs import TrainedModel, open_checkpoint, open_run
from utils.device import describe_device, exact_float32, resolve_device
from utils.processes import ALONE, Processes
from utils.threads import plan_threads

logger = logging.getLogger(__name__)


class NamesModel(Protocol):
    """Options of a command that uses a trained model."""

    @property
    def run(self) -> str:
        """A run directory, its name below runs/, or a checkpoint in it."""

    @property
    def config(self) -> str:
        """A configuration file."""

    @property
    def checkpoint(self) -> str:
        """best, last or a file."""

    @property
    def device(self) -> str:
        """As resolve_device takes it."""

    @property
    def overrides(self) -> Sequence[str]:
        """key.sub=value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which trained model a command uses."""

    run: str = ""
    """A run directory; empty when config and checkpoint are files."""
    config: str = ""
    checkpoint: str = ""
    """best, last or a file; empty = best, else last."""
    device: str = "auto"
    overrides: Sequence[str] = ()

    @classmethod
    def of(cls, options: NamesModel) -> ModelChoice:
        """Return the model that a command line names, its run found as `find_run` does."""
        run, checkpoint = find_run(options.run, options.checkpoint)
        return cls(
            run=run,
            config=options.config,
            checkpoint=checkpoint,
            device=options.device,
            overrides=options.overrides,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Takes:
    """What a model is told, by its configuration."""

    queries: bool
    """Whether queries may have an instruction."""
    gallery: bool
    """Whether gallery images may have one."""

    @classmethod
    def of(cls, config: ExperimentConfig) -> Takes:
        """Return what a model of this configuration is told."""
        follows = isinstance(config.model, FollowsInstructions) and config.model.follows
        return cls(queries=follows, gallery=follows and config.objective.told_gallery)


def instructions_taken(choice: ModelChoice) -> Takes:
    """Return what a model is told without reading its weights. Raises UserError for a run that is none."""
    file = locate_run(choice.run, choice.checkpoint)[0] / CONFIG_FILE if choice.run else Path(choice.config)
    if is_flat_config(file):
        return Takes(queries=False, gallery=False)
    return Takes.of(load_experiment(file, choice.overrides))


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A trained model, ready to evaluate."""

    trained: TrainedModel
    device: torch.device
    spec: EvaluationSpec


def open_trained(choice: ModelChoice, processes: Processes = ALONE) -> Opened:
    """Load the model, set the threads and say what runs where. processes: that evaluate together. Raises UserError."""
    exact_float32()
    device = resolve_device(choice.device)
    if choice.run:
        trained = open_run(choice.run, choice.checkpoint, choice.overrides, device)
    else:
        trained = open_checkpoint(choice.config, choice.checkpoint, choice.overrides, device)
    plan = plan_threads(device.type, trained.config.data.workers)
    torch.set_num_threads(plan.threads)
    logger.info("%s; %s", describe_device(device), plan.describe())
    if processes.count > 1:
        logger.info("%d processes share the evaluation", processes.count)
    spec = EvaluationSpec.of(trained.config, plan.workers, processes)
    return Opened(trained=trained, device=device, spec=spec)
