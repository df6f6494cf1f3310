"""A batch of images and what is said of them, encoded once, as the losses of IRM and IRM++ look at it.

Shapes: R image rows, C width of the model, U distinct annotations of one modality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.vocabulary import Modality, Task
from datasets.structures import Batch
from model.editing import Tower
from model.irm import IRM
from model.said import Said, Told
from solver.objectives.base import batch_annotations, batch_inputs
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructedRows:
    """The image rows of a batch: those of all image modalities, one after the other."""

    tower: Tower
    """Of all rows; instructed rows are edited."""
    said: Mapping[Modality, Said]
    """By modality the distinct annotations, encoded once, whoever is told them."""
    texts: Tensor | None
    """(U, T) int64 token ids of the distinct texts, None without any."""
    annotated: Mapping[Modality, Tensor]
    """By modality (R,) int64: which annotation a row has, -1 = none of this modality."""
    instructed: Tensor
    """(R,) bool: which rows are given theirs as instruction."""
    labels: Tensor
    """(R,) int64."""
    records: tuple[int, ...]
    """(R,): index of each row's training record."""
    order: Tensor
    """(R,) int64: ascends with modality and place in the batch, however the batch is shared out, when the places of
    earlier shares are counted on (a column that refers to `people`)."""
    people: Tensor
    """(B,) int64: labels in the order of the batch."""
    tasks: tuple[Task, ...]
    """(R,)"""

    def places(self, *, captioned: bool) -> tuple[int, ...]:
        """Rows that are compared with captions (T2I), or all others."""
        return places_of(self.tasks, captioned=captioned)

    def told(self, rows: Tensor) -> list[Told]:
        """Return what the rows (r,) are instructed by."""
        told = self.instructed[rows]
        return [(said, torch.where(told, self.annotated[modality][rows], -1)) for modality, said in self.said.items()]

    def annotation_features(self) -> Tensor:
        """(R, C) without gradient: the class token of each row's annotation (F_T, F_A); zero without one."""
        features = torch.zeros_like(self.tower.cls)
        for modality, said in self.said.items():
            numbers = self.annotated[modality]
            if not len(said.tokens):
                # A share of a batch in which no row has one.
                continue
            features = torch.where(numbers[:, None] >= 0, said.cls.detach()[numbers.clamp(min=0)], features)
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledRows:
    """Whose rows are compared, and by which task."""

    labels: Tensor
    """(n,) int64."""
    tasks: tuple[Task, ...]
    """(n,)"""
    told: Tensor
    """(n, C): the class token of each row's annotation, without gradient; (n, 0) where no loss looks at it."""

    def at(self, places: Sequence[int]) -> LabelledRows:
        """Return some of the rows."""
        index = index_of(places, self.labels.device)
        return LabelledRows(
            labels=self.labels[index], tasks=tuple(self.tasks[place] for place in places), told=self.told[index]
        )


MODALITY_STRIDE = 2**32
"""More rows than a batch can have."""
TASKS = tuple(Task)
"""Their numbers in a column of facts are places in here."""


def task_column(tasks: Sequence[Task]) -> Tensor:
    """(n,) int64 on the CPU: tasks as numbers."""
    return torch.tensor([TASKS.index(task) for task in tasks], dtype=torch.int64)


def tasks_of(numbers: Tensor) -> tuple[Task, ...]:
    """Return the tasks of such a column."""
    return tuple(TASKS[number] for number in numbers.tolist())


def places_of(tasks: Sequence[Task], *, captioned: bool) -> tuple[int, ...]:
    """Rows that are compared with captions (T2I), or all others."""
    return tuple(row for row, task in enumerate(tasks) if (task is Task.T2I) == captioned)


def at(rows: Tower, places: Tensor) -> Tower:
    """Return some rows of a tower's output."""
    return Tower(cls=rows.cls[places], tokens=rows.tokens[places])


def index_of(places: Sequence[int], device: torch.device) -> Tensor:
    """(n,) int64 on `device`."""
    return torch.tensor(places, dtype=torch.int64, device=device)


def encode_rows(model: IRM, batch: Batch) -> InstructedRows:
    """Encode the distinct annotations of a batch once and all its images in one pass. A caption that is read beside an
    image is an annotation; what stands in batch.inputs as text is not looked at.
    """
    assert batch.instructed is not None
    said = {
        modality: model.encode_instructions(modality, inputs)
        for modality, inputs in batch_annotations(model, batch).items()
    }
    inputs = batch_inputs(model, batch)
    kinds = [modality for modality in inputs if modality is not Modality.TEXT]
    images = torch.cat([inputs[modality] for modality in kinds])
    order = torch.cat([batch.rows[modality] for modality in kinds])
    annotated = {modality: annotations.rows[order] for modality, annotations in batch.annotations.items()}
    instructed = batch.instructed[order]
    given: list[Told] = []
    if model.follows_instructions:
        given = [(said[modality], torch.where(instructed, rows, -1)) for modality, rows in annotated.items()]
    labels = batch.person_ids[order]
    ranks = [list(Modality).index(modality) * MODALITY_STRIDE for modality in kinds for _ in batch.rows[modality]]
    tasks = batch.tasks or (Task.TRAD,) * len(batch.person_ids)
    return InstructedRows(
        tower=model.encode_images(images, given),
        said=said,
        texts=batch.annotations[Modality.TEXT].inputs if Modality.TEXT in batch.annotations else None,
        annotated=annotated,
        instructed=instructed,
        labels=labels,
        order=order + torch.tensor(ranks, dtype=torch.int64, device=order.device),
        people=batch.person_ids,
        records=tuple(batch.record_ids[order.to(batch.record_ids.device)].tolist()),
        tasks=tuple(tasks[row] for row in order.tolist()),
    )


def in_company(rows: LabelledRows) -> dict[Task, tuple[int, ...]]:
    """Return by task the rows whose person has another row there: triplets are made within a task.

    A row can be left alone where an unreadable image was skipped. Raises UserError for a task that has fewer than two
    persons with two rows: there is nothing that a triplet could compare.
    """
    groups: dict[Task, tuple[int, ...]] = {}
    people = rows.labels.tolist()
    for task in dict.fromkeys(rows.tasks):
        members = [row for row, own in enumerate(rows.tasks) if own is task]
        counts = Counter(people[row] for row in members)
        kept = tuple(row for row in members if counts[people[row]] > 1)
        if len({people[row] for row in kept}) < 2:
            raise UserError(
                f"a batch holds fewer than two identities with two rows of task {task.value}, so that its triplet loss "
                "has nothing to compare: raise train.batch_size, set train.instances or train.task_instances to 2 or "
                "more, or use train.mixture=step"
            )
        groups[task] = kept
    return groups
