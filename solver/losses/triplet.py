"""Triplet losses over the batch.

Shapes: B rows, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import full_precision, same_person

SMALLEST_SQUARE = 1e-12


def euclidean_distances(features: Tensor) -> Tensor:
    """(B, D) -> (B, B): sqrt(max(||x - y||^2, 1e-12)), the reference's form."""
    squares = features.pow(2).sum(dim=1)
    return (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp_min(SMALLEST_SQUARE).sqrt()


def _check(features: Tensor, person_ids: Tensor) -> Tensor:
    if features.ndim != 2 or person_ids.shape != features.shape[:1]:
        raise ValueError(
            f"features must be (B, D) and person_ids (B,), not {tuple(features.shape)} and {tuple(person_ids.shape)}"
        )
    same = same_person(person_ids)
    if bool(same.all()):
        raise ValueError("a triplet loss needs at least two persons in the batch")
    return same


def hardest_pairs(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) -> (B,), (B,): the farthest row of the same person (itself included) and the nearest of another one.

    Right for persons with different numbers of rows; the reference's reshape is not.
    """
    farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    return farthest, nearest


@full_precision
def batch_hard_triplet_loss(features: Tensor, person_ids: Tensor, *, margin: float | None = 0.3) -> Tensor:
    """Mean of max(0, margin + farthest positive - nearest negative); margin None = log(1 + exp(difference)).

    features: (B, D) raw; person_ids: (B,). Returns a scalar, float32 or float64.
    Raises: ValueError for wrong shapes or a batch of one person. Source: Hermans et al. 2017, as in the reference.
    """
    farthest, nearest = hardest_pairs(euclidean_distances(features), _check(features, person_ids))
    if margin is None:
        return functional.softplus(farthest - nearest).mean()
    return (margin + farthest - nearest).clamp_min(0).mean()


@full_precision
def weighted_triplet_loss(features: Tensor, person_ids: Tensor) -> Tensor:
    """log(1 + exp(softmax-weighted positive distance - softmin-weighted negative distance)), mean over the anchors.

    features: (B, D) raw; person_ids: (B,). Returns a scalar, float32 or float64. The anchor itself is a positive, at
    the smallest distance. Raises: ValueError as above. Source: AGW (TPAMI 2021), weighted regularised triplet.
    """
    same = _check(features, person_ids)
    distances = euclidean_distances(features)
    positive = (distances.masked_fill(~same, -torch.inf).softmax(dim=1) * distances).sum(dim=1)
    negative = ((-distances).masked_fill(same, -torch.inf).softmax(dim=1) * distances).sum(dim=1)
    return functional.softplus(positive - negative).mean()
