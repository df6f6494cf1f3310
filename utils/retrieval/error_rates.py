"""Error rates of a threshold: verification (same person or not) and open-set identification (is the person there).

Definitions (ISO/IEC 19795-1:2021, clause 3; as used by the reports of NIST's FRTE 1:1 and 1:N). A comparison of a query
with a gallery image is genuine where both show one person, else an impostor's; it is a match at a threshold T where its
similarity is at least T.

- FMR(T), false match rate: share of the impostor comparisons that are matches.
- FNMR(T), false non-match rate: share of the genuine comparisons that are none.
- FPIR(T), false positive identification rate: share of the searches for a person who is not enrolled that return at
  least one match.
- FNIR(T), miss rate: share of the searches for an enrolled person in which no image of that person is a match. The rank
  of the image is not asked for (R = N in the standard's FNIR(N, R, T)).

"T at FMR f" is the smallest T with FMR(T) <= f, and FNMR at FMR f is FNMR there; likewise FNIR at FPIR f.

What numbers can support: without an error in n independent trials the rate is below 3 / n with 95 % confidence (the
"rule of 3" of ISO/IEC 19795-1). Where no error was seen this bound is shown instead of 0, and no threshold is set for a
false rate below it. Comparisons that share images or persons are not independent, so that the bound is the most that n
can promise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
FALSE_ALARM_RATES = (1e-1, 1e-2)
"""Of FPIR."""
RULE_OF_THREE = 3.0
SLACK = 1e-9
"""What a product of a rate and a count may lack of a whole number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """An error rate."""

    errors: int
    trials: int
    low: float = math.nan
    """Of the interval; nan without trials."""
    high: float = math.nan

    @property
    def value(self) -> float:
        """Share of errors, nan without trials."""
        return self.errors / self.trials if self.trials else math.nan

    @property
    def bound(self) -> float:
        """The rate that so many trials without an error rule out."""
        return min(RULE_OF_THREE / self.trials, 1.0) if self.trials else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """A threshold and its error rates."""

    target: float
    """The false rate that was asked for."""
    threshold: float
    """Similarities of at least this are matches."""
    false: Rate
    """FMR, or FPIR."""
    missed: Rate
    """FNMR, or FNIR."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A point of what ROC (1 - missed against false) and DET (missed against false) show."""

    threshold: float
    false: float
    missed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Thresholds by the false rate that they are for."""

    matching: Mapping[float, float] = field(default_factory=dict)
    """By FMR."""
    identification: Mapping[float, float] = field(default_factory=dict)
    """By FPIR."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was measured of one set of comparisons, or of several pooled."""

    persons: int
    """How many are asked for."""
    queries: int
    genuine: int
    """Comparisons."""
    impostor: int
    """Comparisons."""
    absent_searches: int
    """Searches for a person who is not enrolled."""
    present_searches: int
    """Searches for one who is."""
    searched_images: float
    """What the former look at, on average."""
    matching: tuple[OperatingPoint, ...]
    """By falling FMR, without those that the impostor comparisons cannot support."""
    identification: tuple[OperatingPoint, ...]
    """By falling FPIR, likewise."""
    matching_curve: tuple[CurvePoint, ...] = ()
    """By falling false rate."""
    identification_curve: tuple[CurvePoint, ...] = ()


def is_supported(target: float, trials: int) -> bool:
    """Return whether so many trials can establish a false rate, by the rule of 3."""
    return target * trials >= RULE_OF_THREE - SLACK


def allowed_errors(target: float, trials: int) -> int:
    """Return how many errors in so many trials keep the rate at or below the target."""
    return math.floor(target * trials + SLACK)
