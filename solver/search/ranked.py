"""Searching a gallery: queries encoded and fused like an evaluation's, the gallery ranked by similarity.

Shapes: Q queries, N encoded gallery images, D embed_dim, K results of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.vocabulary import Combination
from datasets.loading.readers import Reader
from datasets.structures import EvalSplit, Person, QueryList
from model.interface import RetrievalModel
from solver.calibration import Calibration, Cutoff
from solver.evaluation.comparison import Comparison
from solver.evaluation.features import encode_plan
from solver.evaluation.plan import Integers, plan_evaluation
from solver.evaluation.spec import EvaluationSpec
from solver.gallery.approximate import OTHERWISE
from solver.search.queries import Query
from solver.search.searched import SearchedGallery
from utils.errors import UserError
from utils.retrieval.exact import Pivot, best_rows, exact_scores
from utils.retrieval.options import Similarity
from utils.retrieval.ranking import unit_length

NO_ROWS: Integers = np.zeros(0, dtype=np.int64)


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
    camera: str = ""
    """Empty = unknown."""
    verdict: Verdict = Verdict.UNKNOWN
    """Whether it is what the query asks for."""
    answer: Answer | None = None
    """None = nobody asked for one."""
    own_image: bool = False
    """It is an image of the query itself: that file, or a byte copy of it."""
    outdated: str = ""
    """`changed` or `missing`: its file is no longer what was encoded; empty = it is, or the gallery does not say."""


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
    gallery: SearchedGallery,
    top_k: int,
    relevant: Mapping[str, NDArray[np.bool_]] | None = None,
    calibration: Calibration | None = None,
) -> list[RankedQuery]:
    """Rank the gallery for every query; equal similarities keep the gallery's order. At most `top_k` results each.

    A gallery image of a query, or a byte copy of one, is ranked like any other, marked, and no match. relevant: by name
    of a query (G,), which gallery images its person is right in; None = all. calibration: thresholds to answer by.
    """
    found: dict[int, RankedQuery] = {}
    own = own_images(encoded.queries, gallery)
    compared: dict[tuple[int, int], list[int]] = {}
    for index, query in enumerate(encoded.queries):
        columns = encoded.comparison.columns(query.combination, encoded.features.shape[1])
        compared.setdefault(columns, []).append(index)
    for columns, indices in compared.items():
        part = _Part(
            queries=[encoded.queries[index] for index in indices],
            features=encoded.features[indices][:, slice(*columns)],
            gallery=gallery,
            similarity=encoded.comparison.similarity,
            columns=slice(*columns),
        )
        rights = [None if relevant is None else relevant[query.name] for query in part.queries]
        cutoffs = [
            None if calibration is None else calibration.cutoff(query.combination, gallery.modalities)
            for query in part.queries
        ]
        found |= zip(indices, part.ranked(top_k, own, rights, cutoffs), strict=True)
    return [found[index] for index in range(len(found))]


def own_images(queries: Sequence[Query], gallery: SearchedGallery) -> dict[str, Integers]:
    """Return, for each picture of a query that is in the gallery, its rows, those of byte copies among them."""
    return gallery.copies(list(dict.fromkeys(file for query in queries for file in query.files)))


def own_rows(query: Query, own: Mapping[str, Integers]) -> Integers:
    """Return which rows of a gallery are images of the query itself, ascending; own: see `own_images`."""
    return np.unique(np.concatenate([NO_ROWS, *(own.get(file, NO_ROWS) for file in query.files)]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What is known of a query's rows before the gallery is searched; all ascending."""

    own: Integers
    """Rows that are the query itself."""
    matches: Integers | None
    """Rows that are right, None = nobody knows."""
    below: Integers | None
    """Rows of the person that do not reach a threshold, None without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Queries that are compared within the same columns."""

    queries: Sequence[Query]
    features: Tensor
    """(Q, d): these columns."""
    gallery: SearchedGallery
    similarity: Similarity
    columns: slice

    def ranked(
        self,
        top_k: int,
        own: Mapping[str, Integers],
        rights: Sequence[NDArray[np.bool_] | None],
        cutoffs: Sequence[Cutoff | None],
    ) -> list[RankedQuery]:
        """Search for all queries in one pass over the gallery. rights, cutoffs: of each query; see `search`."""
        known = [self._known(query, own, right) for query, right in zip(self.queries, rights, strict=True)]
        pivots: dict[tuple[int, str], Pivot] = {}
        for number, (one, cutoff) in enumerate(zip(known, cutoffs, strict=True)):
            if one.matches is not None and len(one.matches):
                scores = self._scores(number, one.matches)
                best = int(scores.argmax())
                pivots[number, "match"] = Pivot(query=number, score=float(scores[best]), row=int(one.matches[best]))
            if cutoff is not None:
                pivots[number, "cutoff"] = Pivot(query=number, score=cutoff.threshold)
        named = self._candidates(top_k)
        if named is not None:
            return self._approximate(top_k, named, known, cutoffs)
        found = best_rows(
            self.features,
            self.gallery.rows,
            top_k,
            similarity=self.similarity,
            columns=self.columns,
            pivots=list(pivots.values()),
            device=self.features.device,
        )
        before = dict(zip(pivots, found.before.tolist(), strict=True))
        results = []
        for number, one in enumerate(known):
            row = self._row(number, one, found.rows[number], found.scores[number])
            if one.matches is not None:
                place = before[number, "match"] + 1 if (number, "match") in before else 0
                below = None if one.below is None else len(one.below)
                row = replace(row, matches=len(one.matches), first_match=place, below=below)
            results.append(self._answered(row, number, one, cutoffs[number], before.get((number, "cutoff"), 0)))
        return results

    def _candidates(self, top_k: int) -> list[Integers] | None:
        """Return the rows of each query that the gallery names as candidates, None = it names none. Raises UserError
        where codes cannot stand for what is compared.
        """
        width = self.gallery.rows.parts[0].shape[1] if self.gallery.rows.parts else 0
        if self.gallery.approximate and (self.similarity != "cosine" or self.features.shape[1] != width):
            raise UserError(f"--nprobe: {OTHERWISE}")
        return self.gallery.candidates(unit_length(self.features), top_k)

    def _approximate(
        self, top_k: int, named: Sequence[Integers], known: Sequence[_Known], cutoffs: Sequence[Cutoff | None]
    ) -> list[RankedQuery]:
        """Rank candidates alone. What counts the whole gallery is left out but the images above a threshold, of which
        those among the candidates are counted.
        """
        results = []
        for number, (rows, one, cutoff) in enumerate(zip(named, known, cutoffs, strict=True)):
            # The query's own images are known, and so is how many of them are above a threshold.
            rows = np.union1d(rows, one.own)
            scores = self._scores(number, rows)
            order = np.lexsort((rows, -scores))
            above = 0 if cutoff is None else int((scores >= np.float32(cutoff.threshold)).sum())
            row = self._row(number, one, rows[order[:top_k]], scores[order[:top_k]])
            results.append(self._answered(row, number, one, cutoff, above))
        return results

    def _scores(self, number: int, rows: Integers) -> NDArray[np.float32]:
        asked = self.features[number].expand(len(rows), -1)
        return exact_scores(asked, self.gallery.rows, rows, similarity=self.similarity, columns=self.columns)

    def _known(self, query: Query, own: Mapping[str, Integers], right: NDArray[np.bool_] | None) -> _Known:
        itself = own_rows(query, own)
        if query.person_id is None or not self.gallery.persons_known:
            return _Known(own=itself, matches=None, below=None)
        # A name is a text wherever it is written: 51 in a file of queries is the person "51" of a manifest.
        matches = np.setdiff1d(self.gallery.person_rows(str(query.person_id)), itself)
        if right is None:
            return _Known(own=itself, matches=matches, below=None)
        chosen = right[self.gallery.numbers(matches)]
        return _Known(own=itself, matches=matches[chosen], below=matches[~chosen])

    def _row(self, number: int, known: _Known, rows: Integers, scores: NDArray[np.float32]) -> RankedQuery:
        """rows, scores (K,): of the best images."""
        outdated = self.gallery.outdated(rows)
        itself, matches, below = (
            np.isin(rows, NO_ROWS if group is None else group) for group in (known.own, known.matches, known.below)
        )
        results = []
        for place, (row, image) in enumerate(zip(rows.tolist(), self.gallery.images(rows), strict=True)):
            verdict = Verdict.OTHER
            if known.matches is None or itself[place]:
                verdict = Verdict.UNKNOWN
            elif below[place]:
                verdict = Verdict.BELOW
            elif matches[place]:
                verdict = Verdict.MATCH
            results.append(
                RankedImage(
                    rank=place + 1,
                    index=image.index,
                    path=image.path,
                    similarity=float(scores[place]),
                    person_id=image.person_id,
                    camera=image.camera,
                    verdict=verdict,
                    own_image=bool(itself[place]),
                    outdated=outdated.get(row, ""),
                )
            )
        return RankedQuery(query=self.queries[number], results=tuple(results), own_images=len(known.own))

    def _answered(self, row: RankedQuery, number: int, known: _Known, cutoff: Cutoff | None, above: int) -> RankedQuery:
        """Return a row with the answers to it. above: rows at or above the cutoff, the query's own among them."""
        if cutoff is None:
            results = tuple(replace(image, answer=Answer.NOT_CALIBRATED) for image in row.results)
            return replace(row, results=results)
        threshold = np.float32(cutoff.threshold)
        own = int((self._scores(number, known.own) >= threshold).sum()) if len(known.own) else 0
        results = tuple(
            replace(image, answer=Answer.ABOVE if image.similarity >= threshold else Answer.BELOW)
            for image in row.results
        )
        return replace(row, results=results, cutoff=cutoff, above=above - own)
