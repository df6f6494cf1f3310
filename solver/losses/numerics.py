"""What the losses share: full precision, unit rows, the same-person matrix and a divergence between rows.

Shapes: B rows of a batch, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")

SMALLEST_ENTRY = 1e-20
"""Rows whose largest absolute entry is below this shrink towards zero instead of having length one."""


def _widen(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    return value


def full_precision(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Run a loss in float32 with autocast off, whatever its arguments' type; float64 stays float64."""

    call: Callable[..., Tensor] = function

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device_type=device.type, enabled=False):
            return call(*map(_widen, args), **{name: _widen(value) for name, value in kwargs.items()})

    return wrapped


def unit_rows(features: Tensor) -> Tensor:
    """Return (B, D) with every row divided by its Euclidean norm; a zero row stays zero.

    Equal to x / ||x|| (the reference has no epsilon). Rows are first divided by their largest entry, so that neither
    squares of huge entries overflow nor those of tiny ones vanish.
    """
    # The result does not depend on this scale, so neither does the gradient.
    scale = features.detach().abs().amax(dim=1, keepdim=True)
    scaled = features / torch.where(scale > 0, scale.clamp_min(SMALLEST_ENTRY), torch.ones_like(scale))
    # A scaled row holds an entry of size one, hence its norm is at least one; only zero rows are below.
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1.0)


def check_pair(rgb: Tensor, other: Tensor, person_ids: Tensor | None = None) -> None:
    """Raise ValueError unless both features are (B, D) with equal shapes and person_ids is (B,)."""
    if rgb.ndim != 2 or rgb.shape != other.shape or not len(rgb):
        raise ValueError(
            f"features must be two equal (B, D) with B >= 1, not {tuple(rgb.shape)} and {tuple(other.shape)}"
        )
    if person_ids is not None and person_ids.shape != rgb.shape[:1]:
        raise ValueError(f"person_ids must be ({len(rgb)},), not {tuple(person_ids.shape)}")


def same_person(person_ids: Tensor) -> Tensor:
    """Return (B, B) bool: whether rows i and j show the same person."""
    return person_ids[:, None] == person_ids[None, :]


def row_divergence(logits: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """Return mean_i sum_j p_ij (log p_ij - log(target_ij + epsilon)) with p = softmax over each row of `logits`."""
    log_probabilities = logits.log_softmax(dim=1)
    return (log_probabilities.exp() * (log_probabilities - (target + epsilon).log())).sum(dim=1).mean()
