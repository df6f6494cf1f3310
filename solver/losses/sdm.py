"""Similarity distribution matching."""

from __future__ import annotations

from torch import Tensor

from solver.losses.numerics import check_pair, full_precision, row_divergence, same_person, unit_rows


@full_precision
def sdm_loss(
    rgb: Tensor, other: Tensor, person_ids: Tensor, *, temperature: float = 0.02, epsilon: float = 1e-8
) -> Tensor:
    """Divergence of the softmax over cosine similarities from the distribution of true matches, both directions added.

    rgb, other: (B, D) raw features; person_ids: (B,). Returns a scalar, float32 or float64.
    Raises: ValueError for wrong shapes.
    Source: IRRA (CVPR 2023), eqs 4-6, as in the reference: the sum of both directions, not their mean.
    """
    check_pair(rgb, other, person_ids)
    logits = unit_rows(rgb) @ unit_rows(other).T / temperature
    matches = same_person(person_ids).to(logits.dtype)
    # The matrix of matches is symmetric, so the same target serves both directions.
    target = matches / matches.sum(dim=1, keepdim=True)
    return row_divergence(logits, target, epsilon) + row_divergence(logits.T, target, epsilon)
