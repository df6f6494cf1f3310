"""Searching a gallery: queries encoded and fused like an evaluation's, the gallery ranked by similarity.

Shapes: Q queries, N encoded gallery images, D embed_dim, K results of a query.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.vocabulary import Combination
from datasets.loading.readers import Reader
from datasets.modalities import MODALITIES
from datasets.structures import EvalSplit, Person, QueryList, Source
from model.interface import RetrievalModel
from solver.calibration import Calibration, Cutoff
from solver.evaluation.comparison import Comparison
from solver.evaluation.features import encode_plan
from solver.evaluation.plan import Integers, plan_evaluation
from solver.evaluation.spec import EvaluationSpec
from solver.search.gallery import UNLISTED, EncodedGallery
from solver.search.queries import Query
from utils.identical import crossing, identical_files
from utils.retrieval.ranking import sort_blocks


class Verdict(str, Enum):
    """What a result is to its query."""

    MATCH = "match"
    """The same person, and at a threshold also what was asked for."""
    BELOW = "below"
    """The same person, whose annotation does not reach the threshold."""
    OTHER = "other"
    """Another person."""
    UNKNOWN = ""
    """Nobody knows, or it is the query itself."""


class Answer(str, Enum):
    """What the thresholds of a calibration say of a result."""

    ABOVE = "above"
    """At or above the threshold: taken for the person."""
    BELOW = "below"
    NOT_CALIBRATED = "not calibrated"
    """There is no threshold for such queries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedImage:
    """One result."""

    rank: int
    """From 1."""
    index: int
    """In the gallery."""
    path: str
    """Its file."""
    similarity: float
    """With the query: the cosine, or what else the model compares by."""
    person_id: Person | None = None
    """None = unknown."""
    verdict: Verdict = Verdict.UNKNOWN
    """Whether it is what the query asks for."""
    answer: Answer | None = None
    """None = nobody asked for one."""
    own_image: bool = False
    """It is an image of the query itself: that file, or a byte copy of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedQuery:
    """A query and its best images."""

    query: Query
    results: tuple[RankedImage, ...]
    """From best to worst."""
    matches: int | None = None
    """Right images among the readable ones, the query's own left out; None when identities are unknown."""
    below: int | None = None
    """Further images of the query's person, which do not reach a threshold; None without one."""
    first_match: int | None = None
    """Rank of the best of them, 0 = there is none; None when identities are unknown."""
    cutoff: Cutoff | None = None
    """The threshold of the results' answers, None = there is none."""
    above: int | None = None
    """Readable gallery images at or above it, the query's own left out; 0 = nobody; None without a threshold."""
    own_images: int = 0
    """Readable gallery images that are the query's own; they keep their ranks."""
    missed: RankedImage | None = None
    """The best image of the query's person, with its rank, where it is not among the results."""
    note: str = ""
    """What a reader of the result should know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedQueries:
    """The readable queries and their features."""

    queries: tuple[Query, ...]
    features: Tensor
    """(Q, D) float32, as the model gives them."""
    failures: tuple[tuple[Query, str], ...]
    """The other queries, with the reason."""
    comparison: Comparison = field(default_factory=Comparison)
    """How they are compared with a gallery."""


def encode_queries(
    model: RetrievalModel, queries: Sequence[Query], reader: Reader, spec: EvaluationSpec, device: torch.device
) -> EncodedQueries:
    """Encode every distinct source of the queries once and fuse those of more than one part."""
    comparison = Comparison.of(model)
    if not queries:
        return EncodedQueries(queries=(), features=torch.zeros(0, model.embed_dim), failures=(), comparison=comparison)
    grouped: dict[Combination, list[int]] = {}
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
    computed = encode_plan(model, plan, reader, spec, device)
    unreadable = computed.encoded.failures
    rows = np.empty(len(queries), dtype=np.int64)
    reasons: dict[int, str] = {}
    for indices, listed in zip(grouped.values(), plan.splits[0].lists):
        rows[indices] = listed.rows
        for index, members in zip(indices, listed.members.tolist()):
            lost = [unreadable[slot] for slot in members if slot in unreadable]
            if lost:
                reasons[index] = lost[-1]
    kept = [index for index in range(len(queries)) if index not in reasons]
    chosen = torch.from_numpy(rows[kept]).to(computed.features.device)
    return EncodedQueries(
        queries=tuple(queries[index] for index in kept),
        features=computed.features[chosen],
        failures=tuple((queries[index], reason) for index, reason in sorted(reasons.items())),
        comparison=comparison,
    )


def search(
    encoded: EncodedQueries,
    gallery: EncodedGallery,
    top_k: int,
    relevant: Mapping[str, NDArray[np.bool_]] | None = None,
    calibration: Calibration | None = None,
) -> list[RankedQuery]:
    """Rank the gallery for every query; equal similarities keep the gallery's order. At most `top_k` results each.

    A gallery image of a query, or a byte copy of one, is ranked like any other, marked, and no match. relevant: by name
    of a query (G,), which gallery images its person is right in; None = all. calibration: thresholds to answer by.
    """
    ranked: dict[int, RankedQuery] = {}
    own = own_images(encoded.queries, gallery)
    compared: dict[tuple[int, int], list[int]] = {}
    for index, query in enumerate(encoded.queries):
        columns = encoded.comparison.columns(query.combination, encoded.features.shape[1])
        compared.setdefault(columns, []).append(index)
    for indices in compared.values():
        kind = encoded.queries[indices[0]].combination
        features = encoded.comparison.queries(encoded.features[indices], kind)
        for block in sort_blocks(features, encoded.comparison.gallery(gallery.features, kind)):
            similarity, order = block.similarity.cpu().numpy(), block.order.cpu().numpy()
            numbers = indices[block.first : block.first + len(order)]
            for number, values, rows in zip(numbers, similarity, order):
                query = encoded.queries[number]
                right = None if relevant is None else relevant[query.name]
                row = _ranked(query, values[:top_k], rows, gallery, own, right)
                ranked[number] = _answered(row, values, own_rows(query, own, rows), gallery, calibration)
    return [ranked[index] for index in range(len(ranked))]


def own_images(queries: Sequence[Query], gallery: EncodedGallery) -> dict[Source, Integers]:
    """Return, for each picture of a query that is in the gallery, its rows of the encoded gallery, byte copies among
    them.
    """
    paths = [gallery.gallery.sources[index].value for index in gallery.positions]
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(map(os.path.abspath, paths)):
        rows.setdefault(path, []).append(row)
    asked = {
        source: os.path.abspath(source.value)
        for query in queries
        for source in query.sources
        if MODALITIES[source.modality].is_image
    }
    copies: dict[str, tuple[str, ...]] = {path: (path,) for path in asked.values()}
    for same in identical_files([*asked.values(), *rows], crossing(asked.values(), rows)):
        copies |= dict.fromkeys(same, same)
    found = {source: [row for copy in copies[path] for row in rows.get(copy, ())] for source, path in asked.items()}
    return {source: np.asarray(own, dtype=np.int64) for source, own in found.items() if own}


def own_rows(query: Query, own: Mapping[Source, Integers], order: Integers) -> NDArray[np.bool_]:
    """Return which rows (N,) of the encoded gallery are images of the query itself; own: see `own_images`."""
    none = np.empty(0, dtype=np.int64)
    return np.isin(order, np.concatenate([none, *(own.get(source, none) for source in query.sources)]))


def _answered(
    row: RankedQuery,
    similarity: NDArray[np.float32],
    itself: NDArray[np.bool_],
    gallery: EncodedGallery,
    calibration: Calibration | None,
) -> RankedQuery:
    """Return a row with the answers to it. similarity, itself (N,): from best to worst."""
    cutoff = None if calibration is None else calibration.cutoff(row.query.combination, gallery.gallery.modalities)
    if cutoff is None:
        results = tuple(replace(image, answer=Answer.NOT_CALIBRATED) for image in row.results)
        return replace(row, results=results)
    above = similarity >= np.float32(cutoff.threshold)
    results = tuple(
        replace(image, answer=Answer.ABOVE if above[place] else Answer.BELOW) for place, image in enumerate(row.results)
    )
    return replace(row, results=results, cutoff=cutoff, above=int((above & ~itself).sum()))


def _ranked(
    query: Query,
    similarity: NDArray[np.float32],
    order: Integers,
    gallery: EncodedGallery,
    own: Mapping[Source, Integers],
    right: NDArray[np.bool_] | None,
) -> RankedQuery:
    """similarity (K,): of the best images. order (N,): rows of the encoded gallery from best to worst. own: see
    `own_images`. right (G,): images that its person is right in, None = all.
    """
    persons = gallery.persons
    itself = own_rows(query, own, order)
    matches = below = None
    if persons is not None and query.person_id is not None:
        # A name is a text wherever it is written: 51 in a file of queries is the person "51" of a manifest.
        matches = (persons.codes[order] == persons.numbers.get(str(query.person_id), UNLISTED)) & ~itself
        if right is not None:
            below = matches & ~right[gallery.positions[order]]
            matches = matches & ~below
    results = []
    for rank, (row, value) in enumerate(zip(order[: len(similarity)], similarity), start=1):
        index = int(gallery.positions[row])
        results.append(
            RankedImage(
                rank=rank,
                index=index,
                path=gallery.gallery.sources[index].value,
                similarity=float(value),
                person_id=None if persons is None else gallery.gallery.person(index),
                verdict=_verdict(rank - 1, matches, below, itself),
                own_image=bool(itself[rank - 1]),
            )
        )
    if matches is None:
        return RankedQuery(query=query, results=tuple(results), own_images=int(itself.sum()))
    return RankedQuery(
        query=query,
        results=tuple(results),
        own_images=int(itself.sum()),
        matches=int(matches.sum()),
        first_match=int(matches.argmax()) + 1 if matches.any() else 0,
        below=None if below is None else int(below.sum()),
    )


def _verdict(
    place: int, matches: NDArray[np.bool_] | None, below: NDArray[np.bool_] | None, itself: NDArray[np.bool_]
) -> Verdict:
    if matches is None or itself[place]:
        return Verdict.UNKNOWN
    if below is not None and below[place]:
        return Verdict.BELOW
    return Verdict.MATCH if matches[place] else Verdict.OTHER
