"""Rows and kinds of golden checks, shared by the parity command and by pytest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One compared quantity: the largest error and its tolerance, both in the same unit."""

    quantity: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """True when the error is a number within the tolerance."""
        return math.isfinite(self.error) and self.error <= self.tolerance


@dataclass(frozen=True)
class Kind:
    """A kind of golden file. `pattern` matches the whole file name.

    check: None for a supporting file, which another kind's check reads: it is no item of its own.
    """

    name: str
    pattern: str
    check: Callable[[Path], list[Row]] | None = None

    def matches(self, path: Path) -> bool:
        """Return whether the file's name is of this kind."""
        return re.fullmatch(self.pattern, path.name) is not None


def max_error(actual: object, expected: object) -> float:
    """Largest absolute difference; infinity when the shapes differ or a NaN stands on one side only."""
    left, right = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if left.shape != right.shape:
        return math.inf
    if not np.array_equal(np.isnan(left), np.isnan(right)):
        return math.inf
    difference = np.abs(left - right)[~np.isnan(left)]
    return float(difference.max()) if difference.size else 0.0


def relative_error(actual: float, expected: float, floor: float = 1e-12) -> float:
    """Difference relative to the expected value."""
    return abs(actual - expected) / max(abs(expected), floor)


def exact(equal: bool, quantity: str) -> Row:
    """A row for a comparison that has no tolerance."""
    return Row(quantity, 0.0 if equal else math.inf, 0.0)
