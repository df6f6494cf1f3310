"""Training: a configuration becomes a job, a Trainer runs it. Nothing here knows a model family.

One step goes train_step -> objective.step -> model and solver.losses; everything else is preparation and record
keeping.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from configs.schema.experiment import ExperimentConfig
from configs.schema.family import FollowsInstructions
from configs.schema.train import TrainConfig
from datasets.build import build_benchmark, build_source_reader
from datasets.fitting import needs_of
from datasets.loading.loaders import build_batches, build_train_loader
from datasets.loading.readers import SourceReader
from datasets.loading.text_notes import text_notes
from datasets.structures import Batch, Benchmark, EvalSplit, Record
from model.build import build_model, initialise
from model.interface import RetrievalModel
from solver.evaluation.evaluator import evaluate_split, prepare_evaluation
from solver.evaluation.plan import plan_evaluation
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.objectives.base import Objective, ObjectiveContext, StepOutput
from solver.run_directory import BEST_FILE, BOARD_FOLDER, LAST_FILE, METRICS_FILE
from solver.training.checkpoint import Progress, checkpoint_payload, joined_trials, take_weights
from solver.training.families import FAMILIES, build_objective
from solver.training.lr_schedule import Timeline
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import ParameterPolicy, apply_policy
from utils.checkpoint_io import save_checkpoint
from utils.device import autocast, describe_device, exact_float32, require_compiler
from utils.errors import UserError, shortened
from utils.log import MetricsWriter, library_versions, log_short
from utils.progress import clock, progress_bar
from utils.seeding import seed_everything
from utils.threads import plan_threads

logger = logging.getLogger(__name__)

SHOWN_RECORDS = 5


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

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last one may have fewer micro-batches."""
        return math.ceil(self.loader.steps_per_epoch / self.config.train.accumulate)

    @property
    def timeline(self) -> Timeline:
        """The run's length, and its rates."""
        train = self.config.train
        return Timeline(self.config.schedule, self.steps_per_epoch, epochs=train.epochs, steps=train.steps)


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Where a run ended. best: the chosen weights; score: their mean mAP in percent, None when nothing was
    evaluated.
    """

    best: Path
    epoch: int
    step: int
    selected_on: str
    score: float | None


def assemble(config: ExperimentConfig, device: torch.device) -> TrainingJob:
    """Build everything of a run and log it as the header of the run's log. Raises UserError."""
    exact_float32()
    threads = plan_threads(device.type, config.data.workers)
    torch.set_num_threads(threads.threads)
    seed_everything(config.seed)
    benchmark = build_benchmark(
        config.data,
        select=config.train.select,
        need_train=True,
        instruction=config.instruction,
        needs=needs_of(config.model, config.objective),
    )
    trials = joined_trials(benchmark.trials, config.train.init_from)
    # Before the cache and the weights: what the sampler refuses is refused without a file and without a download.
    batches = build_batches(benchmark, config.train, config.seed)
    reader = build_source_reader(config.data, config.model, benchmark)
    for note in text_notes((source for record in benchmark.train for source in record.sources.values()), reader):
        logger.warning("training captions: %s", note)
    model = build_trained_model(config, benchmark.num_identities, device)
    policy = apply_policy(
        model.named_parameters(),
        FAMILIES[config.family].policy(config.optimizer),
        lr=config.optimizer.lr,
        freeze=config.train.freeze,
    )
    optimizer = build_optimizer(policy.groups, config.optimizer)
    loader = build_train_loader(
        benchmark,
        config.data,
        config.augment,
        reader,
        batches,
        seed=config.seed,
        workers=threads.workers,
        instruction=config.instruction if isinstance(config.model, FollowsInstructions) else None,
    )
    context = ObjectiveContext(seed=config.seed, model=model, records=benchmark.train, tokenizer=reader.tokenizer)
    job = TrainingJob(
        config=config,
        device=device,
        benchmark=benchmark,
        model=model,
        policy=policy,
        optimizer=optimizer,
        loader=loader,
        reader=reader,
        workers=threads.workers,
        trials=trials,
        split=selection_split(config, benchmark),
        objective=build_objective(config.family, config.objective, context).to(device),
    )
    if job.split is not None:
        # Hours of training would pass before the first evaluation finds the same.
        plan = plan_evaluation([job.split], instructed=model.follows_instructions)
        prepare_evaluation(plan, EvaluationSpec.of(config, threads.workers), model)
    for line in (*header(job), threads.describe()):
        logger.info("%s", line)
    return job


