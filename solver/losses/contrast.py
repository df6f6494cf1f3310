"""Contrast of images with their captions, within the batch or against queues (ALBEF, Instruct-ReID).

Shapes: B pairs of a batch, Q rows of the queues, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solver.losses.numerics import check_pair, full_precision, same_person, unit_rows


@full_precision
def batch_contrast_loss(image: Tensor, text: Tensor, person_ids: Tensor, *, temperature: Tensor | float) -> Tensor:
    """Cross-entropy of picking the rows of one's own person by cosine similarity, mean of both directions.

    image, text: (B, D) raw, row i of one belongs to row i of the other; person_ids: (B,). temperature: a number or a
    learnt scalar. Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    Source: Instruct-ReID++, eq. 10 (L_cl), which prints no queue. Rows of one person share the target evenly, as in the
    released code.
    """
    check_pair(image, text, person_ids)
    logits = unit_rows(image) @ unit_rows(text).T / temperature
    target = _shared_target(same_person(person_ids), logits)
    return (_cross_entropy(logits, target) + _cross_entropy(logits.T, target)) / 2


@full_precision
def queue_contrast_loss(
    image: Tensor,
    text: Tensor,
    person_ids: Tensor,
    *,
    taught_text: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    queue_ids: Tensor,
    temperature: Tensor | float,
    distillation: float = 0.4,
) -> Tensor:
    """Mean of four cross-entropies: image and text against all images and all texts.

    image, text: (B, D) raw; taught_text: (B, D), the text by the momentum copy; image_queue, text_queue: (Q, D);
    queue_ids: (Q,) persons, -100 = nobody's, a negative for everyone; person_ids: (B,). All images are the batch's
    (without gradient) and the queue's, all texts those of the copy and the queue's. The target is shared evenly by the
    columns of the row's person, but for `distillation` of it, which follows the softmax of the same similarities taken
    with the copy's text. Returns a scalar, float32 or float64. Raises: ValueError for wrong shapes.
    Source: the released code of Instruct-ReID, where images have no momentum copy.
    """
    check_pair(image, text, person_ids)
    check_pair(taught_text, text)
    if image_queue.shape != text_queue.shape or queue_ids.shape != image_queue.shape[:1]:
        raise ValueError(
            "the queues must be two equal (Q, D) and their persons (Q,), not "
            f"{tuple(image_queue.shape)}, {tuple(text_queue.shape)} and {tuple(queue_ids.shape)}"
        )
    image, text, taught_text = unit_rows(image), unit_rows(text), unit_rows(taught_text).detach()
    images = torch.cat([image.detach(), unit_rows(image_queue)])
    texts = torch.cat([taught_text, unit_rows(text_queue)])
    own = person_ids[:, None] == torch.cat([person_ids, queue_ids])[None, :]
    terms = []
    for rows, teachers, columns in (
        (image, image, texts),
        (text, taught_text, images),
        (image, image, images),
        (text, taught_text, texts),
    ):
        logits = rows @ columns.T / temperature
        taught = (teachers @ columns.T / temperature).detach().softmax(dim=1)
        target = (1 - distillation) * _shared_target(own, logits) + distillation * taught
        terms.append(_cross_entropy(logits, target))
    return torch.stack(terms).mean()


def _shared_target(own: Tensor, logits: Tensor) -> Tensor:
    wanted = own.to(logits.dtype)
    return wanted / wanted.sum(dim=1, keepdim=True)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
