"""Image-text contrast, here between RGB and any other feature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import check_pair, full_precision, unit_rows


@full_precision
def itc_loss(rgb: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of picking row i's own partner among all rows by cosine similarity, mean of both directions.

    rgb, other: (B, D) raw features. Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    Source: CLIP (ICML 2021), as in the reference: other rows of the same person count as negatives.
    """
    check_pair(rgb, other)
    logits = unit_rows(rgb) @ unit_rows(other).T / temperature
    own = torch.arange(len(rgb), device=rgb.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
