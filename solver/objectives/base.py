"""What an objective is: a batch in, weighted and named losses out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.structures import Batch


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
