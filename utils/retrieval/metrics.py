"""Retrieval metrics from a similarity matrix or from features: CMC, mAP, mINP and mAP at instruction thresholds.

Order of events for one query. The gallery is ranked by descending similarity, ties by gallery index; the query's own
image, known by `items`, is in no ranking at all. `ap_topk` cuts that ranking before the exclusion (a quirk of the
released IRM evaluator: matches beyond the cut are forgotten by AP). The exclusion rule drops items; ranks are counted
again without them. `ap_depth` cuts after the exclusion (the n of mAP at a threshold). CMC and INP see the whole ranking
after the exclusion, whatever AP is cut to.

A new metric is a function of `QueryMatches` and a line in METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.processes import ALONE, Processes
from utils.retrieval.annotation_vectors import Annotations, PairCosines
from utils.retrieval.arrays import Array
from utils.retrieval.exclusion import Labels, comparable_labels, get_rule
from utils.retrieval.options import ApForm, CmcForm, MetricOptions, NoPositive
from utils.retrieval.ranking import (
    RankedMatches,
    RankingPlan,
    rank_blocks,
    rank_scores,
    rank_similarity,
    unit_length,
)
from utils.retrieval.result import RetrievalResult

# Rounding neither drops equal instructions at a threshold of 1 nor opposite ones at -1.
COSINE_SLACK = 1e-12
DEFAULT_MEMORY_MB = 256.0
DEFAULT_OPTIONS = MetricOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryMatches:
    """The ranked matches of a block of queries: what a metric looks at. M matches, by (query, rank)."""

    count: int
    """Queries of the block."""
    queries: np.ndarray
    """(M,) int64: the query of each match, from 0."""
    ranks: np.ndarray
    """(M,) int64: its rank from 1, after the exclusion."""
    first_rank: np.ndarray
    """(count,) int64: rank of the first match (place of the person under a CMC by identity), 0 = none."""
    within_cuts: np.ndarray
    """(M,) bool: counts for AP under ap_topk and ap_depth."""
    options: MetricOptions
    """What is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """How a metric is computed, summarised and shown."""

    per_query: Callable[[QueryMatches], np.ndarray]
    """Value (count,) float64 of each query of a block, nan for one that does not enter the metric."""
    summary: Callable[[np.ndarray], float]
    """One number of the values (n,), n >= 1, of the queries that enter it: a mean, a share, a median."""
    unit: str = "percent"
    """What a value is."""
    higher_is_better: bool = True
    """Whether a larger number is a better one."""
    shown: bool = False
    """A column of tables for readers: the published layout. results.json, CSV and comparisons have all metrics."""
    array: str = ""
    """Name of its values in per-query files; empty = they follow from the rank of the first match, which is there."""

    def summarise(self, values: np.ndarray) -> float:
        """Return one number of the values (Q,) of all queries; nan when none enters it."""
        entering = values[~np.isnan(values)]
        return self.summary(entering) if len(entering) else float("nan")


def mean(values: np.ndarray) -> float:
    """Mean over the queries."""
    return float(values.mean())


def median(values: np.ndarray) -> float:
    """Middle value of the queries; for an even number the mean of the two in the middle."""
    return float(np.median(values))


def share(values: np.ndarray) -> float:
    """Percent of the queries with a value above 0."""
    return 100.0 * float((values > 0).mean())


def average_precision(queries: np.ndarray, ranks: np.ndarray, count: int, form: ApForm) -> np.ndarray:
    """AP in [0, 1] of each of `count` queries from the ranks of its positives; nan for a query without any.

    queries, ranks (M,): by (query, rank). `sum`: mean over the positives of i / rank_i. `trapezoid`: mean of
    ((i - 1) / (rank_i - 1) + i / rank_i) / 2, where the first term is 1 at rank 1. Float64.
    """
    totals = np.bincount(queries, minlength=count)
    position = np.arange(1, len(queries) + 1) - np.repeat(np.cumsum(totals) - totals, totals)
    precision = position / ranks
    if form == "trapezoid":
        before = np.divide(position - 1, ranks - 1, out=np.ones(len(ranks)), where=ranks > 1)
        precision = (before + precision) / 2
    sums = np.bincount(queries, weights=precision, minlength=count)
    return np.divide(sums, totals, out=np.full(count, np.nan), where=totals > 0)


