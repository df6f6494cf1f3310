"""From splits to metrics: encode each source once, fuse each distinct set once, rank in blocks, average by group.

Nothing here knows a family: a model encodes (model.interface.RetrievalModel) and, for mixed queries, fuses (Fuses).
Shapes: G gallery images, n entries of a query list, F distinct features, D embed_dim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datasets.loading.readers import Reader, open_source
from datasets.structures import EvalSplit
from model.interface import Fuses, RetrievalModel
from solver.evaluation.encoding import (
    EncodedSources,
    EncoderSpec,
    SourceEncoder,
    batch_rows,
    encode_sources,
    inference,
    require_fusion,
)
from solver.evaluation.plan import EvaluationPlan, plan_evaluation
from solver.evaluation.ranking import Measurement, RerankSpec, rank_split, ranked_split
from solver.evaluation.relevance import Relevance, relevance_of
from solver.evaluation.result import EvaluationResult, SkippedSource
from solver.evaluation.token_cache import MEGABYTE, CacheBudget, TokenCache
from utils.errors import UserError
from utils.progress import progress_bar
from utils.retrieval.metrics import MetricOptions
from utils.retrieval.rerank import estimate_bytes

logger = logging.getLogger(__name__)

FLIP, RERANKED = "flip", "re-ranked"
"""Stamps of rows that are measured in another than the plain way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """How to evaluate; see configs.schema.EvalConfig.

    workers: loader processes. skip_unreadable: leave unreadable sources out, counted and listed, instead of stopping.
    mirror: encode mirror images.
    """

    batch_size: int = 512
    precision: str = "fp32"
    ap: str = "sum"
    memory_mb: int = 1024
    cache_device_mb: int = 2048
    cache_host_mb: int = 8192
    max_rank: int = 50
    thresholds: tuple[float, ...] = ()
    relevance: str = "tfidf"
    no_positive: Literal["zero", "zero_matched", "skip"] = "zero_matched"
    ap_depth: int = 0
    ap_topk: int = 0
    flip: bool = False
    rerank: bool = False
    rerank_k1: int = 20
    rerank_k2: int = 6
    rerank_lambda: float = 0.3
    workers: int = 0
    skip_unreadable: bool = False
    mirror: bool = False

    @property
    def encoder(self) -> EncoderSpec:
        """The part that reading and encoding need."""
        return EncoderSpec(
            batch_size=self.batch_size,
            precision=self.precision,
            workers=self.workers,
            skip_unreadable=self.skip_unreadable,
            mirror=self.mirror,
        )

    @property
    def topk_stamp(self) -> str:
        """Stamp of the rows with the released evaluator's AP."""
        return f"ap_topk={self.ap_topk}"

    @property
    def budget(self) -> CacheBudget:
        """Budget of the token cache."""
        return CacheBudget(device_bytes=self.cache_device_mb * MEGABYTE, host_bytes=self.cache_host_mb * MEGABYTE)


