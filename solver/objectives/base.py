"""What an objective is: a batch in, weighted and named losses out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.structures import Batch
from utils.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """Outcome of one forward pass.

    losses: scalars by name, each already weighted, so that what is logged is what is optimised. diagnostics: detached
    scalars that are logged only; they stay on the device until someone reads them, since reading waits for it.
    """

    losses: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of all losses, a scalar."""
        return torch.stack(list(self.losses.values())).sum()


class Objective(Protocol):
    """One per model family; it holds what only training needs and calls the model."""

    def step(self, model: Any, batch: Batch, step: int) -> StepOutput:
        """Return the losses of a batch at step `step` (from 0), which decides whatever is drawn at random."""


def loss_weights(losses: Mapping[str, float], known: Sequence[str]) -> dict[str, float]:
    """Return the weights above 0 of section `objective.losses`, in the order of `known`.

    Raises UserError for a loss that the family does not have, a weight out of range, and when nothing is left to
    minimise.
    """
    for name, weight in losses.items():
        if name not in known:
            raise UserError(f"objective.losses names {name!r}, which is no loss of this family: {nearest(name, known)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"objective.losses.{name} = {weight}: a weight must be a finite number, at least 0")
    weights = {name: float(losses[name]) for name in known if losses.get(name)}
    if not weights:
        raise UserError(f"objective.losses has no loss with a weight above 0: choose from {', '.join(known)}")
    return weights
