"""Ranking the query lists of a split: each distinct query once in each part of the gallery, under each rule.

Shapes: G gallery images, n entries of a query list, F features, U distinct queries of lists that are ranked together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from solver.evaluation.plan import Integers, ListPlan, SplitPlan
from solver.evaluation.relevance import Relevance
from solver.evaluation.result import ListResult, RankedSplit, ThresholdResult, stamped
from utils.retrieval.annotation_vectors import AnnotationVectors
from utils.retrieval.exclusion import Labels, get_rule
from utils.retrieval.metrics import MetricOptions, RetrievalResult, evaluate_blocks, evaluate_features, threshold_name
from utils.retrieval.rerank import rerank_distances


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankSpec:
    """k-reciprocal re-ranking; see utils.retrieval.rerank."""

    k1: int
    k2: int
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One way to measure every list. stamp: what it is beside the plain way, empty = plain. features (F, D).

    options: rule and curve are each list's own. memory_mb: budget of a block of similarities, and of re-ranking.
    relevance: of mAP@tau, None = no thresholds.
    """

    stamp: str
    features: Tensor
    options: MetricOptions
    memory_mb: float
    rerank: RerankSpec | None = None
    relevance: Relevance | None = None


def rank_split(plan: SplitPlan, measurement: Measurement, readable: NDArray[np.bool_]) -> tuple[ListResult, ...]:
    """Measure every list of a split. readable (slots,): the others are left out. Raises UserError for an empty
    gallery.
    """
    results: dict[int, ListResult] = {}
    for lists in _ranked_together(plan, measurement):
        results |= _rank_lists(plan, lists, measurement, readable)
    return tuple(results[number] for number in range(len(plan.lists)))


def ranked_split(plan: SplitPlan, features: Tensor, readable: NDArray[np.bool_]) -> RankedSplit:
    """Return what shows single queries of a split."""
    gallery = np.flatnonzero(readable[plan.gallery])
    return RankedSplit(
        split=plan.split,
        features=features,
        gallery_features=_take(features, plan.gallery[gallery]),
        gallery=gallery,
        rows={entry.name: entry.rows for entry in plan.lists},
    )


def _ranked_together(plan: SplitPlan, measurement: Measurement) -> list[list[ListPlan]]:
    """Lists that share gallery, rule and curve; each by itself where its queries among themselves, or its own share of
    matches, enter the result."""
    grouped: dict[object, list[ListPlan]] = {}
    for entry in plan.lists:
        alone = measurement.rerank is not None or measurement.relevance is not None
        key = entry.number if alone else (entry.queries.gallery, entry.queries.exclusion_rule, entry.queries.cmc)
        grouped.setdefault(key, []).append(entry)
    return list(grouped.values())


def _rank_lists(
    plan: SplitPlan, lists: Sequence[ListPlan], measurement: Measurement, readable: NDArray[np.bool_]
) -> dict[int, ListResult]:
    first = lists[0]
    gallery = np.arange(len(plan.gallery)) if first.subset is None else first.subset
    gallery = gallery[readable[plan.gallery[gallery]]]
    kept = [np.flatnonzero(readable[entry.members].all(axis=1)) for entry in lists]
    found, position = None, np.empty(0, dtype=np.int64)
    if any(len(index) for index in kept):
        needs = get_rule(first.queries.exclusion_rule).needs
        columns = {
            name: np.concatenate([getattr(entry, name)[index] for entry, index in zip(lists, kept)])
            for name in ("rows", "person_ids", "camera_ids", "clothes_ids", "items")
        }
        compared = [
            "rows",
            "person_ids",
            *(name for name, need in (("camera_ids", "cameras"), ("clothes_ids", "clothes")) if need in needs),
        ]
        chosen, position = _distinct([columns[name] for name in compared])
        if measurement.relevance is not None:
            # Equal images may ask for different things.
            chosen = position = np.arange(len(position))
        query = {name: column[chosen] for name, column in columns.items()}
        asked = _asked(measurement.relevance, first, kept[0])
        found = _measure(plan, first, query, gallery, measurement, asked)
    shares = np.split(position, np.cumsum([len(index) for index in kept])[:-1])
    return {
        entry.number: _list_result(entry, index, share, found, len(gallery), measurement)
        for entry, index, share in zip(lists, kept, shares)
    }


def _asked(relevance: Relevance | None, entry: ListPlan, kept: Integers) -> Mapping[str, AnnotationVectors] | None:
    """What the readable queries of a list ask for; None when it is not to be measured."""
    annotations = relevance.lists[entry.number] if relevance is not None else None
    return None if annotations is None else {kind: found.take(kept) for kind, found in annotations.items()}


