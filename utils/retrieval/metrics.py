"""Retrieval metrics from a similarity matrix or from features: CMC, mAP, mINP and mAP at instruction thresholds.

Order of events for one query. The gallery is ranked by descending similarity, ties by gallery index; the query's own
image, known by `items`, is in no ranking at all. `ap_topk` cuts that ranking before the exclusion (a quirk of the
released IRM evaluator: matches beyond the cut are forgotten by AP). The exclusion rule drops items; ranks are counted
again without them. `ap_depth` cuts after the exclusion (the n of
mAP at a threshold). CMC and INP see the whole ranking after the exclusion, whatever AP is cut to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.retrieval.annotation_vectors import Annotations, PairCosines
from utils.retrieval.arrays import Array
from utils.retrieval.exclusion import Labels, comparable_labels, get_rule
from utils.retrieval.ranking import RankedMatches, RankingPlan, rank_blocks, rank_scores, rank_similarity

REPORTED_RANKS = (1, 5, 10)
# Rounding neither drops equal instructions at a threshold of 1 nor opposite ones at -1.
COSINE_SLACK = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricOptions:
    """What is measured; the module's docstring gives the order of the cuts and the exclusion.

    rule: name in utils.retrieval.exclusion. thresholds: tau of mAP@tau on instruction cosines. ap: `sum` = mean over
    the matches of the precision at their rank; `trapezoid` = Oxford's and Market-1501's form, the mean of the
    precisions before and at each match. cmc: `image` counts items, `identity` counts distinct persons (SYSU-MM01,
    LLCM). ap_depth, ap_topk: cuts after and before the exclusion. no_positive: a query that AP has no positive for (at
    a threshold or within a cut) counts as `zero`, or is skipped (`skip`). Under `zero`, mAP@tau is the mean over all
    queries, as in the paper; `zero_matched` leaves out those without any match, as mAP always does.
    """

    rule: str = "none"
    thresholds: tuple[float, ...] = ()
    ap: Literal["sum", "trapezoid"] = "sum"
    cmc: Literal["image", "identity"] = "image"
    max_rank: int = 50
    ap_depth: int | None = None
    ap_topk: int | None = None
    no_positive: Literal["zero", "zero_matched", "skip"] = "zero"

    def __post_init__(self) -> None:
        get_rule(self.rule)
        choices = {
            "ap": ("sum", "trapezoid"),
            "cmc": ("image", "identity"),
            "no_positive": ("zero", "zero_matched", "skip"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise UserError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(valid)}")
        for name in ("max_rank", "ap_depth", "ap_topk"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(f"{name} = {value!r}: must be a positive integer")
        if self.max_rank is None:
            raise UserError("max_rank = None: must be a positive integer")
        if not all(math.isfinite(tau) for tau in self.thresholds):
            raise UserError(f"thresholds = {self.thresholds!r}: each must be a finite number")


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalResult(Mapping[str, float]):
    """Metrics in percent: `result["mAP"]`, `result["R20"]`, `result["mAP@0.25"]`, `result.mINP`, `dict(result)`.

    cmc (max_rank,): percent of the queries with a match at that rank or before. ap, inp (Q,): percent, nan where
    undefined. first_rank (Q,): 1-based rank of the first match (place of the person under cmc `identity`), 0 = none.
    unmatched: indices of the queries without any match after the exclusion, which no mean but that of mAP@tau under
    `zero` contains; absent: those of them whose person the gallery does not hold at all. queries: number of the rest.
    gallery: number of items. threshold_ap, kept_share, threshold_queries: for each mAP@tau the per-query AP, the share
    of identity matches that tau keeps (1 = the threshold says nothing), and the number of queries in its mean. pairs:
    number of those matches, 0 without thresholds.
    unannotated, unannotated_items: pairs of a query and a match that lacks an annotation of the query's kind, so that
    no threshold keeps it, and the number of gallery items in them.
    A mean over no query is nan.
    """

    scores: Mapping[str, float]
    cmc: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    first_rank: np.ndarray
    unmatched: tuple[int, ...]
    absent: tuple[int, ...]
    queries: int
    gallery: int
    threshold_ap: Mapping[str, np.ndarray]
    kept_share: Mapping[str, float]
    threshold_queries: Mapping[str, int]
    pairs: int
    unannotated: int
    unannotated_items: int
    options: MetricOptions

    def __getitem__(self, name: str) -> float:
        if name in self.scores:
            return self.scores[name]
        if name.startswith("R") and name[1:].isdigit() and 1 <= int(name[1:]) <= len(self.cmc):
            return float(self.cmc[int(name[1:]) - 1])
        raise KeyError(f"{name}: not measured; there are {', '.join(self.scores)} and R1 to R{len(self.cmc)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def R1(self) -> float:
        """Rank-1 in percent."""
        return self.scores["R1"]

    @property
    def R5(self) -> float:
        """Rank-5 in percent."""
        return self.scores["R5"]

    @property
    def R10(self) -> float:
        """Rank-10 in percent."""
        return self.scores["R10"]

    @property
    def mAP(self) -> float:
        """Mean average precision in percent."""
        return self.scores["mAP"]

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty in percent."""
        return self.scores["mINP"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and lists; nan becomes None, so that it is valid JSON."""
        document: dict[str, Any] = {name: _plain(value) for name, value in self.scores.items()}
        document |= {
            "queries": self.queries,
            "gallery": self.gallery,
            "unmatched": list(self.unmatched),
            "absent": list(self.absent),
            "cmc": _plain(self.cmc),
        }
        if self.threshold_ap:
            document |= {
                "kept_share": {name: _plain(share) for name, share in self.kept_share.items()},
                "threshold_queries": dict(self.threshold_queries),
                "unannotated": self.unannotated,
                "unannotated_items": self.unannotated_items,
            }
        document["per_query"] = {"ap": _plain(self.ap), "inp": _plain(self.inp), "first_rank": _plain(self.first_rank)}
        document["per_query"] |= {name: _plain(values) for name, values in self.threshold_ap.items()}
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value


def average_precision(queries: np.ndarray, ranks: np.ndarray, count: int, form: str) -> np.ndarray:
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
    found, place = np.unique(queries, return_index=True)
    first[found] = ranks[place]
    return first


def threshold_name(tau: float) -> str:
    """Return the metric's name, for instance mAP@0.25."""
    return f"mAP@{tau:g}"


@dataclass
class _PerQuery:
    """Per-query values while blocks arrive; in [0, 1], nan where undefined. bare (G,): lacks an annotation asked
    for.
    """

    ap: np.ndarray
    inp: np.ndarray
    first_rank: np.ndarray
    threshold_ap: dict[float, np.ndarray]
    bare: np.ndarray
    pairs: int = 0
    bare_pairs: int = 0
    kept_pairs: dict[float, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, queries: int, gallery: int, thresholds: tuple[float, ...]) -> _PerQuery:
        blank = {tau: np.full(queries, np.nan) for tau in thresholds}
        return cls(
            ap=np.full(queries, np.nan),
            inp=np.full(queries, np.nan),
            first_rank=np.zeros(queries, dtype=np.int64),
            threshold_ap=blank,
            bare=np.zeros(gallery, dtype=bool),
            kept_pairs=dict.fromkeys(thresholds, 0),
        )

    def add(self, block: RankedMatches, options: MetricOptions, instructions: PairCosines | None) -> None:
        """Fill in the queries of one block."""
        rows = slice(block.first, block.first + block.count)
        first = first_ranks(block.queries, block.ranks, block.count)
        self.first_rank[rows] = first if block.identity_ranks is None else block.identity_ranks
        self.inp[rows] = inverse_negative_penalty(block.queries, block.ranks, block.count)
        within = np.ones(len(block.ranks), dtype=bool)
        if options.ap_topk is not None:
            within &= block.full_ranks <= options.ap_topk
        if options.ap_depth is not None:
            within &= block.ranks <= options.ap_depth
        self.ap[rows] = average_precision(block.queries[within], block.ranks[within], block.count, options.ap)
        if instructions is None:
            return
        self.pairs += len(block.ranks)
        cosines = instructions.cosines(block.queries + block.first, block.gallery)
        bare = np.isnan(cosines)
        self.bare_pairs += int(bare.sum())
        self.bare[block.gallery[bare]] = True
        for tau, values in self.threshold_ap.items():
            # nan, an item without an annotation of the query's kind, is above no threshold.
            relevant = cosines >= tau - COSINE_SLACK
            self.kept_pairs[tau] += int(relevant.sum())
            relevant &= within
            values[rows] = average_precision(block.queries[relevant], block.ranks[relevant], block.count, options.ap)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _mean_ap(ap: np.ndarray, matched: np.ndarray, policy: str) -> tuple[float, int]:
    """Mean of AP and the number of queries in it; nan entries are zero or skipped."""
    chosen = {"zero": np.ones_like(matched), "zero_matched": matched, "skip": ~np.isnan(ap)}[policy]
    return _mean(np.nan_to_num(ap[chosen], nan=0.0)), int(chosen.sum())


def _result(found: _PerQuery, absent: np.ndarray, gallery: int, options: MetricOptions) -> RetrievalResult:
    matched = found.first_rank > 0
    ranks = found.first_rank[matched]
    steps = np.arange(1, max(options.max_rank, *REPORTED_RANKS) + 1)
    reached = np.searchsorted(np.sort(ranks), steps, side="right")
    curve = reached / len(ranks) * 100 if len(ranks) else np.full(len(steps), np.nan)
    scores = {f"R{rank}": float(curve[rank - 1]) for rank in REPORTED_RANKS}
    plain_policy = "skip" if options.no_positive == "skip" else "zero_matched"
    scores["mAP"] = 100 * _mean_ap(found.ap, matched, plain_policy)[0]
    scores["mINP"] = 100 * _mean(found.inp[matched])
    threshold_ap, kept_share, threshold_queries = {}, {}, {}
    for tau, ap in found.threshold_ap.items():
        name = threshold_name(tau)
        mean, threshold_queries[name] = _mean_ap(ap, matched, options.no_positive)
        scores[name] = 100 * mean
        threshold_ap[name] = 100 * ap
        kept_share[name] = found.kept_pairs[tau] / found.pairs if found.pairs else math.nan
    unmatched = np.flatnonzero(~matched)
    return RetrievalResult(
        scores=scores,
        cmc=curve[: options.max_rank],
        ap=100 * found.ap,
        inp=100 * found.inp,
        first_rank=found.first_rank,
        unmatched=tuple(unmatched.tolist()),
        absent=tuple(unmatched[absent[unmatched]].tolist()),
        queries=len(ranks),
        gallery=gallery,
        threshold_ap=threshold_ap,
        kept_share=kept_share,
        threshold_queries=threshold_queries,
        pairs=found.pairs,
        unannotated=found.bare_pairs,
        unannotated_items=int(found.bare.sum()),
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
    blocks: Iterator[RankedMatches], plan: RankingPlan, instructions: PairCosines | None, options: MetricOptions
) -> RetrievalResult:
    found = _PerQuery.empty(len(plan.query.persons), len(plan.gallery.persons), options.thresholds)
    for block in blocks:
        found.add(block, options, instructions)
    absent = ~np.isin(plan.query.persons.numpy(), plan.gallery.persons.numpy())
    return _result(found, absent, len(plan.gallery.persons), options)


def _numbers(thresholds: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(tau) for tau in thresholds)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"thresholds = {thresholds!r}: give a list of numbers, for instance [0.25, 0.5, 0.75]"
        ) from error


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
    rule: str = "none",
    query_instructions: Annotations | None = None,
    gallery_instructions: Annotations | None = None,
    thresholds: Sequence[float] = (),
    ap: Literal["sum", "trapezoid"] = "sum",
    max_rank: int = 50,
    ap_depth: int | None = None,
    ap_topk: int | None = None,
    no_positive: Literal["zero", "zero_matched", "skip"] = "zero",
    cmc: Literal["image", "identity"] = "image",
    memory_mb: float = 256.0,
) -> RetrievalResult:
    """Return the metrics of a similarity matrix (Q, G), higher = more alike; lists, NumPy arrays or tensors.

    The ranking is cut to `ap_topk` before the exclusion and to `ap_depth` after it; `MetricOptions` explains the other
    keywords. Items tell images apart: a query never finds itself. Instructions are one vector per item, or vectors by
    kind. A query without any match after the exclusion is left out of every mean and listed in `unmatched`
    (mAP@tau under `no_positive="zero"` alone counts it, as 0). Half precision is ranked as float32.
    Raises UserError that names the argument which has the wrong length, shape or value.
    Sources: AP, CMC of the ReID5o reference; mINP of AGW; mAP@tau of IRM++ (OmniReID++), equations 1 and 2.
    """
    if not isinstance(similarity, (Tensor, np.ndarray)):
        try:
            similarity = np.asarray(similarity)
        except ValueError as error:
            raise UserError(
                "similarity has rows of different lengths; give one number per query and gallery item"
            ) from error
    if similarity.ndim != 2:
        raise UserError(f"similarity must be a (queries, gallery) matrix, but has shape {tuple(similarity.shape)}")
    if isinstance(similarity, np.ndarray) and similarity.dtype.kind not in "fiu":
        raise UserError(f"similarity must hold real numbers, not {similarity.dtype}")
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
    plan, instructions = _prepare(query, gallery, tuple(similarity.shape), options, memory_mb)
    return _evaluate(rank_similarity(similarity, plan), plan, instructions, options)


