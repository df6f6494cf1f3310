"""Near-duplicates of better results, shown with them: frames of one track fill a list with one picture.

Shapes: K results, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.search.ranked import RankedImage, RankedQuery

FOLD = 0.995
"""Cosine from which on two images are nearly the same, unless something else is asked for."""
MOST_LOOKED_AT = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """A ranked list without near-duplicates; ranks stay those of the whole list."""

    row: RankedQuery
    copies: Mapping[int, tuple[RankedImage, ...]]
    """By number of a result: what is nearly the same, and ranked below it."""


def fold(
    search: Callable[[int], RankedQuery],
    features: Callable[[tuple[RankedImage, ...]], NDArray[np.float64]],
    *,
    top_k: int,
    cosine: float | None,
) -> Folded:
    """Return the best `top_k` results that are no near-duplicate of a better one, each with those that are.

    search: returns the best k of the gallery. features: (K, D) of results. cosine: from which on two images are nearly
    the same, None = never. At most MOST_LOOKED_AT results are looked at.
    """
    wanted = top_k
    while True:
        row = search(wanted)
        leaders = list(range(len(row.results))) if cosine is None else _leaders(features(row.results), cosine)
        count = len(set(leaders))
        if count >= top_k or len(row.results) < wanted or wanted >= MOST_LOOKED_AT:
            break
        wanted = min(2 * wanted, MOST_LOOKED_AT)
    kept = sorted(set(leaders))[:top_k]
    copies: dict[int, tuple[RankedImage, ...]] = {}
    for leader in kept:
        same = [place for place, own in enumerate(leaders) if own == leader and place != leader]
        copies[row.results[leader].index] = tuple(row.results[place] for place in same)
    return Folded(row=dataclasses.replace(row, results=tuple(row.results[place] for place in kept)), copies=copies)


def _leaders(features: NDArray[np.float64], cosine: float) -> list[int]:
    """Return, for each result, the first better one that it is nearly the same as and that leads itself; else the
    result.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    found: list[int] = []
    leaders: list[int] = []
    for place in range(len(unit)):
        close = np.flatnonzero(unit[leaders] @ unit[place] >= cosine)
        if len(close):
            found.append(leaders[int(close[0])])
        else:
            leaders.append(place)
            found.append(place)
    return found
