"""A quarter of the bytes: rows of length 1 in 8 bits a column, and how far a product with them may be from the exact
one. They only rule rows out; see `utils.retrieval.exact`.

Shapes: n rows, D columns.

A column j of a shard holds centre_j + step_j * code_j with codes of -127 to 127 over what the column's values span, so
that a column that is large in every row costs no precision. Kept beside the codes are the largest |row - its coarse
form|, E, and the largest |step * code|, L. For a query q, with w = q * step rounded to bfloat16 (B) and p = B.code,

    |q.row - (q.centre + p)| <= |q| E + |q - B / step| L + the rounding of p,

the first two by the Cauchy-Schwarz inequality. p is multiplied in bfloat16, whose products of 8 by 7 bits float32 holds
exactly, added in float32 and cut to bfloat16: D u |B / step| L and 2^-8 |p| (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1); both are taken larger than they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

LEVELS = 127
LEAST_COLUMNS, MULTIPLE = 64, 32
"""Of rows with a coarse form: fewer are read fast enough, others are slow to multiply."""
BLOCK_ROWS = 8_192
"""Rows that are made coarse at once."""
UNIT = 2.0**-24
CUT = 2.0**-8
"""The largest relative error of a number that is cut, not rounded, to bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoarseRows:
    """The coarse form of rows."""

    codes: Tensor
    """(n, D) int8, contiguous, on the CPU."""
    scales: Floats
    """(2, D): centre and step of each column."""
    error: float
    """E."""
    longest: float
    """L."""

    def rows(self, start: int, stop: int) -> CoarseRows:
        """Return some of the rows."""
        return CoarseRows(codes=self.codes[start:stop], scales=self.scales, error=self.error, longest=self.longest)


def has_form(width: int, spread: float, limit: float) -> bool:
    """Return whether rows of so many columns, whose lengths are within 1 +- spread, have a coarse form."""
    return width >= LEAST_COLUMNS and width % MULTIPLE == 0 and spread <= limit


def scales_of(features: np.ndarray) -> Floats:
    """Return (2, D): centre and step of each column of features (n, D), which are finite; n >= 1."""
    low, high = features[0].astype(np.float64), features[0].astype(np.float64)
    for start in range(0, len(features), BLOCK_ROWS):
        block = features[start : start + BLOCK_ROWS]
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    step = (high - low) / (2 * LEVELS)
    return np.stack([(low + high) / 2, np.where(step > 0, step, 1)]).astype(np.float32)


def coded(features: np.ndarray, scales: Floats) -> tuple[NDArray[np.int8], float, float]:
    """Return the codes (n, D) of features (n, D), and of these rows the largest error and length of the coarse form."""
    centre, step = scales.astype(np.float64)
    values = features.astype(np.float64) - centre
    codes = np.clip(np.rint(values / step), -LEVELS, LEVELS)
    kept = codes * step
    return codes.astype(np.int8), _longest(values - kept), _longest(kept)


def _longest(rows: Doubles) -> float:
    return float(np.sqrt((rows * rows).sum(1)).max(initial=0.0))


@functools.lru_cache(maxsize=1)
def multiplies() -> bool:
    """Return whether this torch, on this CPU, multiplies codes as fast and as exactly as the bound wants. The function
    has no documentation, so that it is asked.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    generator = np.random.default_rng(0)
    codes = generator.integers(-LEVELS, LEVELS + 1, (67, 96)).astype(np.int8)
    asked = torch.from_numpy(generator.standard_normal((2, 96))).to(torch.bfloat16)
    try:
        found = _multiplied(asked, torch.from_numpy(codes)).astype(np.float64)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    exact = asked.double().numpy() @ codes.T.astype(np.float64)
    return bool((np.abs(found - exact) <= CUT * np.abs(exact) + 1e-3).all())


def _multiplied(asked: Tensor, codes: Tensor) -> Floats:
    """Return the products (Q, n) of asked (Q, D) bfloat16 and codes (n, D)."""
    ones = torch.ones(len(codes), dtype=torch.bfloat16)
    return torch._weight_int8pack_mm(asked, codes, ones).float().numpy()


def coarse_products(asked: Floats, rows: CoarseRows) -> tuple[Floats, Doubles]:
    """Return the inner products (Q, n) of queries (Q, D) and the coarse rows, and per query (Q,) how far they may be
    from those with the rows themselves.
    """
    centre, step = rows.scales.astype(np.float64)
    queries = asked.astype(np.float64)
    folded = torch.from_numpy(queries * step).to(torch.bfloat16)
    found = _multiplied(folded, rows.codes)
    back = folded.double().numpy() / step
    lengths = np.sqrt((queries * queries).sum(1))
    lost = np.sqrt(((queries - back) ** 2).sum(1))
    summed = 4 * (asked.shape[1] + 8) * UNIT * np.sqrt((back * back).sum(1)) * rows.longest
    # The norm of a zero query is 0, and so is its error.
    largest = np.maximum(found.max(axis=1, initial=0.0), -found.min(axis=1, initial=0.0))
    rounded = 2 * CUT * largest.astype(np.float64)
    shift = (queries * centre).sum(1)
    error = 1.0001 * (lengths * rows.error + lost * rows.longest) + summed + rounded + 4 * UNIT * np.abs(shift)
    found += shift.astype(np.float32)[:, None]
    return found, error
