"""Hidden pieces of a caption that are told from the rest and the image.

Shapes: B captions, L ids of a caption, V ids of the vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import full_precision

UNASKED = -100
"""Label of a position that nothing is asked of."""
KEPT, CHANGED = 0.1, 0.1
"""Of the chosen pieces these shares stay as they are and become any other piece; the rest is hidden (BERT)."""


def hide_pieces(
    ids: Tensor, askable: Tensor, *, share: float, mask_id: int, drawn_ids: range, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hide a share of the pieces of captions; return the ids as shown and the labels, both (B, L) int64.

    ids: (B, L); askable: (B, L) bool, the positions that may be chosen, each with probability `share`. Of the chosen
    80 % become mask_id, 10 % any of drawn_ids and 10 % stay. The generator must be of the ids' device.
    Source: BERT (NAACL 2019), section 3.1, as in ALBEF.
    """
    chance = torch.rand((3, *ids.shape), generator=generator, device=ids.device)
    chosen = askable & (chance[0] < share)
    drawn = torch.randint(
        drawn_ids.start, drawn_ids.stop, ids.shape, generator=generator, device=ids.device, dtype=ids.dtype
    )
    shown = torch.where(chance[1] < 1 - KEPT - CHANGED, mask_id, torch.where(chance[2] < 0.5, drawn, ids))
    return torch.where(chosen, shown, ids), torch.where(chosen, ids, UNASKED)


@full_precision
def masked_language_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    taught: Tensor | None = None,
    distillation: float = 0.4,
    axis: Literal["vocabulary", "sequence"] = "vocabulary",
) -> Tensor:
    """Mean over the asked positions of the cross-entropy with the hidden ids, mixed with the answers of a teacher.

    logits: (..., V) scores; labels: (...) ids, -100 = not asked. taught: (..., V) scores of the teacher, without
    gradient: (1 - distillation) x cross-entropy + distillation x cross-entropy with their softmax; None = without a
    teacher. axis `sequence`: the student's log-softmax in the second runs over the positions of a caption, (B, L, V)
    only. Nothing asked = 0. Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    Source: ALBEF, whose code first took the sequence axis and corrected it later; the released code of Instruct-ReID
    keeps it.
    """
    if labels.shape != logits.shape[:-1] or (taught is not None and taught.shape != logits.shape):
        raise ValueError(
            "scores must be (..., V), labels (...) and the teacher's scores like the scores, not "
            f"{tuple(logits.shape)}, {tuple(labels.shape)} and {None if taught is None else tuple(taught.shape)}"
        )
    asked = labels != UNASKED
    count = asked.sum().clamp_min(1)
    loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=UNASKED, reduction="sum")
    if taught is None:
        return loss / count
    if axis == "sequence" and logits.ndim != 3:
        raise ValueError(f"the sequence axis needs scores (B, L, V), not {tuple(logits.shape)}")
    log_probabilities = logits.log_softmax(dim=-2 if axis == "sequence" else -1)
    differing = -(taught.detach().softmax(dim=-1) * log_probabilities).sum(dim=-1)
    return ((1 - distillation) * loss + distillation * (differing * asked).sum()) / count