def inverse_negative_penalty(queries: np.ndarray, ranks: np.ndarray, count: int) -> np.ndarray:
    """INP in [0, 1] of each query: number of matches / rank of the last one; nan without any. Source: AGW."""
    totals = np.bincount(queries, minlength=count)
    matched = totals > 0
    last = np.ones(count)
    last[matched] = ranks[np.cumsum(totals)[matched] - 1]
    return np.where(matched, totals / last, np.nan)


def first_ranks(queries: np.ndarray, ranks: np.ndarray, count: int) -> np.ndarray:
    """Rank of the first match of each query, (count,) int64; 0 without any."""
    first = np.zeros(count, dtype=np.int64)
    matched, position = np.unique(queries, return_index=True)
    first[matched] = ranks[position]
    return first


def rank_share(depth: int, *, shown: bool = False) -> Metric:
    """Rank-`depth`: the share of the queries whose first match has that rank or a better one."""

    def per_query(matches: QueryMatches) -> np.ndarray:
        return np.where(matches.first_rank > 0, 100.0 * (matches.first_rank <= depth), np.nan)

    return Metric(per_query=per_query, summary=share, shown=shown)


def _average_precisions(matches: QueryMatches) -> np.ndarray:
    counted, options = matches.within_cuts, matches.options
    values = 100 * average_precision(matches.queries[counted], matches.ranks[counted], matches.count, options.ap)
    if options.no_positive != "skip":
        values[(matches.first_rank > 0) & np.isnan(values)] = 0.0
    return values


def _inverse_penalties(matches: QueryMatches) -> np.ndarray:
    return 100 * inverse_negative_penalty(matches.queries, matches.ranks, matches.count)


def _matched_ranks(matches: QueryMatches) -> np.ndarray:
    return np.where(matches.first_rank > 0, matches.first_rank, np.nan)


METRICS: dict[str, Metric] = {
    "R1": rank_share(1, shown=True),
    "R5": rank_share(5, shown=True),
    "R10": rank_share(10, shown=True),
    "mAP": Metric(per_query=_average_precisions, summary=mean, shown=True, array="average_precision"),
    "mINP": Metric(per_query=_inverse_penalties, summary=mean, shown=True, array="inverse_penalty"),
    "R20": rank_share(20),
    "median_rank": Metric(per_query=_matched_ranks, summary=median, unit="rank", higher_is_better=False),
}
"""Everything that is measured of a ranking, in the order of the columns; mAP@tau stands beside them, by threshold."""

SHOWN_METRICS = tuple(name for name, metric in METRICS.items() if metric.shown)
"""Columns of tables for readers, those of the reference's table."""


def kept_at(cosines: np.ndarray, tau: float) -> np.ndarray:
    """Return which cosines of annotations a threshold keeps; nan, no annotation, is never kept."""
    return cosines >= tau - COSINE_SLACK


def threshold_name(tau: float) -> str:
    """Return the metric's name, for instance mAP@0.25."""
    return f"mAP@{tau:g}"


