"""What an objective is: a batch in, weighted and named losses out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from configs.vocabulary import Modality
from datasets.loading.tokenizers import Tokenizer
from datasets.loading.transforms import model_input
from datasets.structures import Batch, Record
from model.interface import Instruction, RetrievalModel
from solver.losses.numerics import full_precision, unit_rows
from solver.objectives.rows import WHOLE, Rows, Spread
from utils.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Outcome of one forward pass.

    losses: scalars by name, each already weighted, so that what is logged is what is optimised. diagnostics: detached
    scalars that are logged only; they stay on the device until someone reads them, since reading waits for it.
    """

    losses: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of all losses, a scalar."""
        return torch.stack(list(self.losses.values())).sum()


Model = TypeVar("Model", bound=RetrievalModel)


class Objective(nn.Module, ABC, Generic[Model]):
    """One per model family; it holds what only training needs and calls the model.

    Its state (memory banks, queues, a momentum copy of the model) is buffers and frozen parameters: it moves with
    `to(device)`, is saved in last.pth and is never optimised; whatever is learned lives in the model.
    """

    @abstractmethod
    def encode(self, model: Model, batch: Batch, step: int) -> Rows:
        """Return the rows of a batch as the model represents them, whatever other rows there are.

        A batch may come in shares: what is drawn at random here depends on step `step` (from 0) and on the row alone.
        """

    @abstractmethod
    def terms(self, model: Model, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        """Return the losses of all rows of a step, and remember what the next one needs; called once for each of them.

        Whatever looks at several rows happens here: comparisons, batch norms of necks, means.
        """

    def step(self, model: Model, batch: Batch, step: int) -> StepOutput:
        """Return the losses of a batch that is the whole of step `step`."""
        return self.terms(model, self.encode(model, batch, step), step)


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """What an objective may be made of besides its section."""

    seed: int
    """Of whatever it draws."""
    model: RetrievalModel
    """Its sizes (num_identities, embed_dim) and, for a momentum copy, its first weights."""
    records: Sequence[Record]
    """The training records, by label: which identities a task has."""
    tokenizer: Tokenizer | None = None
    """Whose ids the texts of a batch are, for losses that hide pieces; None for models that read no text."""

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the training records have, as sources or as partners."""
        return frozenset(modality for record in self.records for modality in (*record.sources, *record.partners))


@full_precision
def neighbour_rank1(features: Tensor, person_ids: Tensor) -> Tensor:
    """Percentage of rows (B, D) whose most similar other row of the batch is of the same person."""
    units = unit_rows(features)
    similarities = (units @ units.T).fill_diagonal_(-torch.inf)
    return (person_ids[similarities.argmax(dim=1)] == person_ids).float().mean() * 100


def batch_inputs(model: RetrievalModel, batch: Batch) -> dict[Modality, Tensor]:
    """Return the inputs of a batch as the model takes them: normalised images (b, 3, H, W), token ids (b, T)."""
    return {
        kind: model_input(kind, rows, batch.erased.get(kind), model.statistics) for kind, rows in batch.inputs.items()
    }


def batch_annotations(model: RetrievalModel, batch: Batch) -> dict[Modality, Tensor]:
    """Return the distinct annotations of a batch as the model takes them: normalised pictures (U, 3, h, w), token ids
    (U, T).
    """
    statistics = model.instruction_statistics or model.statistics
    return {
        kind: model_input(kind, annotations.inputs, statistics=statistics)
        for kind, annotations in batch.annotations.items()
    }


def batch_instructions(model: RetrievalModel, batch: Batch) -> dict[Modality, tuple[Instruction, ...]]:
    """Return for each input what its rows are instructed by: the annotation of the instructed rows, no other."""
    assert batch.instructed is not None
    prepared = batch_annotations(model, batch)
    given = {}
    for modality, index in batch.rows.items():
        rows = {
            kind: torch.where(batch.instructed, annotations.rows, -1)[index]
            for kind, annotations in batch.annotations.items()
        }
        given[modality] = tuple(
            Instruction(modality=kind, inputs=prepared[kind], rows=numbers)
            for kind, numbers in rows.items()
            if bool((numbers >= 0).any())
        )
    return {modality: instructions for modality, instructions in given.items() if instructions}


def loss_weights(losses: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    """Return the weights above 0 of section `objective.losses`, in the order of `known`.

    Raises UserError for a loss that the family does not have, a weight out of range, and when nothing is left to
    minimise.
    """
    for name, weight in losses.items():
        if name not in known:
            raise UserError(f"objective.losses names {name!r}, which is no loss of this family: {nearest(name, known)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"objective.losses.{name} = {weight}: a weight must be a finite number, at least 0")
    weights = {name: float(losses[name]) for name in known if losses.get(name)}
    if not weights:
        raise UserError(f"objective.losses has no loss with a weight above 0: choose from {', '.join(known)}")
    return weights
