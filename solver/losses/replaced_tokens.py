"""Pieces of a caption that a teacher replaced, to be told from those that are the caption's own.

Shapes: B captions, L ids of a caption, V ids of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import full_precision


def replace_pieces(logits: Tensor, ids: Tensor, askable: Tensor, generator: torch.Generator) -> Tensor:
    """Draw every askable piece of captions anew from a teacher's softmax; return the ids (B, L) int64.

    logits: (B, L, V) scores of the teacher, which saw the caption with pieces hidden; ids: (B, L) the caption;
    askable: (B, L) bool; the others (start, end, padding) stay. The generator must be of their device.
    Source: the released code of Instruct-ReID, after RaSa (IJCAI 2023): drawn at every position, hidden or not.
    """
    with torch.no_grad():
        chances = logits.float().softmax(dim=-1).flatten(0, 1)
        drawn = torch.multinomial(chances, 1, generator=generator).reshape(ids.shape)
    return torch.where(askable, drawn, ids)


@full_precision
def replaced_tokens_loss(logits: Tensor, replaced: Tensor, askable: Tensor) -> Tensor:
    """Mean cross-entropy over the askable positions of (B, L, 2) scores, column 1 = replaced, with `replaced` (B, L)
    bool. A piece that was drawn as it had been is not replaced. Nothing askable = 0.

    Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    """
    if logits.shape != (*replaced.shape, 2) or askable.shape != replaced.shape:
        raise ValueError(
            "scores must be (B, L, 2), replaced and askable (B, L), not "
            f"{tuple(logits.shape)}, {tuple(replaced.shape)} and {tuple(askable.shape)}"
        )
    errors = functional.cross_entropy(logits.flatten(0, -2), replaced.flatten().long(), reduction="none")
    return (errors * askable.flatten()).sum() / askable.sum().clamp_min(1)