@dataclass
class _PerQuery:
    """Values of the queries while blocks arrive."""

    values: dict[str, np.ndarray]
    """By metric (Q,), nan where undefined."""
    first_rank: np.ndarray
    """(Q,) int64, 0 = no match."""
    threshold_ap: dict[float, np.ndarray]
    """By tau (Q,) in percent, nan without a positive."""
    bare: np.ndarray
    """(G,) bool: an item that lacks an annotation asked for."""
    pairs: int = 0
    bare_pairs: int = 0
    kept_pairs: dict[float, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, queries: int, gallery: int, thresholds: tuple[float, ...]) -> _PerQuery:
        """Return values that are filled in block by block: nan, rank 0 and no pair until then."""
        return cls(
            values={name: np.full(queries, np.nan) for name in METRICS},
            first_rank=np.zeros(queries, dtype=np.int64),
            threshold_ap={tau: np.full(queries, np.nan) for tau in thresholds},
            bare=np.zeros(gallery, dtype=bool),
            kept_pairs=dict.fromkeys(thresholds, 0),
        )

    def add(self, block: RankedMatches, options: MetricOptions, instructions: PairCosines | None) -> None:
        """Fill in the queries of one block."""
        rows = slice(block.first, block.first + block.count)
        first = first_ranks(block.queries, block.ranks, block.count)
        matches = QueryMatches(
            count=block.count,
            queries=block.queries,
            ranks=block.ranks,
            first_rank=first if block.identity_ranks is None else block.identity_ranks,
            within_cuts=_within_cuts(block, options),
            options=options,
        )
        self.first_rank[rows] = matches.first_rank
        for name, metric in METRICS.items():
            self.values[name][rows] = metric.per_query(matches)
        if instructions is not None:
            self._add_thresholds(block, matches, instructions)

    def take(self, others: Sequence[_PerQuery], rows: Sequence[slice]) -> None:
        """Fill in what others have measured. rows: the queries of each; those of the others are empty there."""
        for other, own in zip(others, rows, strict=True):
            self.first_rank[own] = other.first_rank[own]
            for name, values in self.values.items():
                values[own] = other.values[name][own]
            for tau, values in self.threshold_ap.items():
                values[own] = other.threshold_ap[tau][own]
            self.bare |= other.bare
            self.pairs += other.pairs
            self.bare_pairs += other.bare_pairs
            for tau in self.kept_pairs:
                self.kept_pairs[tau] += other.kept_pairs[tau]

    def _add_thresholds(self, block: RankedMatches, matches: QueryMatches, instructions: PairCosines) -> None:
        self.pairs += len(block.ranks)
        cosines = instructions.cosines(block.queries + block.first, block.gallery)
        bare = np.isnan(cosines)
        self.bare_pairs += int(bare.sum())
        self.bare[block.gallery[bare]] = True
        for tau, values in self.threshold_ap.items():
            # nan, an item without an annotation of the query's kind, is above no threshold.
            relevant = kept_at(cosines, tau)
            self.kept_pairs[tau] += int(relevant.sum())
            relevant &= matches.within_cuts
            values[block.first : block.first + block.count] = 100 * average_precision(
                block.queries[relevant], block.ranks[relevant], block.count, matches.options.ap
            )


def _within_cuts(block: RankedMatches, options: MetricOptions) -> np.ndarray:
    """(M,): the matches that AP counts."""
    within = np.ones(len(block.ranks), dtype=bool)
    if options.ap_topk is not None:
        assert block.full_ranks is not None
        within &= block.full_ranks <= options.ap_topk
    if options.ap_depth is not None:
        within &= block.ranks <= options.ap_depth
    return within


def _threshold_mean(ap: np.ndarray, matched: np.ndarray, policy: NoPositive) -> tuple[float, int]:
    """mAP@tau and the number of queries in it; undefined entries are zero or skipped."""
    chosen = {"zero": np.ones_like(matched), "zero_matched": matched, "skip": ~np.isnan(ap)}[policy]
    return METRICS["mAP"].summarise(np.nan_to_num(ap[chosen], nan=0.0)), int(chosen.sum())


def _result(measured: _PerQuery, absent: np.ndarray, gallery: int, options: MetricOptions) -> RetrievalResult:
    matched = measured.first_rank > 0
    ranks = measured.first_rank[matched]
    reached = np.searchsorted(np.sort(ranks), np.arange(1, options.max_rank + 1), side="right")
    scores = {name: metric.summarise(measured.values[name]) for name, metric in METRICS.items()}
    threshold_ap, kept_share, threshold_queries = {}, {}, {}
    for tau, ap in measured.threshold_ap.items():
        name = threshold_name(tau)
        scores[name], threshold_queries[name] = _threshold_mean(ap, matched, options.no_positive)
        threshold_ap[name] = ap
        kept_share[name] = measured.kept_pairs[tau] / measured.pairs if measured.pairs else float("nan")
    unmatched = np.flatnonzero(~matched)
    return RetrievalResult(
        scores=scores,
        per_query=measured.values,
        cmc=reached / len(ranks) * 100 if len(ranks) else np.full(options.max_rank, np.nan),
        first_rank=measured.first_rank,
        unmatched=tuple(unmatched.tolist()),
        absent=tuple(unmatched[absent[unmatched]].tolist()),
        queries=len(ranks),
        gallery=gallery,
        threshold_ap=threshold_ap,
        kept_share=kept_share,
        threshold_queries=threshold_queries,
        pairs=measured.pairs,
        unannotated=measured.bare_pairs,
        unannotated_items=int(measured.bare.sum()),
        options=options,
    )


