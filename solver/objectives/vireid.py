"""The visible-infrared baseline's objective: identity by three classifiers, imitation between the heads, triplet.

Shapes: B rows of both modalities, C embed_dim, N identities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from configs.schema.vireid import VireidObjectiveConfig
from configs.vocabulary import Modality
from datasets.structures import Batch
from model.vireid import SPECTRA, Vireid
from solver.losses import batch_hard_triplet_loss, identity_loss, imitation_loss, weighted_triplet_loss
from solver.objectives.base import Objective, StepOutput, batch_inputs, loss_weights
from utils.errors import UserError

LOSSES = ("id", "modality_id", "imitation", "triplet", "weighted_triplet")
OTHER = {Modality.RGB: Modality.NIR, Modality.NIR: Modality.RGB}


class VireidObjective(Objective[Vireid]):
    """Weighted sum of any of these terms, on the features after the neck.

    id: cross-entropy of the shared classifier over all rows. modality_id: each modality's head on its own rows, two
    terms. imitation: on the rows of each modality its own head imitates the other one's scores, two terms; the teacher
    has no gradient. triplet: batch-hard over both modalities. weighted_triplet: AGW's. Which rows show what is read
    from the batch, never from the order of its rows. Source: IV-REID.
    """

    def __init__(self, config: VireidObjectiveConfig) -> None:
        """Take the section `objective`. Raises UserError for an unknown loss or weight."""
        super().__init__()
        self.weights = loss_weights(config.losses, LOSSES)
        self.margin, self.reduction = config.margin, config.imitation_reduction

    def step(self, model: Vireid, batch: Batch, step: int) -> StepOutput:
        """Return the losses of a batch of visible and infrared rows."""
        missing = [modality.name for modality in SPECTRA if modality not in batch.inputs]
        if missing:
            raise UserError(
                f"a batch holds no {' and no '.join(missing)} image; train this family on visible and infrared images "
                "with train.sampler=modality"
            )
        given = batch_inputs(model, batch)
        return self.compute(
            model,
            {modality: given[modality] for modality in SPECTRA},
            {modality: batch.person_ids[batch.rows[modality]] for modality in SPECTRA},
        )

    def compute(
        self, model: Vireid, inputs: Mapping[Modality, Tensor], person_ids: Mapping[Modality, Tensor]
    ) -> StepOutput:
        """Return the losses for normalised images (b, 3, H, W) and labels (b,) by modality."""
        features = model.features(inputs)
        labels = torch.cat([person_ids[modality] for modality in inputs])
        bounds = [len(images) for images in inputs.values()]
        rows = dict(zip(inputs, torch.arange(len(labels), device=labels.device).split(bounds)))
        shared = model.identity_logits(features)
        by_head = model.modality_logits(features) if {"modality_id", "imitation"} & set(self.weights) else {}
        terms: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            values = self.terms(name, features, labels, rows, shared, by_head)
            terms |= {term: weight * value for term, value in values.items()}
        with torch.no_grad():
            accuracy = (shared.argmax(dim=1) == labels).float().mean() * 100
        return StepOutput(losses=terms, diagnostics={"accuracy": accuracy})

    def terms(
        self,
        name: str,
        features: Tensor,
        labels: Tensor,
        rows: Mapping[Modality, Tensor],
        shared: Tensor,
        by_head: Mapping[Modality, Tensor],
    ) -> dict[str, Tensor]:
        """Return the terms of one loss, not yet weighted."""
        if name == "id":
            return {name: identity_loss(shared, labels)}
        if name == "modality_id":
            return {
                f"id/{modality.value}": identity_loss(by_head[modality][index], labels[index])
                for modality, index in rows.items()
            }
        if name == "imitation":
            return {
                f"imitation/{modality.value}": imitation_loss(
                    by_head[modality][index], by_head[OTHER[modality]][index], reduction=self.reduction
                )
                for modality, index in rows.items()
            }
        if name == "triplet":
            return {name: batch_hard_triplet_loss(features, labels, margin=self.margin)}
        return {name: weighted_triplet_loss(features, labels)}
