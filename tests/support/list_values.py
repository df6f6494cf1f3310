"""Per-query values of every metric, from ranks, precisions and penalties that a test writes by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def values_of(
    ranks: Sequence[int] | NDArray[np.int64],
    precision: Sequence[float] | NDArray[np.float64],
    penalty: Sequence[float] | NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return by metric (n,) what a list result holds. ranks: of the first match, below 1 = the query enters nothing."""
    rank = np.asarray(ranks, dtype=np.float64)
    matched = rank > 0
    shares = {f"R{depth}": np.where(matched, rank <= depth, np.nan) for depth in (1, 5, 10, 20)}
    return {
        **shares,
        "mAP": np.asarray(precision, dtype=np.float64),
        "mINP": np.asarray(penalty, dtype=np.float64),
        "median_rank": np.where(matched, rank, np.nan),
    }
