"""IRM++'s objective: one retrieval feature for instructed and plain rows, compared with memory banks of all identities.

Shapes: R image rows, D identity_dim, C width, N training identities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema.irmpp import LOSSES, IrmppObjectiveConfig
from configs.vocabulary import Task
from datasets.instructions import InstructionMaker
from datasets.structures import Batch
from model.irm import IRM
from solver.losses.identity import identity_loss
from solver.losses.memory_bank import bank_losses
from solver.objectives.base import Objective, ObjectiveContext, StepOutput, loss_weights, neighbour_rank1
from solver.objectives.caption_terms import CaptionTerms, captioned_rows
from solver.objectives.instructed_rows import (
    InstructedRows,
    LabelledRows,
    encode_rows,
    index_of,
    places_of,
    task_column,
    tasks_of,
)
from solver.objectives.irm import LABELS, STREAMS, TASKS_COLUMN, TOLD, TRIPLETS, gate_size, triplet_by_task
from solver.objectives.rows import WHOLE, Rows, Spread
from solver.objectives.training_state import MemoryBank
from utils.errors import UserError
from utils.seeding import stream_seed

INSTRUCTED, ORDER, PEOPLE = "instructed", "order", "people"
VARIED = (Task.CTCC, Task.LI, Task.T2I)
"""Tasks whose annotations are of the person's clothes; in the others many persons share a sentence."""


