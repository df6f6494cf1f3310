"""Error rates of the comparisons behind an evaluation, for each combination of modalities and for all together.

A query counts once for each combination, in whatever order its parts are listed and in however many lists it is, and so
does each of its comparisons: with the images that at least one of these lists compares it with, after their exclusion
rules. Lists that repeat one measurement (draws of a gallery) are one search of all their galleries here.

Shapes: Q distinct queries of a combination, G readable gallery images, b queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from configs.vocabulary import Combination, combination_name
from solver.evaluation.labels import QueryColumns, labels_of
from solver.evaluation.plan import FUSION_ORDER, Integers, ListPlan
from solver.evaluation.ranked_split import RankedSplit
from solver.evaluation.result import EvaluationResult
from utils.retrieval.error_rates import Thresholds, Verification
from utils.retrieval.exclusion import LabelBlock, comparable_labels, excluded, get_rule
from utils.retrieval.ranking import products
from utils.retrieval.verification import Block, ComparisonSet, verify

POOLED = "pooled"
SEED = 20250611
"""Of the parts of the persons and of the intervals; fixed, so that runs with different seeds are compared alike."""
BLOCK_COMPARISONS = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRates:
    """The error rates of a split."""

    combinations: Mapping[str, Verification]
    """By name of the combination, see `rate_name`."""
    pooled: Verification
    """Of all their comparisons together."""
    persons: int
    """How many are asked for."""

    def rows(self) -> dict[str, Verification]:
        """Return the combinations and, of several, the pooled one behind them."""
        return {**self.combinations, **({POOLED: self.pooled} if len(self.combinations) > 1 else {})}


def rate_name(combination: Combination) -> str:
    """Return the name of a combination whatever the order of its parts: NIR+TEXT for TEXT+NIR."""
    return combination_name(tuple(sorted(combination, key=FUSION_ORDER.__getitem__)))


def error_rates(result: EvaluationResult, thresholds: Mapping[str, Thresholds] | None = None) -> ErrorRates:
    """Measure the comparisons of an evaluated split.

    thresholds: by name of the combination and POOLED; None = they are set on these very comparisons. Raises UserError
    when nothing is compared.
    """
    ranked = result.ranked
    readable = [np.flatnonzero(listed.first_rank >= 0) for listed in result.plain_lists]
    grouped: dict[str, list[int]] = {}
    for listed in ranked.plan.lists:
        if len(readable[listed.number]):
            grouped.setdefault(rate_name(listed.combination), []).append(listed.number)
    numbers = np.unique(np.concatenate([ranked.plan.gallery_ids, *(listed.person_ids for listed in ranked.plan.lists)]))
    sets = {
        name: _comparisons(ranked, [ranked.plan.lists[place] for place in places], readable, numbers)
        for name, places in grouped.items()
    }

    def measured(name: str, compared: Sequence[ComparisonSet]) -> Verification:
        given = None if thresholds is None else thresholds.get(name, Thresholds())
        return verify(compared, persons=len(numbers), seed=SEED, thresholds=given)

    pooled = measured(POOLED, list(sets.values()))
    return ErrorRates(
        combinations={name: measured(name, [one]) for name, one in sets.items()}, pooled=pooled, persons=pooled.persons
    )


def _comparisons(
    ranked: RankedSplit, lists: Sequence[ListPlan], readable: Sequence[Integers], numbers: Integers
) -> ComparisonSet:
    """Return what is compared by lists of one combination. numbers: the persons, sorted."""
    plan, kind = ranked.plan, lists[0].combination
    every = QueryColumns.of(lists, [readable[listed.number] for listed in lists])
    owners = np.repeat(np.arange(len(lists)), [len(readable[listed.number]) for listed in lists])
    keys = np.stack([every.rows, every.person_ids, every.camera_ids, every.clothes_ids], axis=1)
    _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    query = every.take(first)
    asks = np.zeros((len(lists), len(first)), dtype=bool)
    asks[owners, place.reshape(-1)] = True
    searches = _searches(ranked, lists, asks, query)
    rows = torch.from_numpy(query.rows).to(ranked.features.device)
    queries = ranked.comparison.queries(ranked.features[rows], kind)
    images = ranked.comparison.gallery(ranked.gallery_features, kind)

    def blocks() -> Iterator[Block]:
        """Yield the comparisons of some queries at a time."""
        step = max(BLOCK_COMPARISONS // max(len(images), 1), 1)
        for start, scores in products(queries, images):
            values = scores.cpu().numpy()
            for offset in range(0, len(values), step):
                part = values[offset : offset + step]
                begin = start + offset
                counted = np.zeros(part.shape, dtype=bool)
                for search in searches:
                    counted |= search.counted(begin, begin + len(part))
                yield begin, part, counted

    return ComparisonSet(
        query_persons=np.searchsorted(numbers, query.person_ids),
        gallery_persons=np.searchsorted(numbers, plan.gallery_ids[ranked.gallery]),
        blocks=blocks,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """Lists of one rule and one gallery."""

    asks: NDArray[np.bool_]
    """(Q,): which queries they have."""
    within: NDArray[np.bool_]
    """(G,): which images they search."""
    rule: str
    query: LabelBlock
    gallery: LabelBlock

    def counted(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which comparisons (b, G) of the queries start to stop - 1 count."""
        dropped = excluded(self.query.rows(start, stop), self.gallery, get_rule(self.rule)).numpy()
        return self.asks[start:stop, None] & self.within & ~dropped


def _searches(
    ranked: RankedSplit, lists: Sequence[ListPlan], asks: NDArray[np.bool_], query: QueryColumns
) -> list[_Search]:
    """asks (lists, Q): which list has which query."""
    grouped: dict[tuple[str, tuple[int, ...] | None], NDArray[np.bool_]] = {}
    for listed, has in zip(lists, asks, strict=True):
        key = listed.queries.exclusion_rule, listed.queries.gallery
        grouped[key] = grouped[key] | has if key in grouped else has
    sides = labels_of(ranked.plan, query, ranked.gallery)
    shape = len(query.rows), len(ranked.gallery)
    found = []
    for (rule, subset), has in grouped.items():
        ours, theirs = comparable_labels(*sides, shape, get_rule(rule).needs)
        within = np.ones(len(ranked.gallery), dtype=bool) if subset is None else np.isin(ranked.gallery, subset)
        found.append(_Search(asks=has, within=within, rule=rule, query=ours, gallery=theirs))
    return found
