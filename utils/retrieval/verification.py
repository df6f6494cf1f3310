"""Error rates of comparisons: thresholds, operating points, curves and intervals. Definitions: `error_rates`.

Open-set searches: persons are divided into `PARTS` parts by a seed, and each query searches the gallery without the
part of its own person (absent), and for its own person's images (present). Who else is enrolled changes nothing for the
latter, since ranks are not asked for.

Intervals are percentile intervals of a bootstrap over persons, drawn with replacement: a genuine comparison and a
search count as often as the query's person was drawn, an impostor comparison as often as the query's was times as often
as the image's was (vertex bootstrap; compared with others in Fogliato, Patil and Perona, "Confidence intervals for
error rates in 1:1 matching tasks", 2023). The threshold is kept: an interval says how well the rates at this threshold
are known. Beyond `MAX_UNITS` persons groups of persons are drawn.

Memory: one block of comparisons, counts by the bits of the scores, and counts by pairs of units; never the scores of
all comparisons. These are gone through three times: for the counts, for the thresholds, for the errors.

Shapes: Q queries, G gallery images, b queries of a block, P persons, U units of the bootstrap, L thresholds,
E thresholds of a curve, R replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.retrieval.error_rates import (
    FALSE_ALARM_RATES,
    FALSE_MATCH_RATES,
    CurvePoint,
    OperatingPoint,
    Rate,
    Thresholds,
    Verification,
    allowed_errors,
    is_supported,
)
from utils.retrieval.score_counts import ScoreCounts

PARTS = 5
MAX_UNITS = 500
REPLICATES = 1000
OUTSIDE = (2.5, 97.5)
"""Percentiles between which an interval lies."""
STEPS_OF_DECADE, DECADES = 8, 6
"""False rates of a curve: from 1 down to 1e-6, as far as there are trials."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Flags = NDArray[np.bool_]
Block = tuple[int, Scores, Flags]
"""First query, similarities (b, G), which of them count (b, G)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonSet:
    """Queries compared with a gallery."""

    query_persons: Integers
    """(Q,): numbers 0..P-1, the same in all sets."""
    gallery_persons: Integers
    """(G,)."""
    blocks: Callable[[], Iterator[Block]]
    """Gives all comparisons, the same each time."""


def verify(
    sets: Sequence[ComparisonSet],
    *,
    persons: int,
    seed: int,
    thresholds: Thresholds | None = None,
    replicates: int = REPLICATES,
) -> Verification:
    """Measure all comparisons of some sets together.

    persons: how many numbers there are, P. seed: of parts and intervals. thresholds: those to measure; None = they are
    set on these comparisons, for FALSE_MATCH_RATES and FALSE_ALARM_RATES, as far as their number supports it. Raises
    UserError for a similarity that is not finite, and without any comparison.
    """
    draws = _Draws.of(max(persons, 1), seed, replicates)
    impostors = ScoreCounts()
    searches = _Searches.joined([_first_round(one, draws.parts, impostors) for one in sets]) if sets else None
    if searches is None or not len(searches.persons):
        raise UserError("no query is compared with a gallery image, so that there are no error rates")
    curve_ranks = _curve_ranks(impostors.total)
    ranks = {target: allowed_errors(target, impostors.total) for target in FALSE_MATCH_RATES}
    ranks = {target: rank for target, rank in ranks.items() if is_supported(target, impostors.total)}
    _second_round(sets, impostors, [*curve_ranks, *(ranks.values() if thresholds is None else ())])
    if thresholds is None:
        thresholds = Thresholds(
            matching={target: impostors.above(rank) for target, rank in ranks.items()},
            identification=searches.thresholds(),
        )
    levels = np.unique(np.asarray([*thresholds.matching.values()], dtype=np.float32))
    edges = {impostors.above(rank): impostors.larger(rank) / impostors.total for rank in curve_ranks}
    errors = _third_round(sets, draws.units, levels, np.asarray([*edges], dtype=np.float32))
    genuine = int(errors.genuine.sum())
    return Verification(
        persons=len(np.unique(searches.persons)),
        queries=len(searches.persons),
        genuine=genuine,
        impostor=impostors.total,
        absent_searches=int(searches.alarms.sum()),
        present_searches=int(searches.mates.sum()),
        searched_images=searches.searched_images,
        matching=tuple(
            _matching_point(target, threshold, errors, draws) for target, threshold in _falling(thresholds.matching)
        ),
        identification=tuple(
            _search_point(target, threshold, searches, draws)
            for target, threshold in _falling(thresholds.identification)
        ),
        matching_curve=tuple(
            CurvePoint(threshold=float(edge), false=false, missed=int(missed) / genuine)
            for (edge, false), missed in zip(edges.items(), errors.edge_missed)
            if genuine
        ),
        identification_curve=searches.curve(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draws:
    """What is drawn by the seed."""

    parts: Integers
    """(P,): the part of each person."""
    units: Integers
    """(P,): the unit of each person."""
    weights: Floats
    """(R, U): how often each unit is drawn."""

    @classmethod
    def of(cls, persons: int, seed: int, replicates: int) -> _Draws:
        """Draw for so many persons."""
        draw = np.random.default_rng([seed, persons])
        count = min(persons, MAX_UNITS)
        return cls(
            parts=draw.permutation(persons) % PARTS,
            units=draw.permutation(persons) % count,
            weights=draw.multinomial(count, np.full(count, 1 / count), replicates).astype(np.float64),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Searches:
    """The best comparisons of each query, -inf without any."""

    persons: Integers
    """(Q,): of the queries that are compared with anything."""
    present: Scores
    """(Q,): with images of its own person."""
    absent: Scores
    """(Q,): with images outside the part of its person."""
    images: Integers
    """(Q,): how many the latter are."""

    @classmethod
    def joined(cls, sets: Sequence[_Searches]) -> _Searches:
        """Return the searches of all sets, one set after the other."""
        return cls(
            persons=np.concatenate([one.persons for one in sets]),
            present=np.concatenate([one.present for one in sets]),
            absent=np.concatenate([one.absent for one in sets]),
            images=np.concatenate([one.images for one in sets]),
        )

    @property
    def alarms(self) -> Flags:
        """Queries that search for somebody who is not there."""
        return self.images > 0

    @property
    def mates(self) -> Flags:
        """Queries that search for somebody who is there."""
        return np.isfinite(self.present)

    @property
    def searched_images(self) -> float:
        searched = self.images[self.alarms]
        return float(searched.mean()) if len(searched) else 0.0

    def thresholds(self) -> dict[float, float]:
        """Return T at each supported FPIR."""
        best = np.sort(self.absent[self.alarms])[::-1]
        return {
            target: _next_above(best[allowed_errors(target, len(best))])
            for target in FALSE_ALARM_RATES
            if is_supported(target, len(best))
        }

    def curve(self) -> tuple[CurvePoint, ...]:
        """Return both error rates over the thresholds."""
        best, mates = np.sort(self.absent[self.alarms])[::-1], np.sort(self.present[self.mates])
        if not len(best) or not len(mates):
            return ()
        edges = np.unique([np.float32(_next_above(best[rank])) for rank in _curve_ranks(len(best))])
        return tuple(
            CurvePoint(
                threshold=float(edge),
                false=float((best >= edge).mean()),
                missed=float(np.searchsorted(mates, edge) / len(mates)),
            )
            for edge in edges
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Errors:
    """What is wrong at some thresholds, ascending; matches and misses by unit."""

    levels: Scores
    """(L,)."""
    matches: Integers
    """(L, U, U): impostor comparisons of query and image that reach it."""
    impostor: Integers
    """(U, U): all of them."""
    missed: Integers
    """(L, U): genuine comparisons that do not."""
    genuine: Integers
    """(U,): all of them."""
    edge_missed: Integers
    """(E,): genuine comparisons below each threshold of the curve."""


def _next_above(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(np.inf)))


def _falling(thresholds: Mapping[float, float]) -> list[tuple[float, float]]:
    return sorted(thresholds.items(), reverse=True)


def _curve_ranks(trials: int) -> list[int]:
    """Return how many errors each point of a curve allows, from most to least."""
    shares = 10.0 ** -(np.arange(STEPS_OF_DECADE * DECADES + 1) / STEPS_OF_DECADE)
    return sorted({min(allowed_errors(share, trials), trials - 1) for share in shares.tolist()}, reverse=True) * (
        trials > 0
    )


def _comparisons(one: ComparisonSet) -> Iterator[tuple[slice, Scores, Flags, Flags]]:
    """Yield the queries, similarities, and which comparisons are an impostor's and genuine, each (b, G)."""
    for first, scores, counted in one.blocks():
        if not np.isfinite(scores).all():
            raise UserError("a similarity is not a finite number; check the model's weights")
        queries = slice(first, first + len(scores))
        same = one.query_persons[queries, None] == one.gallery_persons
        yield queries, scores, counted & ~same, counted & same