def evaluate_splits(
    model: RetrievalModel, splits: Sequence[EvalSplit], reader: Reader, spec: EvaluationSpec, device: torch.device
) -> tuple[EvaluationResult, ...]:
    """Evaluate `model` on splits; a source that several splits share is encoded once.

    Raises UserError for an unreadable source unless the specification skips it, and for re-ranking beyond the memory
    budget.
    """
    started = time.perf_counter()
    plan = plan_evaluation(splits, instructed=model.follows_instructions)
    require_fusion(model, plan)
    if spec.rerank:
        check_reranking(plan, spec)
    # What a user can correct is found before the images are read.
    relevances = [
        relevance_of(split, encoder=spec.relevance, read_clothes=open_source) if spec.thresholds else None
        for split in splits
    ]
    features, encoded, encoded_at = _features(model, plan, reader, spec, device)
    measurements = [_measurement(spec, "", features)]
    if spec.ap_topk:
        measurements.append(_measurement(spec, spec.topk_stamp, features))
    if spec.flip:
        mirrored, _, _ = _features(model, plan, reader, replace(spec, mirror=True), device)
        # Both are of length 1, so neither outweighs the other.
        measurements.append(_measurement(spec, FLIP, F.normalize(features, dim=1) + F.normalize(mirrored, dim=1)))
    if spec.rerank:
        measurements.append(_measurement(spec, RERANKED, features))
    fused_at = time.perf_counter()
    readable = _readable(plan, encoded)
    results = []
    for split, relevance in zip(plan.splits, relevances):
        ranked_from = time.perf_counter()
        lists = tuple(
            entry
            for measurement in measurements
            for entry in rank_split(split, replace(measurement, relevance=relevance), readable)
        )
        seconds = {
            "encode": encoded_at - started,
            "fuse": fused_at - encoded_at,
            "rank": time.perf_counter() - ranked_from,
        }
        results.append(
            EvaluationResult(
                name=split.split.name,
                protocol=split.split.protocol,
                lists=lists,
                missing_lists=split.split.missing_lists,
                ap_form=spec.ap,
                precision=spec.precision,
                counts=_counts(plan, encoded),
                cache=_cache_summary(encoded.cache),
                skipped=_skipped(plan, encoded),
                seconds={name: round(value, 3) for name, value in seconds.items()},
                ranked=ranked_split(split, features, readable),
                relevance=_relevance_summary(relevance, spec),
                stamps=_stamps(spec),
            )
        )
        logger.info("split %s: %d query lists, seconds %s", split.split.name, len(lists), results[-1].seconds)
    return tuple(results)


def _features(
    model: RetrievalModel, plan: EvaluationPlan, reader: Reader, spec: EvaluationSpec, device: torch.device
) -> tuple[Tensor, EncodedSources, float]:
    """Return the features (F, D) of all sources and sets, what was encoded, and when the sources were done."""
    encoder = SourceEncoder(model, reader, spec.encoder, device)
    with inference(model, device, spec.precision):
        encoded = encode_sources(encoder, plan.table, plan.needs_tokens(), spec.budget)
        encoded_at = time.perf_counter()
        try:
            features = torch.cat([encoded.pooled, fuse_sets(model, encoded, plan, spec)])
        finally:
            if encoded.cache is not None:
                encoded.cache.close()
    return features, encoded, encoded_at


def _measurement(spec: EvaluationSpec, stamp: str, features: Tensor) -> Measurement:
    options = MetricOptions(
        ap=spec.ap,
        max_rank=spec.max_rank,
        thresholds=spec.thresholds,
        no_positive=spec.no_positive,
        ap_depth=spec.ap_depth or None,
        ap_topk=spec.ap_topk if stamp == spec.topk_stamp else None,
    )
    rerank = RerankSpec(k1=spec.rerank_k1, k2=spec.rerank_k2, weight=spec.rerank_lambda) if stamp == RERANKED else None
    return Measurement(stamp=stamp, features=features, options=options, memory_mb=spec.memory_mb, rerank=rerank)


def _relevance_summary(relevance: Relevance | None, spec: EvaluationSpec) -> Mapping[str, object]:
    if relevance is None:
        return {}
    return {
        "encoder": relevance.name,
        "checksum": relevance.checksum,
        "thresholds": list(spec.thresholds),
        "no_positive": spec.no_positive,
    }


def _stamps(spec: EvaluationSpec) -> Mapping[str, str]:
    """What each stamp means, in the order of the rows."""
    found = {}
    if spec.ap_topk:
        found[spec.topk_stamp] = (
            f"average precision as the released IRM evaluator's: it sees the first {spec.ap_topk} images only, before "
            "the exclusion, and divides by the matches among them"
        )
    if spec.flip:
        found[FLIP] = "a feature is the mean of the image's and of its mirror image's, each of length 1"
    if spec.rerank:
        found[RERANKED] = (
            f"k-reciprocal re-ranking of each list by itself, k1 {spec.rerank_k1}, k2 {spec.rerank_k2}, weight of the "
            f"original distance {spec.rerank_lambda:g}"
        )
    return found


