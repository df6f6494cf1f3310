"""From splits to metrics: encode each source once, fuse each distinct set once, rank in blocks, average by group.

Nothing here knows a family: a model encodes (model.interface.RetrievalModel) and, for mixed queries, fuses (Fuses).
Shapes: F distinct features, D embed_dim.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.loading.readers import Reader, open_source
from datasets.structures import EvalSplit
from model.interface import RetrievalModel
from solver.evaluation.comparison import Comparison
from solver.evaluation.features import PlanFeatures, encode_plan
from solver.evaluation.matching import Rescoring, check_rescoring, matched_slots
from solver.evaluation.plan import EvaluationPlan, SplitPlan, plan_evaluation
from solver.evaluation.ranking import Measurement, RerankSpec, rank_split, ranked_split
from solver.evaluation.relevance import Relevance, relevance_of
from solver.evaluation.result import EvaluationResult, SkippedSource
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.token_cache import MEGABYTE, TokenCache
from utils.errors import UserError
from utils.retrieval.options import MetricOptions
from utils.retrieval.rerank import estimate_bytes

logger = logging.getLogger(__name__)

FLIP, RERANKED = "flip", "re-ranked"
"""Stamps of rows that are measured in another than the plain way."""


def evaluate_split(
    model: RetrievalModel, split: EvalSplit, reader: Reader, spec: EvaluationSpec, device: torch.device
) -> EvaluationResult:
    """Evaluate one split; see `evaluate_splits`."""
    return evaluate_splits(model, [split], reader, spec, device)[0]


def evaluate_splits(
    model: RetrievalModel, splits: Sequence[EvalSplit], reader: Reader, spec: EvaluationSpec, device: torch.device
) -> tuple[EvaluationResult, ...]:
    """Evaluate `model` on splits; a source that several splits share is encoded once.

    Several processes do it together and all return the same, to the bit of one process whose cache of tokens is large
    enough. Raises UserError for an unreadable source unless the specification skips it, for re-ranking beyond the
    memory budget, and for scores of a matching head that the model does not have.
    """
    started = time.perf_counter()
    plan = plan_evaluation(splits, instructed=model.follows_instructions)
    # What a user can correct is found before the images are read.
    relevances = prepare_evaluation(plan, spec, model)
    matched = matched_slots(plan, model) if spec.config.rescore else None
    plain = encode_plan(model, plan, reader, spec, device, matched)
    with contextlib.closing(plain.encoded):
        comparison = Comparison.of(model)
        measurements = _measurements(spec, comparison, plain.features)
        if spec.config.flip:
            mirrored = encode_plan(model, plan, reader, replace(spec, mirror=True), device).features
            measurements.append(replace(measurements[0], stamp=FLIP, mirrored=mirrored))
        if spec.config.rerank:
            measurements.append(replace(measurements[0], stamp=RERANKED, rerank=_rerank_spec(spec)))
        if matched is not None:
            rescoring = Rescoring(
                depth=spec.config.rescore, model=model, encoded=plain.encoded, spec=spec, device=device
            )
            measurements.append(replace(measurements[0], stamp=_rescored_stamp(spec), rescoring=rescoring))
        shared = _Shared(
            plan=plan,
            spec=spec,
            plain=plain,
            comparison=comparison,
            instructed=model.follows_instructions,
            measurements=measurements,
            seconds={"encode": plain.encoded_at - started, "fuse": time.perf_counter() - plain.encoded_at},
        )
        return tuple(_evaluated(split, relevance, shared) for split, relevance in zip(plan.splits, relevances))


def prepare_evaluation(plan: EvaluationPlan, spec: EvaluationSpec, model: RetrievalModel) -> list[Relevance | None]:
    """Check the options against lists and model; return what is relevant in each split, None without thresholds.

    Raises UserError for whatever can be known before anything is encoded.
    """
    check_rescoring(model, spec.config.rescore)
    if spec.config.rerank:
        check_reranking(plan, spec)
    if not spec.config.thresholds:
        return [None for _ in plan.splits]
    return [
        relevance_of(planned.split, encoder=spec.config.relevance, read_clothes=open_source, processes=spec.processes)
        for planned in plan.splits
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shared:
    """What the splits of one evaluation have in common."""

    plan: EvaluationPlan
    spec: EvaluationSpec
    plain: PlanFeatures
    comparison: Comparison
    instructed: bool
    """The model follows instructions."""
    measurements: Sequence[Measurement]
    seconds: Mapping[str, float]


def _evaluated(split: SplitPlan, relevance: Relevance | None, shared: _Shared) -> EvaluationResult:
    """Rank one split in every way that is asked for."""
    started = time.perf_counter()
    plain, config = shared.plain, shared.spec.config
    lists = tuple(
        listed
        for measurement in shared.measurements
        for listed in rank_split(split, replace(measurement, relevance=relevance), plain.readable)
    )
    seconds = {**shared.seconds, "rank": time.perf_counter() - started}
    result = EvaluationResult(
        name=split.split.name,
        protocol=split.split.protocol,
        lists=lists,
        missing_lists=split.split.missing_lists,
        ap_form=config.ap,
        precision=config.precision,
        counts=_counts(shared.plan, plain),
        cache=_cache_summary(plain.encoded.cache),
        skipped=_skipped(shared.plan, plain),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        ranked=ranked_split(split, plain.features, plain.readable, shared.comparison, shared.instructed),
        relevance=_relevance_summary(relevance, shared.spec),
        stamps=_stamps(shared.spec, shared.comparison),
    )
    logger.info("split %s: %d query lists, seconds %s", split.split.name, len(lists), result.seconds)
    return result


def _measurements(spec: EvaluationSpec, comparison: Comparison, plain: Tensor) -> list[Measurement]:
    """The ways to measure every list from the plain features (F, D) alone, the plain one first."""
    config = spec.config
    options = MetricOptions(
        ap=config.ap,
        max_rank=config.max_rank,
        thresholds=config.thresholds,
        no_positive=config.no_positive,
        ap_depth=config.ap_depth or None,
    )
    first = Measurement(
        stamp="",
        features=plain,
        options=options,
        memory_mb=config.memory_mb,
        comparison=comparison,
        processes=spec.processes,
    )
    measurements = [first]
    if config.ap_topk:
        released = replace(options, ap_topk=config.ap_topk)
        measurements.append(replace(first, stamp=_topk_stamp(spec), options=released))
    return measurements


def _rerank_spec(spec: EvaluationSpec) -> RerankSpec:
    return RerankSpec(k1=spec.config.rerank_k1, k2=spec.config.rerank_k2, weight=spec.config.rerank_lambda)


def _topk_stamp(spec: EvaluationSpec) -> str:
    """Stamp of the rows with the released evaluator's AP."""
    return f"ap_topk={spec.config.ap_topk}"