def _prepare(
    query: Labels, gallery: Labels, shape: tuple[int, int], options: MetricOptions, memory_mb: float
) -> tuple[RankingPlan, PairCosines | None]:
    rule = get_rule(options.rule)
    if not memory_mb > 0:
        raise UserError(f"memory_mb = {memory_mb!r}: must be above 0")
    query_block, gallery_block = comparable_labels(query, gallery, shape, rule.needs)
    instructions = None
    if options.thresholds:
        if query.instructions is None or gallery.instructions is None:
            raise UserError("thresholds need query_instructions and gallery_instructions; give both or no thresholds")
        instructions = PairCosines(query.instructions, gallery.instructions, shape)
    return RankingPlan(
        query=query_block,
        gallery=gallery_block,
        rule=rule,
        full_ranks=options.ap_topk is not None,
        identity_ranks=options.cmc == "identity",
        memory_bytes=int(memory_mb * (1 << 20)),
    ), instructions


def _evaluate(
    blocks: Iterator[RankedMatches],
    plan: RankingPlan,
    instructions: PairCosines | None,
    options: MetricOptions,
    processes: Processes = ALONE,
) -> RetrievalResult:
    """processes: each of which has the blocks of its share of the queries."""
    shape = len(plan.query.persons), len(plan.gallery.persons)
    measured = _PerQuery.empty(*shape, options.thresholds)
    for block in blocks:
        measured.add(block, options, instructions)
    if processes.count > 1:
        own, measured = measured, _PerQuery.empty(*shape, options.thresholds)
        told = processes.told((processes.share(shape[0]), own))
        measured.take([part for _, part in told], [rows for rows, _ in told])
    absent = ~np.isin(plan.query.persons.numpy(), plan.gallery.persons.numpy())
    return _result(measured, absent, len(plan.gallery.persons), options)


def _numbers(thresholds: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(tau) for tau in thresholds)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"thresholds = {thresholds!r}: give a list of numbers, for instance [0.25, 0.5, 0.75]"
        ) from error


def _matrix(similarity: Array) -> Tensor | np.ndarray:
    """Raise UserError for what is no matrix of real numbers."""
    if not isinstance(similarity, (Tensor, np.ndarray)):
        try:
            similarity = np.asarray(similarity)
        except ValueError as error:
            raise UserError(
                "similarity has rows of different lengths; give one number per query and gallery item"
            ) from error
    if similarity.ndim != 2:
        raise UserError(f"similarity must be a (queries, gallery) matrix, but has shape {tuple(similarity.shape)}")
    _require_real(similarity, "similarity")
    return similarity


def _require_real(values: Tensor | np.ndarray, name: str) -> None:
    """Raise UserError for complex numbers and truth values."""
    if isinstance(values, Tensor):
        real = not values.is_complex() and values.dtype != torch.bool
    else:
        real = values.dtype.kind in "fiu"
    if not real:
        raise UserError(f"{name} must hold real numbers, not {str(values.dtype).removeprefix('torch.')}")


