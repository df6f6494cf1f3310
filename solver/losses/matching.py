"""Whether an image and a caption belong together, with negatives that are hard to tell.

Shapes: B pairs of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from solver.losses.numerics import full_precision, same_person


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Which captions are matched with which images."""

    texts: Tensor
    """(3B,) int64: row of each pair's caption."""
    images: Tensor
    """(3B,) int64: row of its image."""
    matched: Tensor
    """(3B,) int64: 1 = they belong together, 0 = they do not."""


def matching_pairs(similarities: Tensor, person_ids: Tensor, generator: torch.Generator) -> Pairs:
    """Return the batch's own pairs, every caption with a drawn image of another person, and every image with such a
    caption.

    similarities: (B, B) of images (rows) and captions (columns), scaled as for a softmax; what is more alike is drawn
    more often: by the softmax of its row (column), in which rows of the same person have no share. The generator must
    be of their device. Raises: ValueError for a batch of one person, which has no negatives.
    Source: ALBEF (NeurIPS 2021), as in the released code of Instruct-ReID.
    """
    same = same_person(person_ids)
    if bool(same.all()):
        raise ValueError("matching needs at least two persons with captions in the batch")
    with torch.no_grad():
        logits = similarities.detach().float().masked_fill(same, -torch.inf)
        texts_for_images = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
        images_for_texts = torch.multinomial(logits.T.softmax(dim=1), 1, generator=generator).squeeze(1)
    own = torch.arange(len(person_ids), device=person_ids.device)
    return Pairs(
        texts=torch.cat([own, own, texts_for_images]),
        images=torch.cat([own, images_for_texts, own]),
        matched=torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)]),
    )


@full_precision
def matching_loss(logits: Tensor, matched: Tensor) -> Tensor:
    """Mean cross-entropy of (pairs, 2) scores, column 1 = they belong together, with `matched` (pairs,) of 0 and 1.

    Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    """
    if logits.ndim != 2 or logits.shape[1] != 2 or matched.shape != logits.shape[:1]:
        raise ValueError(
            f"scores must be (pairs, 2) and matched (pairs,), not {tuple(logits.shape)} and {tuple(matched.shape)}"
        )
    return functional.cross_entropy(logits, matched)
