"""Searching a gallery: queries encoded and fused like an evaluation's, the gallery ranked by cosine similarity.

Shapes: Q queries, N encoded gallery images, D embed_dim, K results of a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.loading.readers import Reader
from datasets.structures import EvalSplit, QueryList
from model.interface import RetrievalModel
from solver.evaluation.encoding import SourceEncoder, encode_sources, inference, require_fusion
from solver.evaluation.evaluator import EvaluationSpec, fuse_sets
from solver.evaluation.plan import plan_evaluation
from solver.search.gallery import EncodedGallery
from solver.search.queries import Query

BLOCK_SCORES = 1 << 24
"""Similarities that are sorted at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedImage:
    """One result. rank: from 1. index: in the gallery. match: same person as the query, None = unknown."""

    rank: int
    index: int
    path: str
    similarity: float
    person_id: int | None = None
    match: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedQuery:
    """A query and its best images.

    matches: images of the query's person among the readable ones, first_match: rank of the best of them (0 = there is
    none); both None when identities are unknown. note: what a reader of the result should know.
    """

    query: Query
    results: tuple[RankedImage, ...]
    matches: int | None = None
    first_match: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedQueries:
    """features (Q, D) float32, each of length 1, of the readable queries; failures: (query, reason) of the others."""

    queries: tuple[Query, ...]
    features: Tensor
    failures: tuple[tuple[Query, str], ...]


def encode_queries(
    model: RetrievalModel, queries: Sequence[Query], reader: Reader, spec: EvaluationSpec, device: torch.device
) -> EncodedQueries:
    """Encode every distinct source of the queries once and fuse those of more than one part."""
    grouped: dict[tuple, list[int]] = {}
    for index, query in enumerate(queries):
        grouped.setdefault(query.combination, []).append(index)
    lists = tuple(
        QueryList(
            combination=combination,
            entries=tuple(queries[index].sources for index in indices),
            instructions=tuple(queries[index].instruction for index in indices),
            person_ids=(0,) * len(indices),
        )
        for combination, indices in grouped.items()
    )
    split = EvalSplit(name="queries", protocol="", gallery=(), gallery_ids=(), query_lists=lists)
    plan = plan_evaluation([split], instructed=model.follows_instructions)
    require_fusion(model, plan)
    encoder = SourceEncoder(model, reader, spec.encoder, device)
    with inference(model, device, spec.precision):
        encoded = encode_sources(encoder, plan.table, plan.needs_tokens(), spec.budget)
        try:
            features = torch.cat([encoded.pooled, fuse_sets(model, encoded, plan, spec)])
        finally:
            if encoded.cache is not None:
                encoded.cache.close()
    rows = np.empty(len(queries), dtype=np.int64)
    reasons: dict[int, str] = {}
    for indices, listed in zip(grouped.values(), plan.splits[0].lists):
        rows[indices] = listed.rows
        reasons |= {
            index: encoded.failures[slot]
            for index, members in zip(indices, listed.members.tolist())
            for slot in members
            if slot in encoded.failures
        }
    kept = [index for index in range(len(queries)) if index not in reasons]
    chosen = torch.from_numpy(rows[kept]).to(features.device)
    return EncodedQueries(
        queries=tuple(queries[index] for index in kept),
        features=F.normalize(features[chosen], dim=1),
        failures=tuple((queries[index], reason) for index, reason in sorted(reasons.items())),
    )


def search(encoded: EncodedQueries, gallery: EncodedGallery, top_k: int) -> list[RankedQuery]:
    """Rank the gallery for every query; equal similarities keep the gallery's order. At most `top_k` results each."""
    found: list[RankedQuery] = []
    rows = max(1, BLOCK_SCORES // max(1, len(gallery.positions)))
    ids = (
        None
        if gallery.gallery.person_ids is None
        else np.asarray(gallery.gallery.person_ids, dtype=np.int64)[gallery.positions]
    )
    for first in range(0, len(encoded.queries), rows):
        block = encoded.features[first : first + rows]
        similarity, order = (block @ gallery.features.T).sort(dim=1, descending=True, stable=True)
        for query, values, places in zip(
            encoded.queries[first : first + rows], similarity[:, :top_k].cpu().numpy(), order.cpu().numpy()
        ):
            found.append(_ranked(query, values, places, gallery, ids))
    return found


def _ranked(
    query: Query, values: np.ndarray, places: np.ndarray, gallery: EncodedGallery, ids: np.ndarray | None
) -> RankedQuery:
    """values (K,): the best similarities. places (N,): rows of the encoded gallery from best to worst. ids (N,)."""
    known = ids is not None and query.person_id is not None
    hits = ids[places] == query.person_id if known else None  # type: ignore[index]
    results = []
    for rank, (place, value) in enumerate(zip(places[: len(values)], values), start=1):
        index = int(gallery.positions[place])
        results.append(
            RankedImage(
                rank=rank,
                index=index,
                path=gallery.gallery.sources[index].value,
                similarity=float(value),
                person_id=None if ids is None else int(ids[place]),
                match=None if hits is None else bool(hits[rank - 1]),
            )
        )
    if hits is None:
        return RankedQuery(query=query, results=tuple(results))
    matches = int(hits.sum())
    return RankedQuery(
        query=query, results=tuple(results), matches=matches, first_match=int(hits.argmax()) + 1 if matches else 0
    )
