"""Everything that a run is made of; `solver.training.engine.assemble` puts it together."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from configs.schema.experiment import ExperimentConfig
from configs.schema.train import TrainConfig
from datasets.loading.readers import SourceReader
from datasets.loading.samplers import Batches
from datasets.loading.text_notes import text_notes
from datasets.structures import Batch, Benchmark, EvalSplit, Record
from model.build import build_model, initialise
from model.interface import RetrievalModel
from model.norms import norms_in_features
from solver.evaluation.evaluator import prepare_evaluation
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.spec import EvaluationSpec
from solver.objectives.base import Objective
from solver.training.checkpoint import take_weights
from solver.training.lr_schedule import Timeline
from solver.training.param_groups import ParameterPolicy
from utils.device import describe_device, require_compiler
from utils.errors import UserError
from utils.log import library_versions
from utils.processes import ALONE, Processes

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """Training batches of an epoch, decided by the epoch's number alone."""

    @property
    def records(self) -> Sequence[Record]:
        """The training records, by the numbers that batches give them."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    @property
    def skipped(self) -> Sequence[str]:
        """Why records were left out so far, each reason once."""

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and number of the batch that comes next."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved position: the next iteration of its epoch starts there."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of epoch 0, 1, ..."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a run is made of. split: what chooses `best`, None = the last epoch does. workers: loader processes.

    trials: data set -> trial that the weights are trained on.
    """

    config: ExperimentConfig
    device: torch.device
    benchmark: Benchmark
    model: RetrievalModel
    objective: Objective[Any]
    policy: ParameterPolicy
    optimizer: Optimizer
    loader: Loader
    split: EvalSplit | None
    reader: SourceReader
    workers: int
    trials: Mapping[str, int] = dataclasses.field(default_factory=dict)
    processes: Processes = ALONE

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last one may have fewer micro-batches."""
        return math.ceil(self.loader.steps_per_epoch / self.config.train.accumulate)

    @property
    def timeline(self) -> Timeline:
        """The run's length, and its rates."""
        train = self.config.train
        return Timeline(self.config.schedule, self.steps_per_epoch, epochs=train.epochs, steps=train.steps)


def check_evaluation(job: TrainingJob) -> None:
    """Refuse what the first evaluation would find after hours of training. Raises UserError."""
    if job.split is not None:
        plan = plan_evaluation([job.split], instructed=job.model.follows_instructions)
        prepare_evaluation(plan, EvaluationSpec.of(job.config, job.workers, job.processes), job.model)


def warn_of_texts(benchmark: Benchmark, reader: SourceReader) -> None:
    """Log what of the training captions does not reach the model."""
    for note in text_notes((source for record in benchmark.train for source in record.sources.values()), reader):
        logger.warning("training captions: %s", note)


def build_trained_model(
    config: ExperimentConfig, num_identities: int, device: torch.device, *, restored: bool = False
) -> RetrievalModel:
    """Build the model with its initial weights on `device`, ready for the first step. restored: with any weights,
    which a state replaces. Raises UserError.
    """
    model, origin = build_model(config.family, config.model, num_identities), config.train.init_from
    # What init_from does not fill (a classifier of another size) is drawn at random; CLIP's file is not needed then.
    start = dataclasses.replace(config.model, init="random") if origin or restored else config.model
    report = initialise(config.family, model, start)
    if not restored:
        banked = config.objective.remembers_identities
        same = banked and config.train.init_banks == "same"
        logger.info("%s", take_weights(model, config.family, origin, same) if origin else report.format())
        if origin and banked:
            logger.info("memory banks are not taken over: they fill again within an epoch")
    model.checkpoint_activations = config.train.checkpoint_activations
    model.to(device)
    if config.train.compile:
        require_compiler(device)
        model.compile_blocks()
    return model


def selection_split(config: ExperimentConfig, benchmark: Benchmark) -> EvalSplit | None:
    """Return the split that chooses `best`, None for the last epoch. Raises UserError when it is absent or empty."""
    name = config.train.select
    if name == "last":
        return None
    split = benchmark.splits.get(name)
    if split is None or not any(listed.entries for listed in split.query_lists):
        raise UserError(
            f"train.select = {name!r}, but data set {benchmark.name} has no queries in such a split; raise "
            "data.val_fraction or set train.select=last"
        )
    return split


def header(job: TrainingJob) -> list[str]:
    """Return the lines that say what is trained on what by what."""
    train, benchmark = job.config.train, job.benchmark
    effective = train.batch_size * train.accumulate
    return [
        f"parameter policy\n{job.policy}",
        f"data {benchmark.name}, fingerprint {benchmark.fingerprint}: {len(benchmark.train)} training records of "
        f"{benchmark.num_identities} identities; best chosen on {train.select}",
        *mixture_notes(train),
        *accumulation_notes(train, job.model),
        f"effective batch {effective} ({train.batch_size} rows x {train.accumulate}), {job.steps_per_epoch} steps an "
        f"epoch, {job.timeline.epochs} epochs{f' ({train.steps:,} steps)' if train.steps else ''}, seed "
        f"{job.config.seed}",
        f"parameters: {job.policy.count(True):,} trainable, {job.policy.count(False):,} frozen",
        f"device {describe_device(job.device)}, precision {train.precision}",
        *process_notes(job),
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    ]


def mixture_notes(train: TrainConfig) -> list[str]:
    """Return what batch normalisation sees where several tasks share the batches."""
    if train.sampler != "tasks":
        return []
    seen = {"batch": "the rows of all tasks together", "step": "one task at a time"}[train.mixture]
    return [f"batches of several tasks, train.mixture={train.mixture}: batch normalisation sees {seen}"]


def digests(benchmark: Benchmark, batches: Batches) -> dict[str, str]:
    """Return what all processes of a run must have the same."""
    labels = hashlib.sha256(repr([record.person_id for record in benchmark.train]).encode("utf-8")).hexdigest()[:16]
    return {"data fingerprint": benchmark.fingerprint, "map of labels": labels, "order of batches": batches.digest()}


def process_notes(job: TrainingJob) -> list[str]:
    """Return what is shared out among several processes."""
    count = job.processes.count
    if count == 1:
        return []
    return [
        f"{count} processes share the rows of each batch; the losses, banks and queues of all see all of them; "
        "evaluations are shared too"
    ]


def accumulation_notes(train: TrainConfig, model: nn.Module) -> list[str]:
    """Return what the losses and the batch norms see of a batch that comes in micro-batches."""
    if train.accumulate == 1:
        return []
    if not train.accumulate_features:
        return ["the losses see one micro-batch at a time (train.accumulate_features=false)"]
    found = f"the losses see all {train.accumulate} micro-batches of a step together"
    norms = norms_in_features(model)
    if norms:
        found += f"; {len(norms)} batch norms below the features see one micro-batch at a time (first {norms[0]})"
    return [found]