def _measure(
    plan: SplitPlan,
    first: ListPlan,
    query: dict[str, Integers],
    gallery: Integers,
    measurement: Measurement,
    asked: Mapping[str, AnnotationVectors] | None,
) -> RetrievalResult:
    features, relevance = measurement.features, measurement.relevance
    sides = _take(features, query["rows"]), _take(features, plan.gallery[gallery])
    items = query["items"], plan.gallery_items[gallery]
    finds_itself = bool(np.isin(items[0][items[0] >= 0], items[1]).any())
    labels = [
        Labels(
            ids=query["person_ids"],
            cameras=query["camera_ids"],
            clothes=query["clothes_ids"],
            items=items[0] if finds_itself else None,
            instructions=asked,
        ),
        Labels(
            ids=plan.gallery_ids[gallery],
            cameras=plan.gallery_cameras[gallery],
            clothes=plan.gallery_clothes[gallery],
            items=items[1] if finds_itself else None,
            instructions=relevance.gallery_part(gallery) if relevance is not None and asked is not None else None,
        ),
    ]
    options = replace(
        measurement.options,
        rule=first.queries.exclusion_rule,
        cmc=first.queries.cmc,
        thresholds=measurement.options.thresholds if asked is not None else (),
    )
    if measurement.rerank is None:
        return evaluate_features(*sides, *labels, options=options, memory_mb=measurement.memory_mb)
    spec = measurement.rerank
    blocks = rerank_distances(*sides, k1=spec.k1, k2=spec.k2, weight=spec.weight, memory_mb=measurement.memory_mb)
    return evaluate_blocks(
        ((start, -distances) for start, distances in blocks),
        *labels,
        (len(sides[0]), len(sides[1])),
        options=options,
        memory_mb=measurement.memory_mb,
    )


def _distinct(columns: Sequence[Integers]) -> tuple[Integers, Integers]:
    """Return the index of the first of each distinct tuple of the columns (n,), and for each entry its place among
    these.
    """
    keys = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, codes = np.unique(column, return_inverse=True)
        # Numbered anew at every column, so that the product of the counts cannot overflow.
        keys = np.unique(keys * len(values) + codes.reshape(-1), return_inverse=True)[1].reshape(-1)
    _, first, position = np.unique(keys, return_index=True, return_inverse=True)
    return first, position.reshape(-1)


def _take(features: Tensor, rows: Integers) -> Tensor:
    return features[torch.from_numpy(rows).to(features.device)]


def _list_result(
    entry: ListPlan,
    kept: Integers,
    share: Integers,
    found: RetrievalResult | None,
    gallery: int,
    measurement: Measurement,
) -> ListResult:
    """Spread the distinct results over the entries of a list. Entries that were not ranked have rank -1."""
    total = len(entry.rows)
    first_rank = np.full(total, -1, dtype=np.int64)
    absent = np.zeros(total, dtype=bool)
    if found is not None:
        first_rank[kept] = found.first_rank[share]
        absent[kept] = np.isin(share, found.absent)
    queries = entry.queries
    precision = _spread(found.ap if found is not None else None, kept, share, total)
    if measurement.options.no_positive != "skip":
        # Matched, but without a positive within a cut.
        precision[(first_rank > 0) & np.isnan(precision)] = 0.0
    return ListResult(
        task=stamped(entry.name, measurement.stamp),
        combination=entry.combination,
        gallery=gallery,
        first_rank=first_rank,
        average_precision=precision,
        thresholds=_thresholds(found, kept, share, total),
        inverse_penalty=_spread(found.inp if found is not None else None, kept, share, total),
        absent=absent,
        protocol=stamped(queries.protocol, measurement.stamp) if queries.protocol else "",
        group=queries.group,
        stamp=measurement.stamp,
    )


def _thresholds(
    found: RetrievalResult | None, kept: Integers, share: Integers, total: int
) -> dict[float, ThresholdResult]:
    if found is None:
        return {}
    measured = {}
    for tau in found.options.thresholds:
        name = threshold_name(tau)
        kept_pairs = round(found.kept_share[name] * found.pairs) if found.pairs else 0
        measured[tau] = ThresholdResult(
            values=_spread(found.threshold_ap[name], kept, share, total),
            mean=found.scores[name],
            queries=found.threshold_queries[name],
            kept=kept_pairs,
            pairs=found.pairs,
            unannotated=found.unannotated,
        )
    return measured


def _spread(values: NDArray[np.float64] | None, kept: Integers, share: Integers, total: int) -> NDArray[np.float64]:
    spread = np.full(total, np.nan)
    if values is not None:
        spread[kept] = values[share]
    return spread
