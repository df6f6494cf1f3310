"""The residual network's objective: identity by up to three classifiers, imitation between the heads, triplet.

Shapes: B rows of all modalities, C embed_dim, N identities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema.vireid import BY_MODALITY, VireidObjectiveConfig
from configs.vocabulary import Modality
from datasets.structures import Batch
from model.vireid import SPECTRA, Vireid
from solver.losses.identity import identity_loss
from solver.losses.imitation import imitation_loss
from solver.losses.triplet import batch_hard_triplet_loss, weighted_triplet_loss
from solver.objectives.base import Objective, StepOutput, batch_inputs, loss_weights
from solver.objectives.rows import WHOLE, Rows, Spread
from utils.errors import UserError

POOLED = "pooled"
OTHER = {Modality.RGB: Modality.NIR, Modality.NIR: Modality.RGB}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the losses of one batch are made of."""

    labels: Tensor
    """(B,)"""
    compared: Tensor
    """(B, C): what the triplets compare."""
    shared: Tensor
    """(B, N): scores of the shared classifier."""
    by_head: Mapping[Modality, Tensor]
    """By modality (B, N): scores of each head for all rows; empty where no loss asks for them."""
    rows: Mapping[Modality, Tensor]
    """By modality (b,): which rows show it."""


def _modality_id(config: VireidObjectiveConfig, batch: Scored) -> dict[str, Tensor]:
    return {
        f"id/{modality.value}": identity_loss(batch.by_head[modality][index], batch.labels[index])
        for modality, index in batch.rows.items()
    }


def _imitation(config: VireidObjectiveConfig, batch: Scored) -> dict[str, Tensor]:
    return {
        f"imitation/{modality.value}": imitation_loss(
            batch.by_head[modality][index], batch.by_head[OTHER[modality]][index], reduction=config.imitation_reduction
        )
        for modality, index in batch.rows.items()
    }


LOSSES: dict[str, Callable[[VireidObjectiveConfig, Scored], dict[str, Tensor]]] = {
    "id": lambda config, batch: {"id": identity_loss(batch.shared, batch.labels, smoothing=config.label_smoothing)},
    "modality_id": _modality_id,
    "imitation": _imitation,
    "triplet": lambda config, batch: {
        "triplet": batch_hard_triplet_loss(batch.compared, batch.labels, margin=config.margin)
    },
    "weighted_triplet": lambda config, batch: {"weighted_triplet": weighted_triplet_loss(batch.compared, batch.labels)},
}
"""Name in objective.losses -> its terms, not yet weighted."""


class VireidObjective(Objective[Vireid]):
    """Weighted sum of any of these terms.

    id: cross-entropy of the shared classifier over all rows. modality_id: each modality's head on its own rows, two
    terms. imitation: on the rows of each modality its own head imitates the other one's scores, two terms; the teacher
    has no gradient. triplet: batch-hard over all rows. weighted_triplet: AGW's. Which rows show what is read from the
    batch, never from the order of its rows. Without the two losses of the heads a batch may be of one modality, which
    makes it the visible baseline. Sources: IV-REID; Luo et al. (CVPRW 2019) for the triplet before the neck and label
    smoothing.
    """

    def __init__(self, config: VireidObjectiveConfig) -> None:
        """Take the section `objective`. Raises UserError for an unknown loss or weight."""
        super().__init__()
        self.config = config
        self.weights = loss_weights(config.losses, tuple(LOSSES))
        self.needs_heads = any(name in self.weights for name in BY_MODALITY)

    def encode(self, model: Vireid, batch: Batch, step: int) -> Rows:
        """Return the features before the neck. Raises UserError for a batch without an image of either modality."""
        given = batch_inputs(model, batch)
        present = [modality for modality in SPECTRA if modality in given]
        if not present:
            raise _lacking(SPECTRA)
        return self.features(
            model,
            {modality: given[modality] for modality in present},
            {modality: batch.person_ids[batch.rows[modality]] for modality in present},
        )

    def compute(
        self, model: Vireid, inputs: Mapping[Modality, Tensor], person_ids: Mapping[Modality, Tensor]
    ) -> StepOutput:
        """Return the losses for normalised images (b, 3, H, W) and labels (b,) by modality."""
        return self.terms(model, self.features(model, inputs, person_ids), 0)

    def features(self, model: Vireid, inputs: Mapping[Modality, Tensor], person_ids: Mapping[Modality, Tensor]) -> Rows:
        """Return the features (B, C) before the neck, their labels, and which rows show which modality."""
        labels = torch.cat([person_ids[modality] for modality in inputs])
        bounds = [len(images) for images in inputs.values()]
        shown = torch.arange(len(labels), device=labels.device).split(bounds)
        rows = {modality.value: index for modality, index in zip(inputs, shown)}
        return Rows(
            features={POOLED: model.pool(inputs)},
            facts={"labels": labels, **rows},
            refers=dict.fromkeys(rows, POOLED),
        )

    def terms(self, model: Vireid, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        """Return the losses. Raises UserError for rows that lack a modality which a loss needs."""
        missing = [modality for modality in SPECTRA if not rows.count(modality.value)]
        if missing and self.needs_heads:
            raise _lacking(missing)
        pooled, labels = rows.features[POOLED], rows.facts["labels"]
        features = model.neck(pooled)
        shared = model.identity_logits(features)
        batch = Scored(
            labels=labels,
            compared=features if self.config.triplet_feature == "neck" else pooled,
            shared=shared,
            by_head=model.modality_logits(features) if self.needs_heads else {},
            rows={modality: rows.facts[modality.value] for modality in SPECTRA if modality not in missing},
        )
        terms: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            terms |= {term: weight * value for term, value in LOSSES[name](self.config, batch).items()}
        with torch.no_grad():
            accuracy = (shared.argmax(dim=1) == labels).float().mean() * 100
        return StepOutput(losses=terms, diagnostics={"accuracy": accuracy})


def _lacking(missing: Sequence[Modality]) -> UserError:
    return UserError(
        f"a batch holds no {' and no '.join(modality.name for modality in missing)} image; train this family on "
        "visible and infrared images with train.sampler=modality, or without the losses modality_id and imitation"
    )