def check_reranking(plan: EvaluationPlan, spec: EvaluationSpec) -> None:
    """Raise UserError, before anything is encoded, for a list whose re-ranking would exceed the memory budget."""
    for split in plan.splits:
        for entry in split.lists:
            gallery = len(split.gallery) if entry.subset is None else len(entry.subset)
            needed = estimate_bytes(len(entry.rows), gallery, spec.rerank_k1, spec.rerank_k2) / MEGABYTE
            if needed > spec.memory_mb:
                raise UserError(
                    f"eval.rerank: {entry.name} with {len(entry.rows):,} queries and {gallery:,} gallery images takes "
                    f"up to {needed:,.0f} MB, more than eval.memory_mb={spec.memory_mb}; raise it, lower "
                    "eval.rerank_k1 or set eval.rerank=false"
                )


def evaluate_split(
    model: RetrievalModel, split: EvalSplit, reader: Reader, spec: EvaluationSpec, device: torch.device
) -> EvaluationResult:
    """Evaluate one split; see `evaluate_splits`."""
    return evaluate_splits(model, [split], reader, spec, device)[0]


def fuse_sets(model: RetrievalModel, encoded: EncodedSources, plan: EvaluationPlan, spec: EvaluationSpec) -> Tensor:
    """Fuse every distinct set of the plan into (num_sets, D) float32; sets with an unreadable member stay zero.

    Sets whose members have the same token counts share batches, whatever their modalities.
    """
    fused = torch.zeros((plan.num_sets, model.embed_dim), dtype=torch.float32, device=encoded.pooled.device)
    if encoded.cache is None or not isinstance(model, Fuses):
        return fused
    batches = _fusion_batches(plan, encoded, spec)
    with progress_bar(None, plan.num_sets, "fuse", "query") as bar:
        for rows, members in batches:
            prepared = _gather_members(encoded.cache, members)
            if not encoded.cache.prepared:
                prepared = model.prepare(prepared)
            fused.index_copy_(0, rows.to(fused.device), model.fuse_prepared(prepared).float())
            bar.update(len(rows))
    return fused


def _gather_members(cache: TokenCache, members: Tensor) -> Tensor:
    """Return the tokens of sets (B, size) of slots, member after member: (B, S, K)."""
    return torch.cat([cache.gather(column) for column in members.unbind(1)], dim=1)


def _fusion_batches(plan: EvaluationPlan, encoded: EncodedSources, spec: EvaluationSpec) -> list[tuple[Tensor, Tensor]]:
    """Return (rows (B,), members (B, size)) of every batch; all sets of a batch have equal token counts."""
    cache = encoded.cache
    assert cache is not None
    readable = torch.from_numpy(_readable(plan, encoded))
    by_lengths: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for slots in plan.sets.values():
        members = torch.from_numpy(slots)
        complete = readable[members].all(dim=1).nonzero().squeeze(1)
        if len(complete):
            lengths = tuple(cache.length(int(slot)) for slot in members[complete[0]])
            by_lengths.setdefault(lengths, []).append((complete + start, members[complete]))
        start += len(slots)
    batches: list[tuple[Tensor, Tensor]] = []
    for lengths, parts in by_lengths.items():
        rows, members = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        size = batch_rows(sum(lengths), spec.batch_size, cache.device)
        batches.extend(zip(rows.split(size), members.split(size)))
    return batches


def _readable(plan: EvaluationPlan, encoded: EncodedSources) -> NDArray[np.bool_]:
    readable = np.ones(len(plan.table), dtype=bool)
    readable[list(encoded.failures)] = False
    return readable


def _counts(plan: EvaluationPlan, encoded: EncodedSources) -> Mapping[str, object]:
    return {
        "sources_encoded": {modality.value: count for modality, count in encoded.encoded.items()},
        "sources_encoded_total": sum(encoded.encoded.values()),
        "query_list_entries": plan.num_entries,
        "mixed_entries": plan.num_mixed_entries,
        "distinct_sets_fused": plan.num_sets,
    }


def _cache_summary(cache: TokenCache | None) -> Mapping[str, object]:
    if cache is None:
        return {"stored": "nothing"}
    return {"stored": "prepared tokens" if cache.prepared else "plain tokens", "mb": cache.used_mb}


def _skipped(plan: EvaluationPlan, encoded: EncodedSources) -> tuple[SkippedSource, ...]:
    return tuple(
        SkippedSource(source=plan.table.sources[slot], reason=reason)
        for slot, reason in sorted(encoded.failures.items())
    )
