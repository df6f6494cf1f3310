"""Triplet losses whose margin follows the instructions (Instruct-ReID).

Shapes: B rows, D features, C of an instruction's vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solver.losses.numerics import full_precision, same_person, unit_rows
from solver.losses.triplet import euclidean_distances

TIED = 1e-6
"""Cosines that differ by less count as equal: the sign of a rounding error must not switch a term on."""
SECOND_WEIGHT = 0.1
"""Of the term that compares two rows of the anchor's person; the release's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedRows:
    """What the released form compares, for every anchor (B,)."""

    farthest: Tensor
    """Distance to the farthest row of the same person."""
    second: Tensor
    """To the second farthest; with two rows for a person this is the anchor itself."""
    nearest: Tensor
    """To the nearest row of another person."""
    agreement: Tensor
    """Cosine of the instructions of the anchor and of its farthest row."""
    second_agreement: Tensor
    """The same for the second farthest."""


def mine_rows(features: Tensor, instructions: Tensor, person_ids: Tensor) -> MinedRows:
    """Mine the rows of the released form; the instructions get no gradient. Raises ValueError as the losses do."""
    same = _check(features, instructions, person_ids)
    distances, agreements = euclidean_distances(features), _agreements(instructions)
    rows = distances.masked_fill(~same, -torch.inf).topk(2, dim=1).indices
    picked = distances.gather(1, rows)
    told = agreements.gather(1, rows)
    return MinedRows(
        farthest=picked[:, 0],
        second=picked[:, 1],
        nearest=distances.masked_fill(same, torch.inf).amin(dim=1),
        agreement=told[:, 0],
        second_agreement=told[:, 1],
    )


@full_precision
def released_adaptive_triplet_loss(
    features: Tensor, instructions: Tensor, person_ids: Tensor, *, margin: float = 0.3
) -> Tensor:
    """Mean over the anchors of max(0, d1 + a1 m - dn) + 0.1 max(0, s ((d1 - d2) + (a1 - a2) m)), s = sign(a1 - a2).

    d1, d2: Euclidean distances to the farthest and second farthest row of the person, dn to the nearest of another one;
    a1, a2: cosines of the instructions of the anchor and of these two rows. features: (B, D) raw; instructions: (B, C)
    raw, without gradient; person_ids: (B,). Returns a scalar, float32 or float64.
    Raises: ValueError for wrong shapes, a batch of one person and a person with one row.
    Source: the released code of Instruct-ReID (CVPR 2024). Departure: cosines that differ by less than 1e-6 are equal,
    where the release compares them exactly. Where all instructions agree it is the batch-hard triplet loss.
    """
    mined = mine_rows(features, instructions, person_ids)
    sign = _order(mined.agreement - mined.second_agreement)
    by_margin = (mined.agreement - mined.second_agreement) * margin
    within = (sign * (mined.farthest - mined.second + by_margin)).clamp_min(0)
    across = (mined.farthest + margin * mined.agreement - mined.nearest).clamp_min(0)
    return (SECOND_WEIGHT * within + across).mean()


@full_precision
def literal_adaptive_triplet_loss(
    features: Tensor, instructions: Tensor, person_ids: Tensor, *, margin: float = 0.3
) -> Tensor:
    """Mean over all anchors a and pairs of references r1, r2 of max(0, s (d(a, r1) + (b1 - b2) m - d(a, r2))).

    s = sign(b1 - b2); b = cosine of the instructions of the anchor and of the reference where both show one person,
    else 0; d = squared Euclidean distance. Arguments, result and errors as above.
    Source: Instruct-ReID++, eqs. 7 and 8 as printed. The text beside them calls d Euclidean; the formula squares it.
    The paper does not say how triplets are drawn: here every pair of references counts once that the equation orders,
    b1 and b2 differing by 1e-6 or more, since all others are zero whatever the features.
    """
    same = _check(features, instructions, person_ids)
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    # A pair of two other persons is not ordered, so the first reference is always of the anchor's person.
    anchor, first = (same & ~itself).nonzero(as_tuple=True)
    graded = _agreements(instructions) * same
    difference = graded[anchor, first][:, None] - graded[anchor]
    sign = _order(difference) * (~itself)[anchor]
    squares = features.pow(2).sum(dim=1)
    distances = squares[:, None] + squares[None, :] - 2 * features @ features.T
    excess = sign * (distances[anchor, first][:, None] + difference * margin - distances[anchor])
    # Two references of the anchor's person meet twice, once in either order.
    counted = sign.abs() / (1 + same[anchor].to(sign.dtype))
    return (counted * excess.clamp_min(0)).sum() / counted.sum().clamp_min(1)


def _agreements(instructions: Tensor) -> Tensor:
    units = unit_rows(instructions.detach())
    return units @ units.T


def _order(difference: Tensor) -> Tensor:
    return torch.where(difference.abs() < TIED, 0.0, difference.sign())


def _check(features: Tensor, instructions: Tensor, person_ids: Tensor) -> Tensor:
    rows = features.shape[:1]
    if features.ndim != 2 or instructions.ndim != 2 or instructions.shape[:1] != rows or person_ids.shape != rows:
        raise ValueError(
            "features must be (B, D), instructions (B, C) and person_ids (B,), not "
            f"{tuple(features.shape)}, {tuple(instructions.shape)} and {tuple(person_ids.shape)}"
        )
    same = same_person(person_ids)
    if bool(same.all()):
        raise ValueError("a triplet loss needs at least two persons in the batch")
    if bool((same.sum(dim=1) == 1).any()):
        raise ValueError("an adaptive triplet loss needs at least two rows of every person in the batch")
    return same
