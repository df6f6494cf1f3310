"""What is measured of a ranking. No torch is imported: a configuration takes choices and defaults from here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from utils.errors import UserError

ApForm = Literal["sum", "trapezoid"]
CmcForm = Literal["image", "identity"]
NoPositive = Literal["zero", "zero_matched", "skip"]
Similarity = Literal["cosine", "euclidean"]
"""How features are compared: by the cosine, or by minus the squared Euclidean distance of the features as they are."""


# Without slots, so that a default can be read from the class: `MetricOptions.max_rank`.
@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """What is measured; the docstring of utils.retrieval.metrics gives the order of the cuts and the exclusion."""

    rule: str = "none"
    """Name in utils.retrieval.exclusion."""
    thresholds: tuple[float, ...] = ()
    """tau of mAP@tau, on cosines of annotations."""
    ap: ApForm = "sum"
    """`sum`: mean over the matches of the precision at their rank. `trapezoid`: Oxford's and Market-1501's form, the
    mean of the precisions before and at each match.
    """
    cmc: CmcForm = "image"
    """`image` counts items, `identity` distinct persons (SYSU-MM01, LLCM)."""
    max_rank: int = 50
    """Length of the CMC curve."""
    ap_depth: int | None = None
    """AP sees so many ranks after the exclusion."""
    ap_topk: int | None = None
    """AP sees so many ranks before the exclusion."""
    no_positive: NoPositive = "zero_matched"
    """A query that AP has no positive for, at a threshold or within a cut: 0; 0 unless it has no match at all; or left
    out. Under `zero`, mAP@tau is the mean over all queries, as in the paper; mAP leaves those without a match out
    under each.
    """

    def __post_init__(self) -> None:
        for name, choices in (("ap", ApForm), ("cmc", CmcForm), ("no_positive", NoPositive)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(get_args(choices))}")
        for name in ("max_rank", "ap_depth", "ap_topk"):
            value = getattr(self, name)
            absent = value is None and name != "max_rank"
            if not absent and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"{name} = {value!r}: must be a positive integer")
        if not all(math.isfinite(tau) for tau in self.thresholds):
            raise UserError(f"thresholds = {self.thresholds!r}: each must be a finite number")
