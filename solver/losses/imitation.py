"""One head imitates another."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from solver.losses.numerics import full_precision


@full_precision
def imitation_loss(
    student: Tensor, teacher: Tensor, *, reduction: Literal["batchmean", "mean"] = "batchmean"
) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), the teacher without gradient; class scores (B, C). Returns a scalar.

    batchmean: sum over classes, mean over rows. mean: mean over all B x C entries, C times weaker; written out, because
    the library's reduction of that name will change its meaning. Raises: ValueError for unequal shapes.
    Source: IV-REID; its SYSU-MM01 script uses the first form, its RegDB script the second.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"scores must be two equal (B, C), not {tuple(student.shape)} and {tuple(teacher.shape)}")
    target = teacher.detach().log_softmax(dim=1)
    entries = target.exp() * (target - student.log_softmax(dim=1))
    return entries.mean() if reduction == "mean" else entries.sum(dim=1).mean()
