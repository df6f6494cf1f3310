"""From splits to metrics: encode each source once, fuse each distinct set once, rank in blocks, average by group.

Nothing here knows a family: a model offers `encode`, `prepare` and `fuse_prepared` (model.interface.RetrievalModel).
Shapes: G gallery images, n entries of a query list, F distinct features, D embed_dim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.structures import EvalSplit
from model.interface import RetrievalModel
from solver.encoding import EncodedSources, EncoderSpec, Reader, SourceEncoder, batch_rows, encode_sources, inference
from solver.evaluation_plan import EvaluationPlan, Integers, ListPlan, SplitPlan, plan_evaluation
from solver.evaluation_result import EvaluationResult, ListResult, RankedSplit, SkippedSource
from solver.token_cache import MEGABYTE, CacheBudget, TokenCache
from utils.exclusion import Labels
from utils.metrics import MetricOptions, RetrievalResult, evaluate_features
from utils.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """How to evaluate; see configs.schema.EvalConfig.

    workers: loader processes. skip_unreadable: leave unreadable sources out, counted and listed, instead of stopping.
    """

    batch_size: int = 512
    precision: str = "fp32"
    ap: str = "sum"
    memory_mb: int = 1024
    cache_device_mb: int = 2048
    cache_host_mb: int = 8192
    max_rank: int = 50
    thresholds: tuple[float, ...] = ()
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

    @property
    def encoder(self) -> EncoderSpec:
        """The part that reading and encoding need."""
        return EncoderSpec(batch_size=self.batch_size, precision=self.precision, workers=self.workers,
                           skip_unreadable=self.skip_unreadable)

    @property
    def budget(self) -> CacheBudget:
        """Budget of the token cache."""
        return CacheBudget(device_bytes=self.cache_device_mb * MEGABYTE, host_bytes=self.cache_host_mb * MEGABYTE)


def evaluate_splits(
    model: RetrievalModel, splits: Sequence[EvalSplit], reader: Reader, spec: EvaluationSpec, device: torch.device
) -> tuple[EvaluationResult, ...]:
    """Evaluate `model` on splits; a source that several splits share is encoded once.

    Raises UserError for an unreadable source unless the specification skips it.
    """
    started = time.perf_counter()
    plan = plan_evaluation(splits)
    encoder = SourceEncoder(model, reader, spec.encoder, device)
    with inference(model, device, spec.precision):
        encoded = encode_sources(encoder, plan.table, plan.needs_tokens(), spec.budget)
        encoded_at = time.perf_counter()
        try:
            features = torch.cat([encoded.pooled, fuse_sets(model, encoded, plan, spec)])
        finally:
            if encoded.cache is not None:
                encoded.cache.close()
    fused_at = time.perf_counter()
    counts = _counts(plan, encoded)
    cache = _cache_summary(encoded.cache)
    results = []
    for split in plan.splits:
        ranked_from = time.perf_counter()
        lists, ranked = _rank_split(split, features, _readable(plan, encoded), spec)
        seconds = {"encode": encoded_at - started, "fuse": fused_at - encoded_at, "rank": time.perf_counter() - ranked_from}
        results.append(EvaluationResult(
            name=split.split.name, protocol=split.split.protocol, lists=lists, missing_lists=split.split.missing_lists,
            ap_form=spec.ap, precision=spec.precision, counts=counts, cache=cache, skipped=_skipped(plan, encoded),
            seconds={name: round(value, 3) for name, value in seconds.items()}, ranked=ranked,
        ))
        logger.info("split %s: %d query lists, seconds %s", split.split.name, len(lists), results[-1].seconds)
    return tuple(results)


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
    if encoded.cache is None:
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


def _rank_split(
    plan: SplitPlan, features: Tensor, readable: NDArray[np.bool_], spec: EvaluationSpec
) -> tuple[tuple[ListResult, ...], RankedSplit]:
    """Rank each distinct (feature, person) of a split once and give every query list its share of the results."""
    gallery = np.flatnonzero(readable[plan.gallery])
    gallery_slots, gallery_ids = plan.gallery[gallery], plan.gallery_ids[gallery]
    kept = [np.flatnonzero(readable[entry.members].all(axis=1)) for entry in plan.lists]
    rows = _concatenate([entry.rows[index] for entry, index in zip(plan.lists, kept)])
    person_ids = _concatenate([entry.person_ids[index] for entry, index in zip(plan.lists, kept)])
    distinct_rows, distinct_ids, position = _distinct_queries(rows, person_ids)
    gallery_features = features[torch.from_numpy(gallery_slots).to(features.device)]
    metrics = None
    if len(rows):
        metrics = evaluate_features(
            features[torch.from_numpy(distinct_rows).to(features.device)], gallery_features, Labels(ids=distinct_ids), Labels(ids=gallery_ids),
            options=MetricOptions(ap=spec.ap, max_rank=spec.max_rank), memory_mb=spec.memory_mb,
        )
    bounds = np.cumsum([len(index) for index in kept])[:-1]
    shares = np.split(position, bounds) if kept else []
    lists = tuple(_list_result(entry, index, share, metrics, len(gallery))
                  for entry, index, share in zip(plan.lists, kept, shares))
    ranked = RankedSplit(features=features, gallery_features=gallery_features, gallery=gallery,
                         rows={entry.name: entry.rows for entry in plan.lists}, split=plan.split)
    return lists, ranked


def _distinct_queries(rows: Integers, person_ids: Integers) -> tuple[Integers, Integers, Integers]:
    """Return the distinct (feature row, person) pairs as rows (F,) and ids (F,), and the place (n,) of each query in them."""
    people, person_index = np.unique(person_ids, return_inverse=True)
    keys, position = np.unique(rows * max(1, len(people)) + person_index.reshape(-1), return_inverse=True)
    return keys // max(1, len(people)), people[keys % max(1, len(people))], position.reshape(-1)


def _concatenate(parts: Sequence[Integers]) -> Integers:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _list_result(entry: ListPlan, kept: Integers, share: Integers, metrics: RetrievalResult | None, gallery: int) -> ListResult:
    """Spread the distinct results over the entries of a list. Entries that were not ranked have rank -1."""
    total = len(entry.rows)
    first_rank = np.full(total, -1, dtype=np.int64)
    average_precision = np.full(total, np.nan)
    inverse_penalty = np.full(total, np.nan)
    if metrics is not None:
        first_rank[kept] = metrics.first_rank[share]
        average_precision[kept] = metrics.ap[share]
        inverse_penalty[kept] = metrics.inp[share]
    return ListResult(task=entry.name, combination=entry.combination, gallery=gallery, first_rank=first_rank,
                      average_precision=average_precision, inverse_penalty=inverse_penalty)


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
    return tuple(SkippedSource(source=plan.table.sources[slot], reason=reason) for slot, reason in sorted(encoded.failures.items()))