def evaluate(
    similarity: Array,
    query_ids: Array,
    gallery_ids: Array,
    *,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    query_clothes: Array | None = None,
    gallery_clothes: Array | None = None,
    query_items: Array | None = None,
    gallery_items: Array | None = None,
    rule: str = MetricOptions.rule,
    query_instructions: Annotations | None = None,
    gallery_instructions: Annotations | None = None,
    thresholds: Sequence[float] = (),
    ap: ApForm = MetricOptions.ap,
    max_rank: int = MetricOptions.max_rank,
    ap_depth: int | None = None,
    ap_topk: int | None = None,
    no_positive: NoPositive = MetricOptions.no_positive,
    cmc: CmcForm = MetricOptions.cmc,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> RetrievalResult:
    """Return the metrics of a similarity matrix (Q, G), higher = more alike; lists, NumPy arrays or tensors.

    The ranking is cut to `ap_topk` before the exclusion and to `ap_depth` after it; `MetricOptions` explains the other
    keywords. Items tell images apart: a query never finds itself. Instructions are one vector per item, or vectors by
    kind. A query without any match after the exclusion is left out of every mean and listed in `unmatched`
    (mAP@tau under `no_positive="zero"`, the paper's form, alone counts it, as 0). Half precision is ranked as float32.
    Raises UserError that names the argument which has the wrong length, shape or value.
    Sources: AP, CMC of the ReID5o reference; mINP of AGW; mAP@tau of IRM++ (OmniReID++), equations 1 and 2.
    """
    matrix = _matrix(similarity)
    options = MetricOptions(
        rule=rule,
        thresholds=_numbers(thresholds),
        ap=ap,
        cmc=cmc,
        max_rank=max_rank,
        ap_depth=ap_depth,
        ap_topk=ap_topk,
        no_positive=no_positive,
    )
    query = Labels(
        ids=query_ids, cameras=query_cameras, clothes=query_clothes, items=query_items, instructions=query_instructions
    )
    gallery = Labels(
        ids=gallery_ids,
        cameras=gallery_cameras,
        clothes=gallery_clothes,
        items=gallery_items,
        instructions=gallery_instructions,
    )
    plan, instructions = _prepare(query, gallery, (matrix.shape[0], matrix.shape[1]), options, memory_mb)
    return _evaluate(rank_similarity(matrix, plan), plan, instructions, options)


def evaluate_features(
    query_features: Tensor,
    gallery_features: Tensor,
    query: Labels,
    gallery: Labels,
    *,
    options: MetricOptions = DEFAULT_OPTIONS,
    normalize: bool = True,
    memory_mb: float = DEFAULT_MEMORY_MB,
    processes: Processes = ALONE,
) -> RetrievalResult:
    """Return the metrics of features (Q, D) and (G, D), whose similarity never exists as a whole.

    Similarity is the cosine (with normalize; the inner product without), float32, computed on the gallery features'
    device for some queries at a time. Raises UserError as `evaluate` does. The result does not depend on
    `memory_mb`, the budget of the ranking. Several processes that have the same features each rank some queries.
    """
    for name, features in (("query_features", query_features), ("gallery_features", gallery_features)):
        if features.ndim != 2:
            raise UserError(f"{name} must be a matrix, one row per item, but has shape {tuple(features.shape)}")
        _require_real(features, name)
    if query_features.shape[1] != gallery_features.shape[1]:
        raise UserError(
            f"query_features have {query_features.shape[1]} dimensions and gallery_features "
            f"{gallery_features.shape[1]}; both must come from one model"
        )
    shape = (len(query_features), len(gallery_features))
    plan, instructions = _prepare(query, gallery, shape, options, memory_mb)
    if normalize:
        query_features, gallery_features = unit_length(query_features), unit_length(gallery_features)
    blocks = rank_blocks(query_features, gallery_features, plan, processes.share(shape[0]))
    return _evaluate(blocks, plan, instructions, options, processes)


def evaluate_blocks(
    blocks: Iterable[tuple[int, Tensor]],
    query: Labels,
    gallery: Labels,
    shape: tuple[int, int],
    *,
    options: MetricOptions = DEFAULT_OPTIONS,
    memory_mb: float = DEFAULT_MEMORY_MB,
) -> RetrievalResult:
    """Return the metrics of a similarity (Q, G) = `shape` that arrives in blocks of rows: (first query, (b, G)), in
    order.

    For re-ranking: negate the distances of `utils.retrieval.rerank.rerank_distances`. Raises UserError as `evaluate`
    does, and when the blocks do not hold every query once.
    """
    plan, instructions = _prepare(query, gallery, shape, options, memory_mb)
    return _evaluate(rank_scores(blocks, plan), plan, instructions, options)
