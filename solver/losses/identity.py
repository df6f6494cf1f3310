"""Identity classification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import full_precision


@full_precision
def identity_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of class scores (B, C) with labels (B,) in 0..C-1. Returns a scalar, float32 or float64.

    smoothing: share of the target that is spread evenly over all C classes (Szegedy et al., CVPR 2016, section 7), in
    [0, 1). Raises: ValueError for wrong shapes.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (B, C) and labels (B,), not {tuple(logits.shape)} and {tuple(labels.shape)}")
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
