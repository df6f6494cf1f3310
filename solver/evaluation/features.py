"""The features of a plan: each distinct source encoded once, each distinct set fused once.

Shapes: N slots (distinct sources), F = N + number of sets, D embed_dim, B sets of a batch, S tokens of a set.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.loading.readers import Reader
from model.interface import Fuses, RetrievalModel
from solver.evaluation.encoding import (
    EncodedSources,
    SourceEncoder,
    batch_rows,
    encode_sources,
    inference,
    require_fusion,
)
from solver.evaluation.plan import EvaluationPlan
from solver.evaluation.sharing import complete, rounds
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.token_cache import TokenCache
from utils.progress import progress_bar


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFeatures:
    """What `encode_plan` returns."""

    features: Tensor
    """(F, D) float32 on the compute device: the sources by slot, then the sets; zero where a source is unreadable."""
    encoded: EncodedSources
    """The sources; their cache is closed, what a matching head will look at is not: the caller closes it."""
    readable: NDArray[np.bool_]
    """(N,): the slots that could be read."""
    encoded_at: float
    """`time.perf_counter()` when the sources were done and the sets began."""


def encode_plan(
    model: RetrievalModel,
    plan: EvaluationPlan,
    reader: Reader,
    spec: EvaluationSpec,
    device: torch.device,
    matched: NDArray[np.bool_] | None = None,
) -> PlanFeatures:
    """Encode every source and fuse every set of a plan. matched (N,): slots whose representations are kept for a
    matching head, None = none.

    Raises UserError for mixed queries to a model without a fusion, and for an unreadable source unless skipped.
    """
    require_fusion(model, plan)
    encoder = SourceEncoder(model, reader, spec, device)
    with inference(model, device, spec.config.precision):
        encoded = encode_sources(encoder, plan.table, plan.needs_tokens(), spec.budget, matched)
        encoded_at = time.perf_counter()
        readable = np.ones(len(plan.table), dtype=bool)
        readable[list(encoded.failures)] = False
        try:
            fused = _fuse_sets(model, encoded, plan, readable, spec.config.batch_size)
        except BaseException:
            encoded.close()
            raise
        if encoded.cache is not None:
            encoded.cache.close()
    return PlanFeatures(
        features=torch.cat([encoded.pooled, fused]), encoded=encoded, readable=readable, encoded_at=encoded_at
    )


def _fuse_sets(
    model: RetrievalModel, encoded: EncodedSources, plan: EvaluationPlan, readable: NDArray[np.bool_], limit: int
) -> Tensor:
    """Fuse every distinct set of the plan into (num_sets, D) float32; sets with an unreadable member stay zero.

    Sets whose members have the same token counts share batches, whatever their modalities.
    """
    fused = torch.zeros((plan.num_sets, model.embed_dim), dtype=torch.float32, device=encoded.pooled.device)
    cache = encoded.cache
    if cache is None or not isinstance(model, Fuses):
        return fused
    batches = _fusion_batches(plan, cache, readable, limit)
    own: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    with progress_bar(None, plan.num_sets, "fuse", "query") as bar:
        for number, gather in rounds(cache, [members for _, members in batches]):
            rows, members = batches[number]
            # Member after member: (B, S, K).
            tokens = torch.cat([gather(column) for column in members.unbind(1)], dim=1)
            prepared = tokens if cache.prepared else model.prepare(tokens)
            fused.index_copy_(0, rows.to(fused.device), model.fuse_prepared(prepared).float())
            own.append(rows)
            bar.update(len(rows) * cache.owners.processes.count)
    complete(cache.owners.processes, fused, torch.cat(own))
    return fused


def _fusion_batches(
    plan: EvaluationPlan, cache: TokenCache, readable: NDArray[np.bool_], limit: int
) -> list[tuple[Tensor, Tensor]]:
    """Return (rows (B,), members (B, size)) of every batch; all sets of a batch have equal token counts."""
    known = torch.from_numpy(readable)
    by_lengths: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for slots in plan.sets.values():
        members = torch.from_numpy(slots)
        complete = known[members].all(dim=1).nonzero().squeeze(1)
        if len(complete):
            lengths = tuple(cache.length(int(slot)) for slot in members[complete[0]])
            by_lengths.setdefault(lengths, []).append((complete + start, members[complete]))
        start += len(slots)
    batches: list[tuple[Tensor, Tensor]] = []
    for lengths, parts in by_lengths.items():
        rows, members = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        size = batch_rows(sum(lengths), limit, cache.device)
        batches.extend(zip(rows.split(size), members.split(size)))
    return batches
