"""Training: a configuration becomes a job, a Trainer runs it. Nothing here knows a model family.

One step goes train_step -> objective.step -> model and solver.losses; everything else is preparation and record
keeping.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema.experiment import ExperimentConfig
from configs.schema.family import FollowsInstructions
from datasets.build import build_benchmark, build_source_reader
from datasets.fitting import needs_of
from datasets.loading.loaders import build_batches, build_train_loader
from datasets.structures import Batch, Benchmark, EvalSplit
from model.interface import RetrievalModel
from model.norms import share_norms
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.objectives.base import ObjectiveContext
from solver.run_directory import (
    BEST_FILE,
    BOARD_FOLDER,
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    STATES_FOLDER,
)
from solver.training.averaging import averaged, moving_average
from solver.training.checkpoint import Progress, checkpoint_payload, joined_trials, refuse_broken
from solver.training.families import FAMILIES, build_objective
from solver.training.gradients import Gradients, StepValues
from solver.training.interruption import Interruption
from solver.training.job import (
    TrainingJob,
    build_trained_model,
    check_evaluation,
    digests,
    header,
    selection_split,
    warn_of_texts,
)
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import apply_policy
from solver.training.selection import EMA, TrainingOutcome, best_so_far, evaluated_numbers, file_name, is_best
from solver.training.state import StateFiles, Stateful, restore_parts, state_payload
from utils.checkpoint_io import save_checkpoint
from utils.device import describe_device, exact_float32
from utils.errors import UserError, shortened
from utils.log import MetricsWriter, Mute, log_short
from utils.processes import ALONE, Joined, Processes, agree, processes_here
from utils.progress import clock, progress_bar
from utils.seeding import generator_states, seed_everything, stream_seed
from utils.threads import busy_note, plan_threads

logger = logging.getLogger(__name__)

SHOWN_RECORDS = 5


def assemble(
    config: ExperimentConfig,
    device: torch.device,
    trained: Mapping[str, int] | None = None,
    processes: Processes = ALONE,
) -> TrainingJob:
    """Build everything of a run and log it as the header of the run's log.

    trained: trials of the weights of a state that will be restored; the first weights are then not looked for.
    processes: those that train together. Raises UserError, also when they do not have the same data.
    """
    exact_float32()
    threads = plan_threads(device.type, config.data.workers)
    torch.set_num_threads(threads.threads)
    seed_everything(config.seed)
    benchmark = _benchmark(config)
    trials = joined_trials(benchmark.trials, config.train.init_from) if trained is None else dict(trained)
    # Before the cache and the weights: what the sampler refuses is refused without a file and without a download.
    batches = build_batches(benchmark, config.train, config.seed)
    agree(processes, digests(benchmark, batches))
    with processes.first_one_first():
        reader = build_source_reader(config.data, config.model, benchmark)
        model = build_trained_model(config, benchmark.num_identities, device, restored=trained is not None)
    warn_of_texts(benchmark, reader)
    if isinstance(processes, Joined):
        share_norms(model, device, processes.norm_group)
    rules, rate = FAMILIES[config.family].policy(config.optimizer), config.optimizer.lr
    policy = apply_policy(model.named_parameters(), rules, lr=rate, freeze=config.train.freeze)
    loader = build_train_loader(
        benchmark,
        config.data,
        config.augment,
        reader,
        batches,
        seed=config.seed,
        workers=threads.workers,
        instruction=config.instruction if isinstance(config.model, FollowsInstructions) else None,
        processes=processes,
    )
    context = ObjectiveContext(seed=config.seed, model=model, records=benchmark.train, tokenizer=reader.tokenizer)
    job = TrainingJob(
        config=config,
        device=device,
        benchmark=benchmark,
        model=model,
        policy=policy,
        optimizer=build_optimizer(policy.groups, config.optimizer),
        loader=loader,
        reader=reader,
        workers=threads.workers,
        trials=trials,
        processes=processes,
        split=selection_split(config, benchmark),
        objective=build_objective(config.family, config.objective, context).to(device),
    )
    check_evaluation(job)
    for line in filter(None, (*header(job), threads.describe(), busy_note())):
        logger.info("%s", line)
    _part_draws(config.seed, processes)
    return job


def _part_draws(seed: int, processes: Processes) -> None:
    """The first weights are the same; what layers draw from here on is each process's own."""
    if processes.rank:
        seed_everything(stream_seed(seed, "process", processes.rank))


