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

from configs.vocabulary import Combination
from solver.evaluation.comparison import Comparison
from solver.evaluation.labels import QueryColumns, labels_of
from solver.evaluation.list_result import ListResult, ThresholdResult, stamped
from solver.evaluation.matching import Rescoring
from solver.evaluation.plan import Integers, ListPlan, SplitPlan
from solver.evaluation.ranked_split import RankedSplit
from solver.evaluation.relevance import Relevance
from utils.processes import ALONE, Processes
from utils.retrieval.annotation_vectors import AnnotationVectors
from utils.retrieval.metrics import METRICS, evaluate_blocks, evaluate_features, threshold_name
from utils.retrieval.options import MetricOptions
from utils.retrieval.rerank import rerank_distances
from utils.retrieval.result import RetrievalResult
from utils.retrieval.similarity import gallery_side, mirrored_mean, query_side


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankSpec:
    """k-reciprocal re-ranking; see utils.retrieval.rerank."""

    k1: int
    k2: int
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One way to measure every list."""

    stamp: str
    """What it is beside the plain way, empty = plain."""
    features: Tensor
    """(F, D)."""
    options: MetricOptions
    """Rule and curve are each list's own."""
    memory_mb: float
    """Budget of a block of similarities, and of re-ranking."""
    comparison: Comparison
    """How the features are compared."""
    mirrored: Tensor | None = None
    """(F, D): of the mirror images; the mean of both is compared. None = `features` alone."""
    rerank: RerankSpec | None = None
    """None = by similarity."""
    rescoring: Rescoring | None = None
    """Only lists that it serves are measured then. None = by similarity."""
    relevance: Relevance | None = None
    """Of mAP@tau, None = no thresholds."""
    processes: Processes = ALONE
    """Among which the queries are shared out; re-ranked lists as wholes."""

    def take(self, rows: Integers, combination: Combination) -> Tensor:
        """Return the features (n, d) of some rows (n,), in the part that answers queries of these modalities."""
        features = self.comparison.part(_take(self.features, rows), combination)
        if self.mirrored is None:
            return features
        mirrored = self.comparison.part(_take(self.mirrored, rows), combination)
        return mirrored_mean(features, mirrored, self.comparison.similarity)


def rank_split(plan: SplitPlan, measurement: Measurement, readable: NDArray[np.bool_]) -> tuple[ListResult, ...]:
    """Measure every list of a split that the measurement is for. readable (slots,): the others are left out. Raises
    UserError for an empty gallery.
    """
    results: dict[int, ListResult] = {}
    processes, groups = measurement.processes, _ranked_together(plan, measurement)
    whole = measurement.rerank is not None
    for lists in groups[processes.rank :: processes.count] if whole else groups:
        results |= _rank_lists(plan, lists, measurement, readable)
        processes.heed()
    for others in processes.told(results) if whole else ():
        results |= others
    return tuple(results[number] for number in sorted(results))


def ranked_split(
    plan: SplitPlan, features: Tensor, readable: NDArray[np.bool_], comparison: Comparison, instructed: bool
) -> RankedSplit:
    """Return what shows single queries of a split. instructed: the features follow its instructions."""
    gallery = np.flatnonzero(readable[plan.gallery])
    return RankedSplit(
        plan=plan,
        features=features,
        gallery_features=_take(features, plan.gallery[gallery]),
        gallery=gallery,
        comparison=comparison,
        instructed=instructed,
    )


def _ranked_together(plan: SplitPlan, measurement: Measurement) -> list[list[ListPlan]]:
    """Lists that share gallery, part of the features, rule and curve; each by itself where its queries among
    themselves, or its own share of matches, enter the result.
    """
    width = measurement.features.shape[1]
    grouped: dict[object, list[ListPlan]] = {}
    rescoring = measurement.rescoring
    for listed in plan.lists:
        if rescoring is not None and not rescoring.serves(listed.combination):
            continue
        alone = measurement.rerank is not None or measurement.relevance is not None
        columns = measurement.comparison.columns(listed.combination, width)
        rule = listed.queries.exclusion_rule, listed.queries.cmc
        key = listed.number if alone else (listed.queries.gallery, columns, *rule)
        grouped.setdefault(key, []).append(listed)
    return list(grouped.values())


def _rank_lists(
    plan: SplitPlan, lists: Sequence[ListPlan], measurement: Measurement, readable: NDArray[np.bool_]
) -> dict[int, ListResult]:
    """Measure lists that are ranked together; by their number."""
    first = lists[0]
    gallery = np.arange(len(plan.gallery)) if first.subset is None else first.subset
    gallery = gallery[readable[plan.gallery[gallery]]]
    kept = [np.flatnonzero(readable[listed.members].all(axis=1)) for listed in lists]
    measured, position = None, np.empty(0, dtype=np.int64)
    if any(len(entries) for entries in kept):
        query = QueryColumns.of(lists, kept)
        chosen, position = _distinct(query.compared(first.queries.exclusion_rule))
        if measurement.relevance is not None:
            # Equal images may ask for different things.
            chosen = position = np.arange(len(position))
        asked = _asked(measurement.relevance, first, kept[0])
        measured = _measure(plan, first, query.take(chosen), gallery, measurement, asked)
    shares = np.split(position, np.cumsum([len(entries) for entries in kept])[:-1])
    return {
        listed.number: _list_result(
            listed, _Spread(measured, entries, share, len(listed.rows)), len(gallery), measurement.stamp
        )
        for listed, entries, share in zip(lists, kept, shares)
    }