class IrmppObjective(Objective[IRM]):
    """Any weighted set of: id, soft and hard (eq. 14), triplet instead of the latter two (IRM*), losses of captions.

    F_r is what retrieval compares: F_q = the attention module's output of an instructed row, F_g = the image tower's of
    any other, before the neck or (model.feature=neck) behind it. Every row, T2I's included, takes part in id and in the
    bank losses; a row's annotation is its F_a, whether it is instructed by it or not. Rows of T2I have no triplet.
    Both banks are overwritten after the loss, by rows of either type. Source: Instruct-ReID++, section IV-C; it does
    not say when banks are written, nor what unwritten slots do: see section `objective`.
    """

    features: MemoryBank | None
    annotations: MemoryBank | None

    def __init__(self, config: IrmppObjectiveConfig, context: ObjectiveContext) -> None:
        """Raises UserError for an unknown loss or weight, for T2I records without a caption, and for records without an
        annotation where `soft` needs it.
        """
        super().__init__()
        model = context.model
        assert isinstance(model, IRM)
        self.config = config
        self.weights = loss_weights(config.losses, LOSSES)
        self.captions = CaptionTerms(config, self.weights, context)
        generator = torch.Generator().manual_seed(stream_seed(context.seed, "banks"))
        if "soft" in self.weights:
            maker = InstructionMaker()
            bare = next((record for record in context.records if maker.for_test(record) is None), None)
            if bare is not None:
                raise _unannotated(bare.task)
        banked = "soft" in self.weights or "hard" in self.weights
        identities = model.num_identities
        self.features = MemoryBank(identities, model.identity_dim, generator) if banked else None
        self.annotations = MemoryBank(identities, model.config.width, generator) if "soft" in self.weights else None

    def encode(self, model: IRM, batch: Batch, step: int) -> Rows:
        """Return F_r in every stream, before the neck, and of captioned rows what their losses look at. Raises
        UserError for rows without an annotation where `soft` needs it.
        """
        rows = encode_rows(model, batch)
        everyone = index_of(range(len(rows.tasks)), rows.labels.device)
        captions = self.captions.encode(model, captioned_rows(rows), step)
        if self.annotations is not None:
            _check_annotated(rows)
        facts = {
            LABELS: rows.labels,
            TASKS_COLUMN: task_column(rows.tasks),
            INSTRUCTED: rows.instructed,
            ORDER: rows.order,
            PEOPLE: rows.people,
            TOLD: rows.annotation_features() if self.compares_annotations else rows.tower.cls.detach()[:, :0],
        }
        streams = model.attend(rows.tower, rows.told(everyone))
        return Rows(
            features={STREAMS: streams, **captions.features},
            facts={**facts, **captions.facts},
            refers={ORDER: PEOPLE},
        )

    @property
    def compares_annotations(self) -> bool:
        """Whether a loss looks at the rows' annotations."""
        return self.annotations is not None or ("triplet" in self.weights and self.config.triplet != "plain")

    def terms(self, model: IRM, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        """Return the losses. Raises UserError for a task whose rows make no triplet."""
        shown = LabelledRows(labels=rows.facts[LABELS], tasks=tasks_of(rows.facts[TASKS_COLUMN]), told=rows.facts[TOLD])
        streams = rows.features[STREAMS]
        necked, logits = model.stream_heads(streams)
        retrieved = (necked if model.config.feature == "neck" else streams).flatten(1)
        nothing = retrieved.float().sum() * 0
        terms = dict.fromkeys(self.weights, nothing)
        if "id" in self.weights:
            terms["id"] = torch.stack([identity_loss(stream, shown.labels) for stream in logits.unbind(1)]).mean()
        if "triplet" in self.weights:
            terms["triplet"] = self._triplet(shown, retrieved, nothing)
        if self.features is not None:
            terms |= self._bank_terms(shown, retrieved)
            self._write(shown, retrieved, rows.facts[ORDER].argsort())
        terms = {name: self.weights[name] * value for name, value in terms.items()}
        terms |= self.captions.terms(model, rows, nothing, step, spread)
        return StepOutput(losses=terms, diagnostics=self._diagnostics(model, rows, retrieved))

    def _triplet(self, rows: LabelledRows, retrieved: Tensor, nothing: Tensor) -> Tensor:
        places = places_of(rows.tasks, captioned=False)
        if not places:
            return nothing
        features = retrieved[index_of(places, retrieved.device)]
        return triplet_by_task(rows.at(places), features, TRIPLETS[self.config.triplet], self.config.margin)

    def _bank_terms(self, rows: LabelledRows, retrieved: Tensor) -> dict[str, Tensor]:
        """Return soft and hard, mean over the rows that take part."""
        assert self.features is not None
        config, soft = self.config, self.annotations is not None
        told = rows.told if soft else None
        written = self.features.written if config.unwritten == "masked" else torch.ones_like(self.features.written)
        found = bank_losses(
            retrieved,
            self.features.rows,
            rows.labels,
            auxiliary=told,
            auxiliary_bank=self.annotations.rows if self.annotations is not None else None,
            written=written,
            temperature=config.temperature,
            target_temperature=config.target_temperature,
            hard_target=config.hard_target,
            xi=config.xi,
            centre=config.centre,
        )
        counted = written[rows.labels].to(found.hard.dtype)
        sign = 1 if config.sign == "divergence" else -1
        terms = {}
        if "soft" in self.weights:
            varied = [config.soft_tasks == "all" or task in VARIED for task in rows.tasks]
            share = counted * torch.tensor(varied, dtype=counted.dtype, device=counted.device)
            terms["soft"] = sign * (found.soft * share).sum() / share.sum().clamp_min(1)
        if "hard" in self.weights:
            terms["hard"] = sign * found.hard.sum() / counted.sum().clamp_min(1)
        return terms

    def _write(self, rows: LabelledRows, retrieved: Tensor, order: Tensor) -> None:
        """Overwrite the banks; of a person's rows the last one in `order` stays."""
        assert self.features is not None
        self.features.write(retrieved[order], rows.labels[order])
        if self.annotations is not None:
            self.annotations.write(rows.told[order], rows.labels[order])

    @torch.no_grad()
    def _diagnostics(self, model: IRM, rows: Rows, retrieved: Tensor) -> dict[str, Tensor]:
        found = {
            "batch_rank1": neighbour_rank1(retrieved, rows.facts[LABELS]),
            "instructed": rows.facts[INSTRUCTED].float().mean() * 100,
        }
        if self.features is not None:
            found["bank_written"] = self.features.written.float().mean() * 100
        return found | gate_size(model)


def _check_annotated(rows: InstructedRows) -> None:
    known = torch.zeros_like(rows.instructed)
    for numbers in rows.annotated.values():
        known |= numbers >= 0
    if not bool(known.all()):
        raise _unannotated(rows.tasks[int((~known).nonzero()[0])])


def _unannotated(task: Task) -> UserError:
    return UserError(
        f"the loss soft compares annotations, and a row of task {task.value} has none: train on other data, or set "
        "objective.losses without soft"
    )
