"""What is served: one model, one gallery, and a search from what was asked to what is answered.

Everything here but `state` and the pictures runs in the worker's one thread.

Shapes: Q queries, K results, D features.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from configs.vocabulary import Combination, Modality
from datasets.modalities import MODALITIES
from datasets.structures import Source
from serve.asked import IMAGE_PARTS, INSTRUCTION, INSTRUCTION_IMAGE, TEXT, Asked, Upload
from serve.examples import Examples
from serve.folding import Folded, fold
from serve.table import Table
from solver.evaluation.comparison import Comparison
from solver.reports.search_files import SearchResult
from solver.search.pictures import picture_source
from solver.search.queries import Query, check_mix, instructed
from solver.search.ranked import EncodedQueries, RankedImage, RankedQuery, search
from solver.search.searched import SearchedGallery
from solver.search.session import SearchSession, averaged
from utils.errors import UserError

LOOKED_AT = 50
"""Results of each part alone in which the mix's best image is looked for."""
AGREES = 10
"""A part agrees with the mix that finds the mix's best image among so many of its own best, or among its best tenth in
a small gallery, where chance would find it among ten.
"""
MOST_MIXES = 16
"""Mixed queries that several pictures of several parts make."""


class Stopped(Exception):
    """The server ends while a gallery is encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryChoice:
    """Which gallery is served, as the command line names it."""

    place: str = ""
    """Folder, manifest or index, empty = the test gallery of the run."""
    modality: str = ""
    told: str = "none"
    nprobe: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Alone:
    """What one part of a mix finds by itself."""

    label: str
    part: str
    row: RankedQuery
    rank: int
    """Of the mix's best image among its own first LOOKED_AT, 0 = it is not."""
    least: int
    """Rank up to which it agrees."""

    @property
    def agrees(self) -> bool:
        """Whether the mix's best image is among its own best."""
        return 0 < self.rank <= self.least


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The answer to one search."""

    asked: Asked
    query: Query
    folded: Folded
    result: SearchResult
    """As the writers of files take it."""
    count: int
    """Images that were searched."""
    alone: tuple[Alone, ...]
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Progress:
    """Of what is done before the first search."""

    what: str = ""
    done: int = 0
    total: int = 0


@dataclass
class Service:
    """An open model and the gallery that it searches."""

    session: SearchSession
    choice: GalleryChoice
    stopping: threading.Event
    """See serve.work.Worker."""
    progress: _Progress = field(default_factory=_Progress)
    table: Table | None = None
    examples: Examples | None = None

    def prepare(self) -> None:
        """Encode the gallery or open it, and look for examples. Raises UserError, and Stopped when the server ends."""
        place = self.choice.place or None
        gallery = self.session.gallery(
            place,
            modality=self.choice.modality,
            told=self.choice.told,
            nprobe=self.choice.nprobe,
            progress=self._watch,
        )
        table = Table.of(gallery)
        self.examples = Examples.of(self.session, foreign=place is not None)
        self.table = table

    def _watch(self, what: str, done: int, total: int) -> None:
        if self.stopping.is_set():
            raise Stopped
        self.progress = _Progress(what=what, done=done, total=total)

    def search(self, asked: Asked) -> Found:
        """Search once. Raises UserError."""
        assert self.table is not None, "searches wait for the gallery"
        gallery = self.table.passing(asked.filters)
        encoded, singles = self._encoded(asked) if asked.like is None else self._like(asked.like)
        query = encoded.queries[0]
        mixed = dataclasses.replace(encoded, queries=(query,), features=encoded.features[:1])
        folded = fold(
            lambda count: self.session.search(mixed, gallery, count, error_rate=asked.rate)[0],
            self._features,
            top_k=asked.top_k,
            cosine=asked.fold if self.session.abilities.similarity == "cosine" else None,
        )
        result = self.session.result(
            mixed,
            gallery,
            [folded.row],
            asked.top_k,
            calibration=self.session.calibration,
            said=self.session.text_notes(encoded.queries[:1]),
            foreign=bool(self.choice.place),
        )
        return Found(
            asked=asked,
            query=query,
            folded=folded,
            result=result,
            count=gallery.count,
            alone=self._alone(encoded, singles, gallery, folded.row, asked.rate),
            notes=_notes(asked, query, folded),
        )

    def _features(self, images: Sequence[RankedImage]) -> np.ndarray:
        """Return the features (K, D) float64 of results."""
        assert self.table is not None
        rows = [self.table.row(image.index) for image in images]
        return self.table.gallery.rows.gather(np.array(rows, dtype=np.int64))

    def _like(self, number: int) -> tuple[EncodedQueries, Mapping[str, int]]:
        """Return a gallery image as a query: its stored features; see `_encoded`."""
        assert self.table is not None
        row = self.table.row(number)
        if row is None:
            raise UserError(f"like {number}: the gallery has no such image; take a number of a result")
        place = np.array([row], dtype=np.int64)
        (image,), gallery = self.table.gallery.images(place), self.table.gallery
        source = Source(modality=modality_of(gallery), value=image.path, record="gallery")
        person = image.person_id if gallery.persons_known else None
        query = Query(name=f"like {self.table.name(image.path)}", sources=(source,), person_id=person)
        features = torch.from_numpy(gallery.rows.gather(place)).float().to(self.session.opened.device)
        comparison = Comparison.of(self.session.trained.model)
        return EncodedQueries(queries=(query,), features=features, failures=(), comparison=comparison), {}

    def _encoded(self, asked: Asked) -> tuple[EncodedQueries, Mapping[str, int]]:
        """Encode the query, and each part of a mix alone: (queries, label -> row of the part); row 0 is the query."""
        if asked.example is not None:
            assert self.examples is not None
            variants = {"": [self.examples.query(*asked.example)]}
        else:
            variants = {"": self._mixes(asked)}
        whole = variants[""]
        if len(whole[0].sources) > 1:
            for modality in whole[0].combination:
                sources = dict.fromkeys(source for query in whole for source in query.sources)
                own = [source for source in sources if source.modality is modality]
                variants[modality.value] = [dataclasses.replace(whole[0], sources=(source,)) for source in own]
        elif whole[0].instruction is not None:
            variants["without the instruction"] = [dataclasses.replace(query, instruction=None) for query in whole]
        queries = list(itertools.chain(*variants.values()))
        ends = list(itertools.accumulate(len(entry) for entry in variants.values()))
        groups = [range(end - len(entry), end) for end, entry in zip(ends, variants.values(), strict=True)]
        try:
            encoded = self.session.encode(queries, skip=False)
        except UserError as error:
            raise UserError(_as_sent(str(error), asked)) from error
        return averaged(encoded, groups), {label: row for row, label in enumerate(variants) if row}

    def _mixes(self, asked: Asked) -> list[Query]:
        """Return the query of what was sent; where a part has several pictures, one query for each choice of them."""
        check_mix([Modality(part) for part in asked.parts], "the query")
        columns: list[list[Source]] = []
        for part in asked.parts:
            modality = Modality(part)
            if part == TEXT:
                columns.append([Source(modality=modality, value=asked.texts[TEXT], record="the query")])
            else:
                columns.append([_source(upload, modality) for upload in asked.pictures[part]])
        mixes = [*itertools.islice(itertools.product(*columns), MOST_MIXES + 1)]
        if len(mixes) > MOST_MIXES:
            raise UserError(
                f"several pictures of several parts make more than {MOST_MIXES} mixes; send fewer pictures of a part"
            )
        told = self._told(asked)
        order = {modality: place for place, modality in enumerate(Modality)}
        queries = [
            instructed(Query(name="query", sources=tuple(sorted(mix, key=lambda one: order[one.modality]))), told)
            for mix in mixes
        ]
        self.session.abilities.check(queries[:1])
        return queries

    def _told(self, asked: Asked) -> Source | None:
        given = asked.pictures.get(INSTRUCTION_IMAGE)
        if given is None and INSTRUCTION not in asked.texts:
            return None
        if not self.session.abilities.told.queries:
            raise UserError("this model follows no instructions; leave the instruction out")
        if given is not None:
            return _source(given[0], Modality.RGB)
        return Source(modality=Modality.TEXT, value=asked.texts[INSTRUCTION], record="the instruction")

    def _alone(
        self,
        encoded: EncodedQueries,
        singles: Mapping[str, int],
        gallery: SearchedGallery,
        mix: RankedQuery,
        rate: float | None,
    ) -> tuple[Alone, ...]:
        if not singles or not mix.results:
            return ()
        rows = [*singles.values()]
        parts = dataclasses.replace(
            encoded, queries=tuple(encoded.queries[row] for row in rows), features=encoded.features[rows]
        )
        best = mix.results[0].index
        least = min(AGREES, max(gallery.count // 10, 1))
        found = []
        for label, row in zip(singles, self._at_rate(parts, gallery, rate), strict=True):
            rank = next((image.rank for image in row.results if image.index == best), 0)
            part = row.query.sources[0].modality.value if len(mix.query.sources) > 1 else ""
            found.append(Alone(label=label, part=part, row=row, rank=rank, least=least))
        return tuple(found)

    def _at_rate(self, parts: EncodedQueries, gallery: SearchedGallery, rate: float | None) -> list[RankedQuery]:
        """Search for parts, answered at the rate of the mix; those without a threshold at it are not calibrated."""
        calibration = self.session.calibration
        if calibration is not None and rate is not None:
            calibration = dataclasses.replace(calibration, rate=rate)
        return search(parts, gallery, LOOKED_AT, calibration=calibration)

    def mixes_with_rates(self) -> list[tuple[Combination, tuple[float, ...]]]:
        """Return every mix that has thresholds in this gallery, with their false alarm rates."""
        assert self.table is not None
        searched = self.table.gallery.modalities
        rates = [(mix, self.session.rates(mix, searched)) for mix in self.session.abilities.combinations]
        return [(mix, found) for mix, found in rates if found]


def _source(upload: Upload, modality: Modality) -> Source:
    return picture_source(upload.content, modality, upload.label)


def modality_of(gallery: SearchedGallery) -> Modality:
    """Return what a picture of the gallery is as a query."""
    return next((modality for modality in gallery.modalities if MODALITIES[modality].is_image), Modality.RGB)


def _as_sent(sentence: str, asked: Asked) -> str:
    """Return an error with the names that the sender knows in place of our own."""
    for part, uploads in asked.pictures.items():
        for upload in uploads:
            sentence = sentence.replace(f"<{upload.label}>", f"{part}: {upload.label.rpartition(' ')[0]}")
    return sentence


def _notes(asked: Asked, query: Query, folded: Folded) -> tuple[str, ...]:
    """Return what a reader must know of this search, besides the notes of every search."""
    found = []
    several = {part: len(given) for part, given in asked.pictures.items() if part in IMAGE_PARTS and len(given) > 1}
    if several:
        counted = " and ".join(f"{count} pictures of {part.upper()}" for part, count in several.items())
        found.append(f"{counted} were taken as pictures of one person: their features were averaged")
    copies = sum(map(len, folded.copies.values()))
    if copies:
        found.append(f"{copies} near-duplicates (cosine of at least {asked.fold:g}) are shown with a better picture")
    if asked.filters.words:
        found.append(f"only these images were searched: {asked.filters.words}")
    return tuple(found)