def _asked(relevance: Relevance | None, listed: ListPlan, kept: Integers) -> Mapping[str, AnnotationVectors] | None:
    """What the readable queries of a list ask for; None when it is not to be measured."""
    annotations = relevance.lists[listed.number] if relevance is not None else None
    return None if annotations is None else {kind: vectors.take(kept) for kind, vectors in annotations.items()}


def _measure(
    plan: SplitPlan,
    first: ListPlan,
    query: QueryColumns,
    gallery: Integers,
    measurement: Measurement,
    asked: Mapping[str, AnnotationVectors] | None,
) -> RetrievalResult:
    """Rank distinct queries in the gallery of their lists, of which `first` is one."""
    queries = measurement.take(query.rows, first.combination)
    images = measurement.take(plan.gallery[gallery], first.combination)
    similarity = measurement.comparison.similarity
    query_labels, gallery_labels = labels_of(plan, query, gallery)
    if measurement.relevance is not None and asked is not None:
        query_labels = replace(query_labels, instructions=asked)
        gallery_labels = replace(gallery_labels, instructions=measurement.relevance.gallery_part(gallery))
    options = replace(
        measurement.options,
        rule=first.queries.exclusion_rule,
        cmc=first.queries.cmc,
        thresholds=measurement.options.thresholds if asked is not None else (),
    )
    shape, memory_mb = (len(queries), len(images)), measurement.memory_mb
    if measurement.rerank is not None:
        spec = measurement.rerank
        reranked = rerank_distances(
            queries,
            images,
            k1=spec.k1,
            k2=spec.k2,
            weight=spec.weight,
            memory_mb=memory_mb,
            normalize=similarity == "cosine",
        )
        negated = ((start, -distances) for start, distances in reranked)
        return evaluate_blocks(negated, query_labels, gallery_labels, shape, options=options, memory_mb=memory_mb)
    features = query_side(queries, similarity), gallery_side(images, similarity)
    if measurement.rescoring is not None:
        scored = measurement.rescoring.blocks(features, query.rows, plan.gallery[gallery])
        return evaluate_blocks(scored, query_labels, gallery_labels, shape, options=options, memory_mb=memory_mb)
    return evaluate_features(
        *features,
        query_labels,
        gallery_labels,
        options=options,
        normalize=False,
        memory_mb=memory_mb,
        processes=measurement.processes,
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


@dataclass(frozen=True, slots=True)
class _Spread:
    """The results of distinct queries, spread over the entries of one list."""

    measured: RetrievalResult | None
    """None = no entry was ranked."""
    kept: Integers
    """Entries that were ranked."""
    share: Integers
    """The query of each of them."""
    total: int
    """Number of entries."""

    def values(self, per_query: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return values (total,), NaN for entries that were not ranked."""
        spread = np.full(self.total, np.nan)
        if per_query is not None:
            spread[self.kept] = per_query[self.share]
        return spread

    def first_rank(self) -> NDArray[np.int64]:
        """Return the rank of the first match, -1 for entries that were not ranked."""
        ranks = np.full(self.total, -1, dtype=np.int64)
        if self.measured is not None:
            ranks[self.kept] = self.measured.first_rank[self.share]
        return ranks

    def absent(self) -> NDArray[np.bool_]:
        """Return the entries whose person is not searched at all."""
        absent = np.zeros(self.total, dtype=bool)
        if self.measured is not None:
            absent[self.kept] = np.isin(self.share, self.measured.absent)
        return absent


def _list_result(listed: ListPlan, spread: _Spread, gallery: int, stamp: str) -> ListResult:
    queries, measured = listed.queries, spread.measured
    return ListResult(
        task=stamped(listed.name, stamp),
        combination=listed.combination,
        gallery=gallery,
        first_rank=spread.first_rank(),
        per_query={name: spread.values(None if measured is None else measured.per_query[name]) for name in METRICS},
        thresholds=_thresholds(spread),
        absent=spread.absent(),
        protocol=stamped(queries.protocol, stamp) if queries.protocol else "",
        group=queries.group,
        draws=queries.draws,
        stamp=stamp,
    )


def _thresholds(spread: _Spread) -> dict[float, ThresholdResult]:
    measured = spread.measured
    if measured is None:
        return {}
    results = {}
    for tau in measured.options.thresholds:
        name = threshold_name(tau)
        results[tau] = ThresholdResult(
            values=spread.values(measured.threshold_ap[name]),
            mean=measured.scores[name],
            queries=measured.threshold_queries[name],
            kept=round(measured.kept_share[name] * measured.pairs) if measured.pairs else 0,
            pairs=measured.pairs,
            unannotated=measured.unannotated,
        )
    return results
