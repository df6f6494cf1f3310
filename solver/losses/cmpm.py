"""Cross-modal projection matching."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import check_pair, full_precision, row_divergence, same_person, unit_rows


@full_precision
def cmpm_loss(rgb: Tensor, other: Tensor, person_ids: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Divergence of the softmax over scalar projections from the matrix of true matches, both directions added.

    rgb, other: (B, D) raw features; person_ids: (B,). Returns a scalar, float32 or float64.
    Raises: ValueError for wrong shapes.
    Source: CMPM (ECCV 2018), eqs 2-5, as in the reference: a row of matches is divided by its Euclidean norm, so it
    does not sum to one where a person has several rows.
    """
    check_pair(rgb, other, person_ids)
    target = functional.normalize(same_person(person_ids).to(rgb.dtype), dim=1)
    rgb_onto_other = rgb @ unit_rows(other).T
    other_onto_rgb = other @ unit_rows(rgb).T
    return row_divergence(rgb_onto_other, target, epsilon) + row_divergence(other_onto_rgb, target, epsilon)