def _rescored_stamp(spec: EvaluationSpec) -> str:
    """Stamp of the rows whose best images the matching head has scored again."""
    return f"matching top-{spec.config.rescore}"


def _stamps(spec: EvaluationSpec, comparison: Comparison) -> Mapping[str, str]:
    """What each stamp means, in the order of the rows."""
    config = spec.config
    meanings = {}
    if config.ap_topk:
        meanings[_topk_stamp(spec)] = (
            f"average precision as the released IRM evaluator's: it sees the first {config.ap_topk} images only, "
            "before the exclusion, and divides by the matches among them"
        )
    if config.flip:
        length = "each of length 1" if comparison.similarity == "cosine" else "both as they are"
        meanings[FLIP] = f"a feature is the mean of the image's and of its mirror image's, {length}"
    if config.rerank:
        meanings[RERANKED] = (
            f"k-reciprocal re-ranking of each list by itself, k1 {config.rerank_k1}, k2 {config.rerank_k2}, weight of "
            f"the original distance {config.rerank_lambda:g}"
        )
    if config.rescore:
        meanings[_rescored_stamp(spec)] = (
            f"the {config.rescore} best images of each query are scored again by the matching head and come first in "
            "that order, the others follow by similarity; only lists that the head serves have such rows"
        )
    return meanings


def check_reranking(plan: EvaluationPlan, spec: EvaluationSpec) -> None:
    """Raise UserError, before anything is encoded, for a list whose re-ranking would exceed the memory budget or asks
    for more neighbours than it has images.
    """
    config = spec.config
    neighbours = max(config.rerank_k1 + 1, config.rerank_k2)
    for split in plan.splits:
        for listed in split.lists:
            gallery = len(split.gallery) if listed.subset is None else len(listed.subset)
            needed = estimate_bytes(len(listed.rows), gallery, config.rerank_k1, config.rerank_k2) / MEGABYTE
            if listed.rows.size and neighbours > len(listed.rows) + gallery:
                raise UserError(
                    f"eval.rerank: {listed.name} has {len(listed.rows) + gallery} queries and gallery images, and "
                    f"eval.rerank_k1={config.rerank_k1}, eval.rerank_k2={config.rerank_k2} ask for lists of "
                    f"{neighbours}; lower them"
                )
            if needed > config.memory_mb:
                raise UserError(
                    f"eval.rerank: {listed.name} with {len(listed.rows):,} queries and {gallery:,} gallery images "
                    f"takes up to {needed:,.0f} MB, more than eval.memory_mb={config.memory_mb}; raise it, lower "
                    "eval.rerank_k1 or set eval.rerank=false"
                )


def _relevance_summary(relevance: Relevance | None, spec: EvaluationSpec) -> Mapping[str, object]:
    if relevance is None:
        return {}
    return {
        "encoder": relevance.name,
        "checksum": relevance.checksum,
        "thresholds": list(spec.config.thresholds),
        "no_positive": spec.config.no_positive,
    }


def _counts(plan: EvaluationPlan, plain: PlanFeatures) -> Mapping[str, object]:
    encoded = plain.encoded.encoded
    return {
        "sources_encoded": {modality.value: count for modality, count in encoded.items()},
        "sources_encoded_total": sum(encoded.values()),
        "query_list_entries": plan.num_entries,
        "mixed_entries": plan.num_mixed_entries,
        "distinct_sets_fused": plan.num_sets,
    }


def _cache_summary(cache: TokenCache | None) -> Mapping[str, object]:
    if cache is None:
        return {"stored": "nothing"}
    return {"stored": "prepared tokens" if cache.prepared else "plain tokens", "mb": cache.used_mb}


def _skipped(plan: EvaluationPlan, plain: PlanFeatures) -> tuple[SkippedSource, ...]:
    return tuple(
        SkippedSource(source=plan.table.sources[slot], reason=reason)
        for slot, reason in sorted(plain.encoded.failures.items())
    )