def _first_round(one: ComparisonSet, parts: Integers, impostors: ScoreCounts) -> _Searches:
    """Count the impostors' scores and find the best of each query."""
    nothing = np.float32(-np.inf)
    present = np.full(len(one.query_persons), nothing, dtype=np.float32)
    absent, images = present.copy(), np.zeros(len(present), dtype=np.int64)
    compared = np.zeros(len(present), dtype=bool)
    enrolled = parts[one.gallery_persons]
    for queries, scores, impostor, genuine in _comparisons(one):
        impostors.add(scores.ravel(), scores[~impostor])
        elsewhere = impostor & (parts[one.query_persons[queries], None] != enrolled)
        present[queries] = np.where(genuine, scores, nothing).max(1, initial=nothing)
        absent[queries] = np.where(elsewhere, scores, nothing).max(1, initial=nothing)
        images[queries] = elsewhere.sum(1)
        compared[queries] = (impostor | genuine).any(1)
    return _Searches(
        persons=one.query_persons[compared], present=present[compared], absent=absent[compared], images=images[compared]
    )


def _second_round(sets: Sequence[ComparisonSet], impostors: ScoreCounts, ranks: Sequence[int]) -> None:
    """Count the bins of these ranks more finely."""
    impostors.start_refining(impostors.bins(ranks))
    for one in sets:
        for _, scores, impostor, _ in _comparisons(one):
            impostors.refine(scores.ravel(), impostor.ravel())


