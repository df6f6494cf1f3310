"""Encoded instructions, and which row of a batch is given which of them.

Shapes: U distinct instructions, L tokens, C width, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """Instructions or captions of one modality, encoded."""

    tokens: Tensor
    """(U, L, C)."""
    mask: Tensor
    """(U, L) bool: the tokens that are no padding; all of a picture."""

    @property
    def cls(self) -> Tensor:
        """(U, C): the class tokens (F_T of the paper), before any projection."""
        return self.tokens[:, 0]


Told = tuple[Said, Tensor]
"""Instructions, and (B,) int64: which of the U each row is given, -1 = none of these."""


class Given(NamedTuple):
    """What the rows of a batch are told, whatever its modality. No row is told two things."""

    tokens: Tensor
    """(U, L, C): texts and pictures one after the other, the shorter ones filled up with zeros."""
    rows: Tensor
    """(B,) int64: which of the U a row is told; 0 for a row that is told nothing."""
    told: Tensor
    """(B,) bool: whether a row is told anything. An instruction that is all padding says nothing."""
    mask: Tensor
    """(B, L) bool: what a row may attend to, padding left out. All True for a row that is told nothing, so that no
    softmax runs over nothing; what comes of it is not used."""
    filled: Tensor
    """(B, L) bool: as `mask`, with the padding that texts come with."""


def gather_given(told: Sequence[Told]) -> Given | None:
    """Return what the rows are told, None where the batch brings no instruction at all."""
    spoken = [(said, rows) for said, rows in told if len(said.tokens)]
    if not spoken:
        return None
    length = max(said.tokens.shape[1] for said, _ in spoken)
    fill = [length - said.tokens.shape[1] for said, _ in spoken]
    tokens = torch.cat([F.pad(said.tokens, (0, 0, 0, more)) for (said, _), more in zip(spoken, fill)])
    mask = torch.cat([F.pad(said.mask, (0, more)) for (said, _), more in zip(spoken, fill)])
    filled = torch.cat([F.pad(torch.ones_like(said.mask), (0, more)) for (said, _), more in zip(spoken, fill)])
    rows, first = torch.full_like(spoken[0][1], -1), 0
    for said, numbers in spoken:
        rows = torch.where(numbers >= 0, numbers + first, rows)
        first += len(said.tokens)
    chosen = rows.clamp(min=0)
    is_told = (rows >= 0) & mask.any(dim=1)[chosen]
    nothing = ~is_told[:, None]
    return Given(tokens, chosen, is_told, mask[chosen] | nothing, filled[chosen] | nothing)
