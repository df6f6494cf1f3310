"""Batches out of several tasks: how many rows of each, or which task a batch is of, decided for the whole batch at
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from configs.vocabulary import Modality, Task
from datasets.loading.samplers import Batches, GroupBatches, IdentityBatches, Key, ModalityBatches
from datasets.modalities import MODALITIES
from datasets.structures import Record
from utils.errors import UserError
from utils.seeding import stream, stream_seed

SMALLEST_SHARE = 2
"""Identities that a task has at least in a batch that it takes part in: with one there is no negative."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSpec:
    """How tasks share the batches.

    mixture: `batch` = every batch has rows of all tasks; `step` = each batch is of one task. weights: task -> share of
    the rows or of the batches, 0 leaves the task out; a task that is not named has 1. instances: task -> rows per
    identity. default_instances: of the tasks not named there.
    """

    mixture: Literal["batch", "step"] = "batch"
    weights: Mapping[Task, float] = field(default_factory=dict)
    instances: Mapping[Task, int] = field(default_factory=dict)
    default_instances: int = 4

    def rows_per_identity(self, task: Task) -> int:
        """Return K of a task."""
        return self.instances.get(task, self.default_instances)


class TaskBatches(Batches):
    """Identity batches of each task, put together.

    Under `batch` each batch has a fixed number of rows of every task, in the order of the tasks; under `step` an epoch
    has a fixed number of batches of every task, shuffled. Each task runs through its own epochs; where one ends its
    next begins, and the epoch in a key is the task's own, so that an image seen again is drawn anew. An epoch of the
    mixture has as many rows as there are records. A task with both visible and infrared images has half of each
    identity's rows from either, where K is even.
    """

    def __init__(self, records: Sequence[Record], batch_size: int, seed: int, spec: MixtureSpec) -> None:
        """Raises UserError when a task that has a weight has no records, or too few identities for its rows."""
        self.seed, self.spec = seed, spec
        indices = _tasks_of(records, spec)
        people = np.array([record.person_id for record in records])
        super().__init__(
            "tasks",
            batch_size,
            seed,
            repr(spec),
            people,
            [task.value for task in indices],
            *map(np.array, indices.values()),
        )
        shares = {task: spec.weights.get(task, 1.0) for task in indices}
        self._length = max(1, sum(map(len, indices.values())) // batch_size)
        self.rows = dict.fromkeys(indices, batch_size)
        self.batches_of: dict[Task, int] = dict.fromkeys(indices, self._length)
        if spec.mixture == "batch":
            self.rows = compose(batch_size, shares, {task: spec.rows_per_identity(task) for task in indices})
        else:
            self.batches_of = apportion(self._length, shares)
        self._indices = {task: np.array(found) for task, found in indices.items()}
        self._samplers = {
            task: _task_sampler([records[index] for index in found], task, self.rows[task], seed, spec)
            for task, found in indices.items()
        }

    def __len__(self) -> int:
        return self._length

    def whole_epoch(self, epoch: int, first: int = 0) -> Iterator[list[Key]]:
        """Yield the batches of one epoch from number `first` on."""
        if self.spec.mixture == "batch":
            streams = [self._endless(task, epoch * len(self) + first) for task in self._samplers]
            for _ in range(first, len(self)):
                yield [key for found in streams for key in next(found)]
            return
        order = [task for task, count in self.batches_of.items() for _ in range(count)]
        stream(self.seed, "tasks", epoch).shuffle(order)
        done = {task: order[:first].count(task) + epoch * count for task, count in self.batches_of.items()}
        by_task = {task: self._endless(task, start) for task, start in done.items()}
        for task in order[first:]:
            yield next(by_task[task])

    def _endless(self, task: Task, start: int) -> Iterator[list[Key]]:
        """Yield the batches of a task from its `start`-th on, epoch after epoch, with indices into all records."""
        sampler = self._samplers[task]
        epoch, first = divmod(start, len(sampler))
        while True:
            for batch in sampler.whole_epoch(epoch, first):
                yield [(epoch, int(self._indices[task][index])) for _, index in batch]
            epoch, first = epoch + 1, 0


def _tasks_of(records: Sequence[Record], spec: MixtureSpec) -> dict[Task, list[int]]:
    """Record indices of each task with a weight, tasks in the order of the enumeration."""
    found: dict[Task, list[int]] = {}
    for index, record in enumerate(records):
        found.setdefault(record.task, []).append(index)
    absent = [task.value for task, weight in spec.weights.items() if weight > 0 and task not in found]
    if absent:
        raise UserError(
            f"train.task_weights names {', '.join(absent)}, but the training records are of "
            f"{', '.join(task.value for task in found)}; add the data set or remove the weight"
        )
    chosen = {task: found[task] for task in Task if task in found and spec.weights.get(task, 1.0) > 0}
    if not chosen:
        raise UserError(
            "train.task_weights leaves no task out of which batches could be made; give one a weight above 0"
        )
    return chosen


def _task_sampler(records: Sequence[Record], task: Task, rows: int, seed: int, spec: MixtureSpec) -> GroupBatches:
    people, instances = [record.person_id for record in records], spec.rows_per_identity(task)
    own_seed = stream_seed(seed, "task", task.value)
    modalities = {modality for record in records for modality in image_modalities(record)}
    sampler: GroupBatches
    if modalities == {Modality.RGB, Modality.NIR} and instances % 2 == 0:
        sampler = ModalityBatches(people, infrared_rows(records), rows, own_seed, instances // 2, person_names(records))
    else:
        sampler = IdentityBatches(people, rows, own_seed, instances, person_names(records))
    if not len(sampler):
        raise UserError(
            f"task {task.value} has {len(set(people))} identities, but a batch needs {rows // instances} of them "
            f"({rows} rows, {instances} per identity); lower train.batch_size or the task's weight"
        )
    return sampler


def image_modalities(record: Record) -> tuple[Modality, ...]:
    """Return the modalities of a record's images."""
    return tuple(modality for modality in record.sources if MODALITIES[modality].is_image)


def infrared_rows(records: Sequence[Record]) -> list[bool]:
    """Return which records are infrared. Raises UserError for one that has not exactly one image."""
    found = []
    for record in records:
        modalities = image_modalities(record)
        if len(modalities) != 1:
            raise UserError(
                f"{record.name}: batches of both modalities need records with one image each, this one has "
                f"{len(modalities)}; choose another train.sampler"
            )
        found.append(modalities[0] is Modality.NIR)
    return found


def person_names(records: Sequence[Record]) -> dict[int, str]:
    """Return for each person the name of a record, by which the data set's own identity can be found."""
    return {
        record.person_id: f"{record.person_id} ({record.name})" if record.name else str(record.person_id)
        for record in reversed(records)
    }


def compose(batch_size: int, shares: Mapping[Task, float], units: Mapping[Task, int]) -> dict[Task, int]:
    """Return the rows of each task in a batch: multiples of its unit, at least two units, as near to the shares as that
    allows.

    Raises UserError when the tasks do not fit, or when units do not fill the batch.
    """
    rows = {task: SMALLEST_SHARE * units[task] for task in shares}
    if sum(rows.values()) > batch_size:
        raise UserError(
            f"train.batch_size = {batch_size}: {len(rows)} tasks with at least {SMALLEST_SHARE} identities each need "
            f"{sum(rows.values())} rows; raise it, or set train.mixture=step"
        )
    total = sum(shares.values())
    while sum(rows.values()) < batch_size:
        left = batch_size - sum(rows.values())
        fitting = [task for task in rows if units[task] <= left]
        if not fitting:
            raise UserError(
                f"train.batch_size = {batch_size} leaves {left} rows that no task can fill with whole identities of "
                f"{min(units.values())} rows; make it a multiple"
            )
        neediest = max(fitting, key=lambda task: shares[task] / total * batch_size - rows[task])
        rows[neediest] += units[neediest]
    return rows


def apportion(count: int, shares: Mapping[Task, float]) -> dict[Task, int]:
    """Divide `count` batches by shares, at least one each. Raises UserError when there are fewer batches than tasks."""
    if count < len(shares):
        raise UserError(f"an epoch of {count} batches cannot serve {len(shares)} tasks; lower train.batch_size")
    total = sum(shares.values())
    found = dict.fromkeys(shares, 1)
    for _ in range(count - len(shares)):
        neediest = max(found, key=lambda task: shares[task] / total * count - found[task])
        found[neediest] += 1
    return found
