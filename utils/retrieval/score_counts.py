"""Exact order statistics of more scores than fit in memory: two rounds of counting by the bits of a float32."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

HALF = 1 << 16
"""Values of the upper, and of the lower, 16 bits."""


def score_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return for each score an integer that is larger exactly where the score is; both zeros have the same."""
    keys = (scores + np.float32(0)).view(np.int32)
    # Negative numbers have the sign's bit and grow with their size: all of their bits are turned, else the first.
    keys ^= (keys >> 31) | np.int32(-(1 << 31))
    return keys.view(np.uint32)


def key_score(key: int) -> float:
    """Return the score of an integer of `score_keys`."""
    bits = key & ~(1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])


class ScoreCounts:
    """Scores counted by the upper half of their bits, and in some of these bins by the lower half.

    Every score is given once to `add`; then, when `bins` has said where the wanted ones lie, once to `refine`. Memory:
    half a megabyte for each bin that is refined, whatever the number of scores.
    """

    def __init__(self) -> None:
        self.upper = np.zeros(HALF, dtype=np.int64)
        self.lower: dict[int, NDArray[np.int64]] = {}
        self._larger: dict[int | None, NDArray[np.int64]] = {}

    @property
    def total(self) -> int:
        """Number of scores."""
        return int(self.upper.sum())

    def add(self, scores: NDArray[np.float32], without: NDArray[np.float32]) -> None:
        """Count scores (n,), finite, but those of `without` (m,), which are among them."""
        self._larger.clear()
        self.upper += np.bincount(score_keys(scores) >> 16, minlength=HALF)
        self.upper -= np.bincount(score_keys(without) >> 16, minlength=HALF)

    def bins(self, ranks: Iterable[int]) -> set[int]:
        """Return the bins that hold the scores of these ranks, 0 = the largest score."""
        return {self._bin(rank)[0] for rank in ranks}

    def start_refining(self, places: Iterable[int]) -> None:
        """Prepare the second round for some bins."""
        self.lower = {place: np.zeros(HALF, dtype=np.int64) for place in places}

    def refine(self, scores: NDArray[np.float32], chosen: NDArray[np.bool_]) -> None:
        """Count those of the scores (n,) that are chosen (n,), in the bins that are refined."""
        self._larger.clear()
        keys = score_keys(scores)
        wanted = np.zeros(HALF, dtype=bool)
        wanted[list(self.lower)] = True
        keys = keys[wanted[keys >> 16] & chosen]
        places = keys >> 16
        for place in np.unique(places).tolist():
            self.lower[place] += np.bincount(keys[places == place] & (HALF - 1), minlength=HALF)

    def above(self, rank: int) -> float:
        """Return the smallest float32 that is larger than the score of a rank, whose bin has to be refined."""
        place, lower, _ = self._find(rank)
        return key_score((place << 16) + lower + 1)

    def larger(self, rank: int) -> int:
        """Return how many scores are larger than that of a rank, whose bin has to be refined."""
        return self._find(rank)[2]

    def _bin(self, rank: int) -> tuple[int, int]:
        """Return the bin of a rank and how many scores lie in the bins above it."""
        if not 0 <= rank < self.total:
            raise IndexError(f"rank {rank} of {self.total} scores")
        larger = self._summed(None, self.upper)
        place = int(np.searchsorted(larger, rank, side="right"))
        return HALF - 1 - place, int(larger[place - 1]) if place else 0

    def _find(self, rank: int) -> tuple[int, int, int]:
        """Return upper and lower half of the score of a rank, and how many scores are larger."""
        place, before = self._bin(rank)
        larger = self._summed(place, self.lower[place])
        found = int(np.searchsorted(larger, rank - before, side="right"))
        return place, HALF - 1 - found, before + (int(larger[found - 1]) if found else 0)

    def _summed(self, place: int | None, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many scores lie in the largest 1, 2, ... values; kept until something is counted."""
        if place not in self._larger:
            self._larger[place] = np.cumsum(counts[::-1])
        return self._larger[place]