def _third_round(sets: Sequence[ComparisonSet], units: Integers, levels: Scores, edges: Scores) -> _Errors:
    """Count the errors at the thresholds. units (P,), levels (L,) and edges (E,) ascending."""
    count, size = int(units.max()) + 1, len(levels)
    reached = np.zeros((size, count * count), dtype=np.int64)
    impostor_pairs = np.zeros(count * count, dtype=np.int64)
    missed, edge_missed = np.zeros((size + 1, count), dtype=np.int64), np.zeros(len(edges) + 1, dtype=np.int64)
    for one in sets:
        images = units[one.gallery_persons]
        searched = np.bincount(images, minlength=count)
        for queries, scores, impostor, genuine in _comparisons(one):
            asking = units[one.query_persons[queries]]
            impostor_pairs += np.outer(np.bincount(asking, minlength=count), searched).ravel()
            impostor_pairs -= _pairs(~impostor, asking, images, count)
            for level in range(size):
                # Ever fewer are looked at: the levels ascend.
                impostor &= scores >= levels[level]
                reached[level] += _pairs(impostor, asking, images, count)
            values, owners = scores[genuine], np.broadcast_to(asking[:, None], scores.shape)[genuine]
            # The number of thresholds that a comparison reaches.
            np.add.at(missed, (np.searchsorted(levels, values, side="right"), owners), 1)
            np.add.at(edge_missed, np.searchsorted(edges, values, side="right"), 1)
    return _Errors(
        levels=levels,
        matches=reached.reshape(size, count, count),
        impostor=impostor_pairs.reshape(count, count),
        missed=np.cumsum(missed, axis=0)[:size],
        genuine=missed.sum(0),
        edge_missed=np.cumsum(edge_missed)[: len(edges)],
    )


def _pairs(chosen: Flags, asking: Integers, images: Integers, count: int) -> Integers:
    """Return how many comparisons (b, G) are chosen of each pair of units, flat (U * U,). asking (b,), images (G,)."""
    rows, columns = np.divmod(np.flatnonzero(chosen), chosen.shape[1])
    return np.bincount(asking[rows] * count + images[columns], minlength=count * count)


def _matching_point(target: float, threshold: float, errors: _Errors, draws: _Draws) -> OperatingPoint:
    level = int(np.searchsorted(errors.levels, np.float32(threshold)))
    drawn = draws.weights
    matches, impostor = errors.matches[level], errors.impostor
    return OperatingPoint(
        target=target,
        threshold=threshold,
        false=_rate(
            matches.sum(1), impostor.sum(1), ((drawn @ matches) * drawn).sum(1), ((drawn @ impostor) * drawn).sum(1)
        ),
        missed=_unit_rate(errors.missed[level], errors.genuine, drawn),
    )


def _search_point(target: float, threshold: float, searches: _Searches, draws: _Draws) -> OperatingPoint:
    def rate(wrong: Flags, made: Flags) -> Rate:
        """Return the share of searches made that went wrong."""
        owners, count = draws.units[searches.persons], draws.weights.shape[1]
        return _unit_rate(
            np.bincount(owners[wrong & made], minlength=count),
            np.bincount(owners[made], minlength=count),
            draws.weights,
        )

    edge = np.float32(threshold)
    return OperatingPoint(
        target=target,
        threshold=threshold,
        false=rate(searches.absent >= edge, searches.alarms),
        missed=rate(searches.present < edge, searches.mates),
    )


def _unit_rate(errors: Integers, trials: Integers, drawn: Floats) -> Rate:
    """errors, trials (U,)."""
    return _rate(errors, trials, drawn @ errors, drawn @ trials)


def _rate(by_unit: Integers, trials_by_unit: Integers, drawn_errors: Floats, drawn_trials: Floats) -> Rate:
    """by_unit, trials_by_unit (U,): of the query's unit; drawn_errors, drawn_trials (R,).

    Without an error, or with nothing else, an interval ends at the rule's bound; one person says nothing about others.
    """
    errors, trials = int(by_unit.sum()), int(trials_by_unit.sum())
    if not trials:
        return Rate(errors=0, trials=0)
    if np.count_nonzero(trials_by_unit) < 2:
        return Rate(errors=errors, trials=trials, low=0.0, high=1.0)
    possible = drawn_trials > 0
    low, high = np.percentile(drawn_errors[possible] / drawn_trials[possible], OUTSIDE)
    bound = Rate(errors=errors, trials=trials).bound
    if not errors:
        high = bound
    elif errors == trials:
        low = 1 - bound
    return Rate(errors=errors, trials=trials, low=float(low), high=float(high))
