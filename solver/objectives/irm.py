"""IRM's objective: identity and triplet of the image tower and of the attention module, losses of captions.

Shapes: R image rows, n of them without a caption, S streams of the attention module, C width, N identities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from configs.schema.irm import LOSSES, IrmObjectiveConfig
from configs.vocabulary import Task
from datasets.structures import Batch
from model.irm import IRM
from solver.losses.adaptive_triplet import literal_adaptive_triplet_loss, released_adaptive_triplet_loss
from solver.losses.identity import identity_loss
from solver.losses.triplet import batch_hard_triplet_loss
from solver.objectives.base import Objective, ObjectiveContext, StepOutput, loss_weights, neighbour_rank1
from solver.objectives.caption_terms import CaptionTerms, captioned_rows
from solver.objectives.instructed_rows import (
    LabelledRows,
    at,
    encode_rows,
    in_company,
    index_of,
    task_column,
    tasks_of,
)
from solver.objectives.rows import WHOLE, Rows, Spread

TripletLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(features (b, C), annotations (b, C), person_ids (b,), margin) -> scalar."""

TRIPLETS: dict[str, TripletLoss] = {
    "released": lambda features, told, persons, margin: released_adaptive_triplet_loss(
        features, told, persons, margin=margin
    ),
    "literal": lambda features, told, persons, margin: literal_adaptive_triplet_loss(
        features, told, persons, margin=margin
    ),
    "plain": lambda features, told, persons, margin: batch_hard_triplet_loss(features, persons, margin=margin),
}
"""Values of objective.triplet."""
OF_STREAMS, OF_TRIPLETS = ("id_out", "triplet_out"), ("triplet", "triplet_out")
CLS, STREAMS = "cls", "streams"
"""Columns of features: F of all image rows (R, C); F_out of those without a caption (n, S, C)."""
PLAIN, LABELS, TASKS_COLUMN, TOLD = "plain", "labels", "tasks", "told"
"""Facts of the rows without a caption: which of all rows they are, and what `LabelledRows` says."""


def triplet_by_task(rows: LabelledRows, features: Tensor, loss: TripletLoss, margin: float) -> Tensor:
    """Return the triplet loss of features (n, C), each task by itself, tasks weighted by rows.

    Instructions of different tasks come from different encoders, so their cosines are compared within a task only.
    """
    groups, terms = in_company(rows), []
    for members in groups.values():
        index = index_of(members, features.device)
        terms.append(len(members) * loss(features[index], rows.told[index], rows.labels[index], margin))
    return torch.stack(terms).sum() / sum(map(len, groups.values()))


class TaskIdentities(torch.nn.Module):
    """Which identities the records of each task have."""

    known: Tensor
    """(tasks, N) bool."""

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__()
        self.order = {task: number for number, task in enumerate(Task)}
        known = torch.zeros(len(self.order), context.model.num_identities, dtype=torch.bool)
        for record in context.records:
            known[self.order[record.task], record.person_id] = True
        # Not state: it follows from the records.
        self.register_buffer("known", known, persistent=False)

    def masked(self, logits: Tensor, tasks: tuple[Task, ...]) -> Tensor:
        """Return scores (n, ..., N) in which identities that a row's task does not have are out of the question."""
        known = self.known[index_of([self.order[task] for task in tasks], logits.device)]
        return logits.masked_fill(~known.reshape(len(tasks), *[1] * (logits.ndim - 2), -1), -torch.inf)