def build_trained_model(config: ExperimentConfig, num_identities: int, device: torch.device) -> RetrievalModel:
    """Build the model with its initial weights on `device`, ready for the first step. Raises UserError."""
    model = build_model(config.family, config.model, num_identities)
    # What init_from does not fill (a classifier of another size) is drawn at random; CLIP's file is not needed then.
    start = dataclasses.replace(config.model, init="random") if config.train.init_from else config.model
    report = initialise(config.family, model, start)
    text = take_weights(model, config.family, config.train.init_from) if config.train.init_from else report.format()
    logger.info("%s", text)
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
        f"effective batch {effective} ({train.batch_size} rows x {train.accumulate}), {job.steps_per_epoch} steps an "
        f"epoch, {job.timeline.epochs} epochs{f' ({train.steps:,} steps)' if train.steps else ''}, seed "
        f"{job.config.seed}",
        f"parameters: {job.policy.count(True):,} trainable, {job.policy.count(False):,} frozen",
        f"device {describe_device(job.device)}, precision {train.precision}",
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    ]


def mixture_notes(train: TrainConfig) -> list[str]:
    """Return what batch normalisation sees where several tasks share the batches."""
    if train.sampler != "tasks":
        return []
    seen = {"batch": "the rows of all tasks together", "step": "one task at a time"}[train.mixture]
    return [f"batches of several tasks, train.mixture={train.mixture}: batch normalisation sees {seen}"]


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` consecutive batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def scalars(output: StepOutput) -> Tensor:
    """Return the losses and then the diagnostics as one vector, still on the device."""
    return torch.stack([value.detach().float() for value in (*output.losses.values(), *output.diagnostics.values())])


class Trainer:
    """Runs a job in a run directory."""

    def __init__(self, job: TrainingJob, directory: Path, saved: Callable[[], None] = lambda: None) -> None:
        """Take a job whose model is on its device; `directory` exists. saved: called after each checkpoint."""
        self.job, self.directory, self.saved = job, directory, saved
        self.train, self.timeline = job.config.train, job.timeline
        # Scaled losses keep small fp16 gradients from vanishing; for the other precisions the scaler does nothing.
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=self.train.precision == "fp16")
        self.step = 0
        self.started = time.perf_counter()
        self.best: TrainingOutcome | None = None

    def fit(self) -> TrainingOutcome:
        """Train to the end and return what was chosen.

        last.pth is replaced after every epoch, best.pth whenever the selection improves. Raises UserError.
        """
        with MetricsWriter(self.directory / METRICS_FILE, self.directory / BOARD_FOLDER) as writer:
            for epoch in itertools.count():
                self.train_epoch(epoch, writer)
                self.save(LAST_FILE, Progress(epoch=epoch + 1, step=self.step, selected_on="last", metrics={}))
                ending = self.finished or (not self.train.steps and epoch + 1 == self.train.epochs)
                if self.job.split is not None and (ending or (epoch + 1) % self.train.eval_period == 0):
                    self.select(evaluate_job(self.job, self.job.split), epoch + 1, writer)
                writer.flush()
                if ending:
                    break
        if self.job.split is None:
            self.keep_best(Progress(epoch=epoch + 1, step=self.step, selected_on="last", metrics={}), None)
        if self.best is None:
            raise UserError(
                f"no evaluation on {self.train.select} gave a number, so there is no best.pth; {LAST_FILE} is there"
            )
        return self.best

    @property
    def finished(self) -> bool:
        """Whether train.steps or train.max_steps is reached."""
        return any(0 < limit <= self.step for limit in (self.train.steps, self.train.max_steps))

    def train_epoch(self, epoch: int, writer: MetricsWriter) -> None:
        """Run the steps of one epoch, or as many as train.steps and train.max_steps leave."""
        self.job.model.train()
        first, started = self.step, time.perf_counter()
        groups = grouped(self.job.loader.epoch(epoch), self.train.accumulate)
        with progress_bar(groups, self.job.steps_per_epoch, f"epoch {epoch + 1}/{self.timeline.epochs}", "step") as bar:
            for index, batches in enumerate(bar):
                rate = self.set_learning_rate(epoch, index)
                values = self.train_step(batches)
                now = time.perf_counter()
                images = sum(len(rows) for batch in batches for rows in batch.inputs.values() if rows.ndim == 4)
                values |= {"lr": rate, "epoch": epoch + 1, "images_per_second": images / (now - started)}
                started = now
                writer.write(self.step, {name: value for name, value in values.items() if math.isfinite(value)})
                if self.step % self.train.log_period == 0:
                    self.log_step(epoch, values)
                if self.finished:
                    break
        if self.step == first:
            raise UserError(
                f"epoch {epoch + 1} had no batch: {len(self.job.loader.skipped)} unreadable images were skipped; "
                "restore them or lower train.batch_size"
            )
        if self.job.loader.skipped:
            logger.warning("%d unreadable images skipped so far", len(self.job.loader.skipped))

    def log_step(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log a step: every value in the run's file; on the terminal the sum, the speed and the time that is left of
        the whole run's training steps at the speed so far.
        """
        place = f"epoch {epoch + 1}/{self.timeline.epochs} step {self.step}"
        total = min(self.timeline.steps, self.train.max_steps or self.timeline.steps)
        left = (time.perf_counter() - self.started) / self.step * max(0, total - self.step)
        log_short(
            f"{place}: total {values['total']:.4g} lr {values['lr']:.3g} {values['images_per_second']:.0f} images/s, "
            f"{clock(left)} left",
            f"{place}: {' '.join(f'{name} {value:.4g}' for name, value in values.items() if name != 'epoch')}",
        )

    def set_learning_rate(self, epoch: int, index: int) -> float:
        """Set every group's rate for step `index` of an epoch; return the rate of groups whose factor is 1."""
        steps = self.job.steps_per_epoch
        position = epoch * steps + min(index, steps - 1)
        for group in self.job.optimizer.param_groups:
            group["lr"] = self.timeline.rate(position, group["base_lr"])
        return self.timeline.rate(position, self.job.config.optimizer.lr)

    def train_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Update the weights once from the micro-batches' mean gradient, each weighted by its rows.

        Returns every loss term, their total and the diagnostics. Raises UserError before the update for a loss that is
        not finite.
        """
        rows = sum(len(batch.person_ids) for batch in batches)
        self.job.optimizer.zero_grad(set_to_none=True)
        read: list[Tensor] = []
        for batch in batches:
            share = len(batch.person_ids) / rows
            with autocast(self.job.device, self.train.precision):
                output = self.job.objective.step(self.job.model, batch.to(self.job.device), self.step)
            self.scaler.scale(output.total * share).backward()
            read.append(scalars(output))
        # The one place where a step waits for the device.
        values = torch.stack(read).tolist()
        self.check_finite(list(output.losses), values, batches)
        extra = self.clip()
        self.scaler.step(self.job.optimizer)
        self.scaler.update()
        self.step += 1
        means = [
            sum(row[column] * len(batch.person_ids) for row, batch in zip(values, batches, strict=True)) / rows
            for column in range(len(values[0]))
        ]
        terms = len(output.losses)
        return {
            **{f"loss/{name}": value for name, value in zip(output.losses, means[:terms], strict=True)},
            "total": sum(means[:terms]),
            **dict(zip(output.diagnostics, means[terms:], strict=True)),
            **extra,
        }

    def clip(self) -> dict[str, float]:
        """Scale the gradients down to train.clip_norm; return the norm before, and the scaler's factor under fp16."""
        found = {"loss_scale": float(self.scaler.get_scale())} if self.scaler.is_enabled() else {}
        if self.train.clip_norm > 0:
            self.scaler.unscale_(self.job.optimizer)
            trained = [parameter for group in self.job.optimizer.param_groups for parameter in group["params"]]
            found["gradient_norm"] = float(nn.utils.clip_grad_norm_(trained, self.train.clip_norm))
        return found

    def check_finite(self, names: Sequence[str], values: Sequence[Sequence[float]], batches: Sequence[Batch]) -> None:
        """Stop the run when a loss is not finite. Raises UserError naming step, term and records."""
        for row, batch in zip(values, batches, strict=True):
            for name, value in zip(names, row):
                if math.isfinite(value):
                    continue
                records = [self.job.loader.records[index] for index in batch.record_ids.tolist()]
                labels = [record.name or f"record {index}" for record, index in zip(records, batch.record_ids.tolist())]
                logger.error("records of the batch with loss %s = %s: %s", name, value, ", ".join(labels))
                raise UserError(
                    f"loss {name} is {value} at step {self.step + 1}, records "
                    f"{shortened(labels, SHOWN_RECORDS)}; the checkpoints of "
                    "finished epochs are kept, lower optimizer.lr, set train.clip_norm or use train.precision=fp32"
                )

    def select(self, result: EvaluationResult, epoch: int, writer: MetricsWriter) -> None:
        """Record an evaluation and keep the weights as best when its mean mAP of the groups is the highest so far."""
        numbers = {
            f"{result.name}/{row.task}/{metric}": value
            for row in result.averages()
            for metric, value in row.metrics.items()
            if math.isfinite(value)
        }
        writer.write(self.step, {"epoch": epoch, **numbers})
        score = result.average("ALL_AVER", "mAP")
        shown = result.averages()[:-1] or result.averages()
        best = self.best.score if self.best is not None and self.best.score is not None else -math.inf
        logger.info(
            "epoch %d on %s: %s; mean mAP of the groups %.3f %s",
            epoch,
            result.name,
            ", ".join(f"{row.task} mAP {row.metrics['mAP']:.2f} R1 {row.metrics['R1']:.2f}" for row in shown),
            score,
            "(best so far)" if score > best else f"(best {best:.3f})",
        )
        if score > best:
            progress = Progress(epoch=epoch, step=self.step, selected_on=self.train.select, metrics=numbers)
            self.keep_best(progress, score)

    def keep_best(self, progress: Progress, score: float | None) -> None:
        """Save the present weights as best.pth."""
        self.save(BEST_FILE, progress)
        self.best = TrainingOutcome(
            best=self.directory / BEST_FILE,
            epoch=progress.epoch,
            step=progress.step,
            selected_on=progress.selected_on,
            score=score,
        )

    def save(self, name: str, progress: Progress) -> None:
        """Write a checkpoint; the previous one of that name survives every failure. Raises UserError."""
        payload = checkpoint_payload(
            self.job.model, self.job.config, progress, self.job.benchmark.fingerprint, self.job.trials
        )
        # best.pth is a file for inference; what training alone needs would double its size.
        state = self.job.objective.state_dict() if name == LAST_FILE else {}
        if state:
            payload["objective"] = state
        save_checkpoint(self.directory / name, payload)
        self.saved()


def evaluate_job(job: TrainingJob, split: EvalSplit) -> EvaluationResult:
    """Evaluate the present weights on a split, as test.py would."""
    spec = EvaluationSpec.of(job.config, job.workers)
    result = evaluate_split(job.model, split, job.reader, spec, job.device)
    for skipped in result.skipped:
        logger.warning("skipped: %s", skipped.reason)
    for note in result.notes():
        logger.warning("%s", note)
    return result
