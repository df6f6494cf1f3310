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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
TASK_ROWS = 32_768
"""Rows that one thread multiplies at once."""
Task = tuple[int, int, slice]
"""Part, place of its first row among those of all parts, rows of the part."""
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
        found = _multiplied(asked, torch.from_numpy(codes)).double().numpy()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    exact = asked.double().numpy() @ codes.T.astype(np.float64)
    return bool((np.abs(found - exact) <= CUT * np.abs(exact) + 1e-3).all())


@functools.cache
def _ones() -> Tensor:
    return torch.ones(TASK_ROWS, dtype=torch.bfloat16)


def _multiplied(asked: Tensor, codes: Tensor) -> Tensor:
    """Return the products (Q, n) bfloat16 of asked (Q, D) bfloat16 and codes (n, D), n at most TASK_ROWS."""
    return torch._weight_int8pack_mm(asked, codes, _ones()[: len(codes)])


def _tasks(sizes: Sequence[int]) -> list[Task]:
    """Return what is multiplied at once of parts of these sizes."""
    firsts = np.cumsum([0, *sizes]).tolist()
    return [
        (part, firsts[part] + start, slice(start, start + TASK_ROWS))
        for part, size in enumerate(sizes)
        for start in range(0, size, TASK_ROWS)
    ]


def _on_threads(work: Callable[[Task], Floats], tasks: Sequence[Task]) -> list[Floats]:
    """Return what each task gives. Each runs on one of as many threads as torch has, alone: OpenMP would have to wake
    its threads for each of the products, whose waits are short so that they leave a core to others.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        return [work(task) for task in tasks]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, tasks))
    finally:
        # What a thread sets for itself is also what later threads begin with.
        torch.set_num_threads(threads)


def coarse_products(asked: Floats, parts: Sequence[CoarseRows]) -> tuple[Floats, Doubles]:
    """Return the inner products (Q, n) of queries (Q, D) and the coarse rows of all parts, one after the other, and per
    query (Q,) how far they may be from those with the rows themselves.
    """
    centre, step = np.stack([part.scales for part in parts], axis=1).astype(np.float64)[:, :, None]
    coarse_error, longest = np.array([(part.error, part.longest) for part in parts]).T[:, :, None]
    queries = asked.astype(np.float64)
    folded = torch.from_numpy(queries * step).to(torch.bfloat16)
    back = folded.double().numpy() / step
    shift = (queries * centre).sum(2)
    found = np.empty((len(asked), sum(len(part.codes) for part in parts)), dtype=np.float32)

    def multiply(task: Task) -> Floats:
        """Put products in their place; return the largest (Q,), before the shift."""
        place, first, chosen = task
        codes = parts[place].codes[chosen]
        own = found[:, first : first + len(codes)]
        # bfloat16 is the upper half of float32.
        halves = _multiplied(folded[place], codes).view(torch.uint16).numpy()
        np.left_shift(halves, 16, out=own.view(np.uint32), dtype=np.uint32)
        largest = np.maximum(own.max(axis=1), -own.min(axis=1))
        own += shift[place].astype(np.float32)[:, None]
        return largest

    tasks = _tasks([len(part.codes) for part in parts])
    largest = np.zeros(shift.shape)
    for (place, _, _), value in zip(tasks, _on_threads(multiply, tasks)):
        largest[place] = np.maximum(largest[place], value)
    lost = np.sqrt(((queries - back) ** 2).sum(2)) * longest
    summed = 4 * (asked.shape[1] + 8) * UNIT * np.sqrt((back * back).sum(2)) * longest
    lengths = np.sqrt((queries * queries).sum(1))
    error = 1.0001 * (lengths * coarse_error + lost) + summed + 2 * CUT * largest + 4 * UNIT * np.abs(shift)
    return found, error.max(axis=0)