class IrmObjective(Objective[IRM]):
    """Any weighted set of the losses of eqs. 9 and 10 and of the released code.

    id, triplet: of F, the image tower's class token. id_out, triplet_out: of F_out, mean over its streams. Triplets,
    their margins and, with identity_scope=task, the identities of the softmax are those of a row's own task. contrast,
    match, masked_language, replaced: of T2I rows, whose images are not instructed; these rows have none of the first
    four. A term that no row of a batch takes part in is zero.
    """

    def __init__(self, config: IrmObjectiveConfig, context: ObjectiveContext) -> None:
        """Raises UserError for an unknown loss or weight, and for T2I records without a caption."""
        super().__init__()
        self.config = config
        self.weights = loss_weights(config.losses, LOSSES)
        self.captions = CaptionTerms(config, self.weights, context)
        self.identities = TaskIdentities(context) if config.identity_scope == "task" else None

    def encode(self, model: IRM, batch: Batch, step: int) -> Rows:
        """Return the images' features F and F_out, and of captioned rows what their losses look at."""
        rows = encode_rows(model, batch)
        captions = self.captions.encode(model, captioned_rows(rows), step)
        places = rows.places(captioned=False)
        index = index_of(places, rows.labels.device)
        features, tower = {CLS: rows.tower.cls}, at(rows.tower, index)
        if places and self.has_streams:
            features[STREAMS] = model.attend(tower, rows.told(index) if model.follows_instructions else [])
        told = rows.annotation_features()[index] if self.compares_annotations else rows.tower.cls.detach()[index, :0]
        facts = {
            LABELS: rows.labels[index],
            TASKS_COLUMN: task_column([rows.tasks[place] for place in places]),
            TOLD: told,
            PLAIN: index,
        }
        return Rows(features={**features, **captions.features}, facts={**facts, **captions.facts}, refers={PLAIN: CLS})

    def terms(self, model: IRM, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        """Return the losses. Raises UserError for a task whose rows make no triplet."""
        nothing = rows.features[CLS].float().sum() * 0
        terms = dict.fromkeys(self.weights, nothing)
        diagnostics = {"batch_rank1": torch.full_like(nothing, torch.nan).detach()}
        if rows.count(PLAIN):
            shown = LabelledRows(
                labels=rows.facts[LABELS], tasks=tasks_of(rows.facts[TASKS_COLUMN]), told=rows.facts[TOLD]
            )
            found, compared = self._identity_terms(model, rows, shown)
            terms |= {name: self.weights[name] * value for name, value in found.items()}
            with torch.no_grad():
                diagnostics["batch_rank1"] = neighbour_rank1(compared, shown.labels)
        terms |= self.captions.terms(model, rows, nothing, step, spread)
        return StepOutput(losses=terms, diagnostics=diagnostics | gate_size(model))

    @property
    def has_streams(self) -> bool:
        """Whether a loss looks at the attention module's output."""
        return any(name in self.weights for name in OF_STREAMS)

    @property
    def compares_annotations(self) -> bool:
        """Whether the margin of the triplets follows the annotations."""
        return self.config.triplet != "plain" and any(name in self.weights for name in OF_TRIPLETS)

    def _identity_terms(self, model: IRM, rows: Rows, shown: LabelledRows) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms, not yet weighted, and the features (n, ...) of which batch rank-1 is told."""
        compared = cls = rows.features[CLS][rows.facts[PLAIN]]
        terms = {}
        if "id" in self.weights:
            terms["id"] = self._identity(shown, model.tower_head(cls)[1])
        if "triplet" in self.weights:
            terms["triplet"] = self._triplet(shown, cls)
        if self.has_streams:
            streams = compared = rows.features[STREAMS]
            necked, logits = model.stream_heads(streams)
            if "id_out" in self.weights:
                scores = [self._identity(shown, stream) for stream in logits.unbind(1)]
                terms["id_out"] = torch.stack(scores).mean()
            if "triplet_out" in self.weights:
                features = necked if self.config.triplet_feature == "neck" else streams
                parts = [self._triplet(shown, stream) for stream in features.unbind(1)]
                terms["triplet_out"] = torch.stack(parts).mean()
        return terms, compared.flatten(1)

    def _identity(self, shown: LabelledRows, logits: Tensor) -> Tensor:
        scores = logits if self.identities is None else self.identities.masked(logits, shown.tasks)
        return identity_loss(scores, shown.labels)

    def _triplet(self, shown: LabelledRows, features: Tensor) -> Tensor:
        return triplet_by_task(shown, features, TRIPLETS[self.config.triplet], self.config.margin)


def gate_size(model: IRM) -> dict[str, Tensor]:
    """Return the mean size of the gates by which instructions enter the image tower: it begins at 0."""
    gates = [value.detach().abs().flatten() for name, value in model.named_parameters() if name.endswith(".gate")]
    return {"gate": torch.cat(gates).mean()} if gates else {}