def _benchmark(config: ExperimentConfig) -> Benchmark:
    return build_benchmark(
        config.data,
        select=config.train.select,
        need_train=True,
        instruction=config.instruction,
        needs=needs_of(config.model, config.objective),
    )


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` consecutive batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


class Trainer:
    """Runs a job in a run directory."""

    def __init__(self, job: TrainingJob, directory: Path, saved: Callable[[], None] = lambda: None) -> None:
        """Take a job whose model is on its device; `directory` exists. saved: called after each checkpoint."""
        self.job, self.directory, self.saved = job, directory, saved
        self.train, self.timeline = job.config.train, job.timeline
        # Scaled losses keep small fp16 gradients from vanishing; for the other precisions the scaler does nothing.
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=self.train.precision == "fp16")
        self.average = moving_average(job.model, self.train.ema)
        self.processes = job.processes
        self.gradients = Gradients(job, self.scaler, job.processes)
        self.epoch = self.epoch_step = self.step = self.first_step = 0
        self.started, self.state_seconds = time.perf_counter(), 0.0
        self.best: dict[str, TrainingOutcome] = {}
        self.ends: Mapping[str, int] | None = None
        self.closing = False
        self.interruption = Interruption()
        self.states = StateFiles(
            directory / STATES_FOLDER,
            minutes=self.train.save_minutes,
            steps=self.train.save_steps,
            keep=self.train.keep_states,
        )

    @property
    def weights(self) -> dict[str, RetrievalModel]:
        """What is evaluated and saved: the weights under an empty name and, under train.ema, their average."""
        return {"": self.job.model} | ({EMA: averaged(self.average)} if self.average is not None else {})

    @property
    def parts(self) -> dict[str, Stateful]:
        """Everything that remembers something between two steps."""
        job = self.job
        found: dict[str, Stateful] = {"model": job.model, "objective": job.objective, "optimizer": job.optimizer}
        found |= {"scaler": self.scaler, "loader": job.loader}
        return found | ({EMA: self.average} if self.average is not None else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state of this run. Raises UserError when it is one of another."""
        restore_parts(state, self.parts, self.job.benchmark.fingerprint, self.directory, self.processes)
        self.epoch, self.epoch_step, self.step = state["epoch"], state["epoch_step"], state["step"]
        self.first_step, self.ends = self.step, state["metrics"]
        self.closing = self.job.loader.position[0] > self.epoch or self.finished
        if self.job.split is not None:
            self.best = best_so_far(self.directory, self.weights)

    def fit(self) -> TrainingOutcome:
        """Train to the end and return what was chosen.

        A state is saved as train.save_minutes and save_steps say and after every epoch; then last.pth is replaced, and
        best.pth whenever the selection improves. Raises UserError, and Interrupted after a signal.
        """
        files = self.directory / METRICS_FILE, self.directory / BOARD_FOLDER
        with self.interruption(), MetricsWriter(*files, self.ends) if self.processes.leader else Mute() as writer:
            while True:
                if not self.closing:
                    self.train_epoch(writer)
                    self.save_state(writer)
                self.closing = False
                if self.close_epoch(writer):
                    break
                self.epoch, self.epoch_step = self.epoch + 1, 0
                self.stop_if_asked(writer)
        seconds = time.perf_counter() - self.started
        logger.info(
            "saving states took %.1f s, %.2f %% of the %.0f s since the start",
            self.state_seconds,
            100 * self.state_seconds / seconds,
            seconds,
        )
        if self.job.split is None and self.processes.leader:
            for name in self.weights:
                self.keep_best(Progress(epoch=self.epoch + 1, step=self.step, selected_on="last", metrics={}), name)
        self.best = self.processes.of_leader(self.best)
        if "" not in self.best:
            raise UserError(
                f"no evaluation on {self.train.select} gave a number, so there is no best.pth; {LAST_FILE} is there"
            )
        return dataclasses.replace(self.best[""], ema=self.best.get(EMA))

    @property
    def finished(self) -> bool:
        """Whether train.steps or train.max_steps is reached."""
        return any(0 < limit <= self.step for limit in (self.train.steps, self.train.max_steps))

    def close_epoch(self, writer: MetricsWriter | Mute) -> bool:
        """Save what an epoch ends with, evaluate when it is time; return whether it was the last one.

        The state is that of the last step: a run that is stopped in here does all of it again.
        """
        done = self.epoch + 1
        ending = self.finished or (not self.train.steps and done == self.train.epochs)
        for name in self.weights if self.processes.leader else ():
            self.save(LAST_FILE, Progress(epoch=done, step=self.step, selected_on="last", metrics={}), name)
        if self.job.split is not None and (ending or done % self.train.eval_period == 0):
            with self.interruption.at_once(self.how_to_go_on()):
                results = {
                    name: evaluate_job(dataclasses.replace(self.job, model=model), self.job.split)
                    for name, model in self.weights.items()
                }
            for name, result in results.items() if self.processes.leader else ():
                self.select(result, done, writer, name)
        writer.flush()
        return ending

    def how_to_go_on(self) -> str:
        """Return the end of the line that a stopped run says."""
        config = shlex.quote(str(self.directory / CONFIG_FILE))
        here = processes_here()
        machines = f" --nnodes {self.processes.count // here} ..." if self.processes.count > here else ""
        start = f"torchrun{machines} --nproc-per-node {here}" if self.processes.count > 1 else "python"
        return f"the state of step {self.step} is saved, go on with: {start} train.py --config {config} --resume"

    def save_state(self, writer: MetricsWriter | Mute) -> None:
        """Write a state of this moment, which is one between two steps. Raises UserError."""
        started = time.perf_counter()
        generators = self.processes.told(generator_states())
        if not self.processes.leader:
            return
        refuse_broken(self.job.model, self.step)
        payload = state_payload(
            self.parts,
            self.job.config,
            data_fingerprint=self.job.benchmark.fingerprint,
            trials=dict(self.job.trials),
            device=describe_device(self.job.device),
            epoch=self.epoch,
            epoch_step=self.epoch_step,
            step=self.step,
            metrics=writer.ends(),
            generators=generators[0],
            others=generators[1:],
        )
        self.states.save(payload)
        self.state_seconds += time.perf_counter() - started
        self.saved()

    def stop_if_asked(self, writer: MetricsWriter | Mute, signals: Sequence[int] | None = None) -> None:
        """Save a state and end the run when a signal has come, to whichever process. signals: what each received, None
        = they are asked. Raises Interrupted.
        """
        number = max(self.processes.told(self.interruption.number) if signals is None else signals)
        if number:
            self.save_state(writer)
            raise self.interruption.stopped(self.how_to_go_on(), number)

    def train_epoch(self, writer: MetricsWriter | Mute) -> None:
        """Run the steps of one epoch, or as many as train.steps and train.max_steps leave."""
        self.job.model.train()
        started, left = time.perf_counter(), self.job.steps_per_epoch - self.epoch_step
        groups = grouped(self.job.loader.epoch(self.epoch), self.train.accumulate)
        with progress_bar(groups, left, f"epoch {self.epoch + 1}/{self.timeline.epochs}", "step") as bar:
            for batches in bar:
                rate = self.set_learning_rate(self.epoch, self.epoch_step)
                values = self.train_step(batches)
                self.epoch_step += 1
                now = time.perf_counter()
                own = sum(len(rows) for batch in batches for rows in batch.inputs.values() if rows.ndim == 4)
                # One exchange for all: waiting for the others is what a step of several processes costs.
                told = self.processes.told((own, self.states.due(self.step), self.interruption.number))
                images, due = sum(count for count, *_ in told), told[0][1]
                values |= {"lr": rate, "epoch": self.epoch + 1, "images_per_second": images / (now - started)}
                started = now
                writer.write(self.step, {name: value for name, value in values.items() if math.isfinite(value)})
                if self.step % self.train.log_period == 0:
                    self.log_step(self.epoch, values)
                self.stop_if_asked(writer, [number for *_, number in told])
                if self.finished:
                    break
                if due:
                    self.save_state(writer)
        if not self.epoch_step:
            raise UserError(
                f"epoch {self.epoch + 1} had no batch: {len(self.job.loader.skipped)} unreadable images were skipped; "
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
        left = (time.perf_counter() - self.started) / (self.step - self.first_step) * max(0, total - self.step)
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
        """Update the weights once, by the gradient of all micro-batches as of one batch, or, without
        train.accumulate_features, by the mean of theirs, each weighted by its rows.

        Returns every loss term, their total and the diagnostics. Raises UserError before the update for a loss that is
        not finite.
        """
        self.job.optimizer.zero_grad(set_to_none=True)
        found = self.gradients(batches, self.step)
        self.check_finite(found)
        extra = self.clip()
        self.scaler.step(self.job.optimizer)
        self.scaler.update()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.job.model)
        means, terms = found.means(), len(found.losses)
        return {
            **{f"loss/{name}": value for name, value in zip(found.losses, means[:terms], strict=True)},
            "total": sum(means[:terms]),
            **dict(zip(found.diagnostics, means[terms:], strict=True)),
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

    def check_finite(self, found: StepValues) -> None:
        """Stop the run when a loss is not finite. Raises UserError naming step, term and records."""
        for row, batches in zip(found.values, found.batches, strict=True):
            for name, value in zip(found.losses, row):
                if math.isfinite(value):
                    continue
                numbers = [index for batch in batches for index in batch.record_ids.tolist()]
                records = [(index, self.job.loader.records[index]) for index in numbers]
                labels = [record.name or f"record {index}" for index, record in records]
                logger.error("records of the batch with loss %s = %s: %s", name, value, ", ".join(labels))
                raise UserError(
                    f"loss {name} is {value} at step {self.step + 1}, records "
                    f"{shortened(labels, SHOWN_RECORDS)}; the checkpoints of "
                    "finished epochs are kept, lower optimizer.lr, set train.clip_norm or use train.precision=fp32"
                )

    def select(self, result: EvaluationResult, epoch: int, writer: MetricsWriter | Mute, name: str = "") -> None:
        """Record an evaluation of the weights of a name and keep them when their mean mAP is the highest so far."""
        numbers = evaluated_numbers(result, name)
        writer.write(self.step, {"epoch": epoch, **numbers})
        if is_best(result, name, self.best.get(name), epoch):
            chosen, score = self.train.select, result.average("ALL_AVER", "mAP")
            self.keep_best(
                Progress(epoch=epoch, step=self.step, selected_on=chosen, metrics=numbers, score=score), name
            )

    def keep_best(self, progress: Progress, name: str = "") -> None:
        """Save the present weights of a name as best.pth."""
        self.save(BEST_FILE, progress, name)
        self.best[name] = TrainingOutcome(
            best=self.directory / file_name(BEST_FILE, name),
            epoch=progress.epoch,
            step=progress.step,
            selected_on=progress.selected_on,
            score=progress.score,
        )

    def save(self, file: str, progress: Progress, name: str = "") -> None:
        """Write a checkpoint of the weights of a name; the previous one of that file survives every failure.

        Raises UserError.
        """
        job = self.job
        payload = checkpoint_payload(self.weights[name], job.config, progress, job.benchmark.fingerprint, job.trials)
        # best.pth is a file for inference; what training alone needs would double its size.
        state = job.objective.state_dict() if file == LAST_FILE and not name else {}
        if state:
            payload["objective"] = state
        save_checkpoint(self.directory / file_name(file, name), payload)
        self.saved()


def evaluate_job(job: TrainingJob, split: EvalSplit) -> EvaluationResult:
    """Evaluate the present weights on a split, as test.py would; all processes of the job do it together."""
    spec = EvaluationSpec.of(job.config, job.workers, job.processes)
    result = evaluate_split(job.model, split, job.reader, spec, job.device)
    for skipped in result.skipped:
        logger.warning("skipped: %s", skipped.reason)
    for note in result.notes():
        logger.warning("%s", note)
    return result