def evaluate_features(
    query_features: Tensor,
    gallery_features: Tensor,
    query: Labels,
    gallery: Labels,
    *,
    options: MetricOptions = MetricOptions(),
    normalize: bool = True,
    memory_mb: float = 256.0,
) -> RetrievalResult:
    """Return the metrics of features (Q, D) and (G, D), whose similarity never exists as a whole.

    Similarity is the cosine (with normalize; the inner product without), float32, computed on the gallery features'
    device for some queries at a time. Raises UserError as `evaluate` does. The result does not depend on
    `memory_mb`, the budget of the ranking.
    """
    for name, features in (("query_features", query_features), ("gallery_features", gallery_features)):
        if features.ndim != 2:
            raise UserError(f"{name} must be a matrix, one row per item, but has shape {tuple(features.shape)}")
    if query_features.shape[1] != gallery_features.shape[1]:
        raise UserError(
            f"query_features have {query_features.shape[1]} dimensions and gallery_features "
            f"{gallery_features.shape[1]}; both must come from one model"
        )
    shape = (len(query_features), len(gallery_features))
    plan, instructions = _prepare(query, gallery, shape, options, memory_mb)
    if normalize:
        query_features, gallery_features = (
            torch.nn.functional.normalize(features.detach().float(), dim=1)
            for features in (query_features, gallery_features)
        )
    return _evaluate(rank_blocks(query_features, gallery_features, plan), plan, instructions, options)


def evaluate_blocks(
    blocks: Iterable[tuple[int, Tensor]],
    query: Labels,
    gallery: Labels,
    shape: tuple[int, int],
    *,
    options: MetricOptions = MetricOptions(),
    memory_mb: float = 256.0,
) -> RetrievalResult:
    """Return the metrics of a similarity (Q, G) = `shape` that arrives in blocks of rows: (first query, (b, G)), in
    order.

    For re-ranking: negate the distances of `utils.retrieval.rerank.rerank_distances`. Raises UserError as `evaluate`
    does, and when the blocks do not hold every query once.
    """
    plan, instructions = _prepare(query, gallery, shape, options, memory_mb)
    return _evaluate(rank_scores(blocks, plan), plan, instructions, options)
