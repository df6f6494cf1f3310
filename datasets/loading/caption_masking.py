"""Masked caption tokens as augmentation."""

from __future__ import annotations

import random

import torch
from torch import Tensor

MASKED, REPLACED = 0.8, 0.9
"""Below the first, a chosen token is masked; below the second, replaced by a random one; above, kept."""


def mask_caption(
    ids: Tensor,
    rng: random.Random,
    *,
    probability: float = 0.15,
    mask_id: int,
    ordinary: range | None = None,
    keep_eot: bool = True,
) -> Tensor:
    """Return a copy of (T,) int64 ids in which each ordinary token was chosen with `probability` and changed.

    A chosen token becomes the mask (80 %), a uniformly drawn ordinary token (10 %) or stays (10 %). Ordinary ids are
    those of `ordinary` (a tokenizer's `ordinary_ids`), empty = CLIP's, 1 to mask_id - 1; specials and padding stay.
    When nothing was chosen, position 1 becomes the mask.
    keep_eot: leave position 1 alone when it holds no ordinary token; otherwise the end token of an empty caption is
    overwritten, as released. One number of `rng` is drawn per ordinary token, one more per replacement.
    Source: reference; BERT's 80/10/10 rule without a loss.
    """
    ordinary = range(1, mask_id) if ordinary is None else ordinary
    changed = ids.tolist()
    chosen = False
    for position, token in enumerate(changed):
        if token not in ordinary:
            continue
        draw = rng.random()
        if draw >= probability:
            continue
        chosen = True
        if draw / probability < MASKED:
            changed[position] = mask_id
        elif draw / probability < REPLACED:
            changed[position] = rng.choice(ordinary)
    if not chosen and (not keep_eot or changed[1] in ordinary):
        changed[1] = mask_id
    return torch.tensor(changed, dtype=torch.int64)
