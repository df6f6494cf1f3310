"""A batch whose rows are shared out among processes: what each has of it, made known to all.

Every process goes through every batch with the same kinds of inputs, with an empty one where it has no row, so that
all compute in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from configs.vocabulary import Modality
from datasets.structures import Annotations, Batch

Shape = tuple[tuple[int, ...], torch.dtype]
"""Shape of one row, and type."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process has of a batch; plain values that cross process borders."""

    persons: tuple[int, ...] = ()
    inputs: dict[Modality, Shape] = field(default_factory=dict)
    """In the order of the batch."""
    erased: tuple[Modality, ...] = ()
    annotations: dict[Modality, Shape] = field(default_factory=dict)
    has_tasks: bool = False
    skipped: tuple[str, ...] = ()
    """Why rows were left out."""
    missed: tuple[Modality, ...] = ()
    """Modalities of the rows that were left out."""


def part_of(batch: Batch | None, skipped: Sequence[str] = (), missed: Sequence[Modality] = ()) -> Part:
    """Describe the rows that a process has; None = none."""
    if batch is None:
        return Part(skipped=tuple(skipped), missed=tuple(missed))
    return Part(
        persons=tuple(batch.person_ids.tolist()),
        inputs={modality: _shape(rows) for modality, rows in batch.inputs.items()},
        erased=tuple(batch.erased),
        annotations={modality: _shape(found.inputs) for modality, found in batch.annotations.items()},
        has_tasks=bool(batch.tasks),
        skipped=tuple(skipped),
        missed=tuple(missed),
    )


def _shape(rows: Tensor) -> Shape:
    return tuple(rows.shape[1:]), rows.dtype


def is_usable(parts: Sequence[Part]) -> bool:
    """Return whether losses are defined: one row has no negative, and what was left out may have taken all of a
    modality or of the other persons.
    """
    persons = [person for part in parts for person in part.persons]
    if not any(part.skipped for part in parts):
        return len(persons) > 1
    present = {modality for part in parts for modality in part.inputs}
    return {modality for part in parts for modality in part.missed} <= present and len(set(persons)) > 1


def completed(batch: Batch | None, parts: Sequence[Part]) -> Batch:
    """Return the rows of this process with an empty input of every modality that another process has."""
    orders = {tuple(part.inputs) for part in parts if part.persons}
    shapes = {modality: shape for part in parts for modality, shape in part.inputs.items()}
    order = orders.pop() if len(orders) == 1 else [modality for modality in Modality if modality in shapes]
    boxed = {modality for part in parts for modality in part.erased}
    nobody = torch.zeros(0, dtype=torch.int64)
    if batch is None:
        batch = Batch(inputs={}, erased={}, person_ids=nobody, record_ids=nobody)
    count = len(batch.person_ids)
    inputs = {modality: batch.inputs.get(modality, _empty(shapes[modality])) for modality in order}
    annotations = dict(batch.annotations)
    for modality, shape in sorted((entry for part in parts for entry in part.annotations.items()), key=lambda e: e[0]):
        if modality not in annotations:
            annotations[modality] = Annotations(inputs=_empty(shape), rows=torch.full((count,), -1))
    return replace(
        batch,
        inputs=inputs,
        erased={
            modality: batch.erased.get(modality, torch.zeros(0, 4, dtype=torch.int64))
            for modality in order
            if modality in boxed
        },
        rows={modality: batch.rows.get(modality, nobody) for modality in order},
        annotations=dict(sorted(annotations.items())),
    )


def _empty(shape: Shape) -> Tensor:
    return torch.empty((0, *shape[0]), dtype=shape[1])
