"""Supervised contrast of RGB anchors with RGB and another feature."""

from __future__ import annotations

import torch
from torch import Tensor

from solver.losses.numerics import check_pair, full_precision, same_person, unit_rows


@full_precision
def supitc_loss(rgb: Tensor, other: Tensor, person_ids: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Mean negative log-probability of the rows of the same person, anchored at RGB only.

    The contrast set is [rgb; other], 2B rows, without the anchor itself; positives are all of its rows of the anchor's
    person. rgb, other: (B, D) raw features; person_ids: (B,). Returns a scalar, float32 or float64.
    Raises: ValueError for wrong shapes.
    Source: supervised contrastive learning (NeurIPS 2020), eq. 2, in the reference's one-sided form.
    """
    check_pair(rgb, other, person_ids)
    anchors = unit_rows(rgb)
    logits = anchors @ torch.cat([anchors, unit_rows(other)]).T / temperature
    itself = torch.eye(len(rgb), 2 * len(rgb), dtype=torch.bool, device=rgb.device)
    positives = same_person(person_ids).repeat(1, 2) & ~itself
    log_probabilities = logits - logits.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    # Every anchor has a positive: its own row of `other`.
    per_anchor = log_probabilities.masked_fill(~positives, 0.0).sum(dim=1) / positives.sum(dim=1)
    return -per_anchor.mean()
