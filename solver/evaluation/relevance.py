"""What is relevant to an annotated query: vectors of annotations for mAP at a threshold.

They come from an encoder that is fixed, independent of the model under test and named in the results, and from the
annotations alone (`QueryList.annotations`, `EvalSplit.gallery_annotations`): changing what the model is told, the
instructions, changes nothing here. A sentence is an annotation like any other text; where all of a task share one
sentence, every cosine is 1 and the threshold says nothing (share kept 1.00).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from configs.vocabulary import AnnotationKind
from datasets.modalities import MODALITIES
from datasets.structures import EvalSplit, QueryList, Source
from solver.evaluation.annotation_choice import clothes_encoder, parse_encoder, text_encoder
from solver.evaluation.annotation_encoders import CLOTHES_BATCH, ClothesEncoder, TextEncoder, digest
from utils.errors import UserError
from utils.processes import ALONE, Processes
from utils.retrieval.annotation_vectors import ABSENT, AnnotationVectors, SparseRows

ReadClothes = Callable[[Source], Image.Image]
Vectors = np.ndarray | SparseRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Relevance:
    """Annotation vectors of a split, for `Labels.instructions` of utils.retrieval.exclusion.

    name: encoder of each kind; checksum: of everything that the vectors depend on but the annotations. gallery: by
    kind, for all G items (a part of them: `take`). lists: one per query list of the split, None for a list without
    annotations.
    """

    name: str
    checksum: str
    gallery: Mapping[str, AnnotationVectors]
    lists: tuple[Mapping[str, AnnotationVectors] | None, ...]

    def gallery_part(self, items: np.ndarray | None) -> Mapping[str, AnnotationVectors]:
        """Return the gallery's annotations for the items of a query list's gallery, None = all of it."""
        return self.gallery if items is None else {kind: found.take(items) for kind, found in self.gallery.items()}


def relevance_of(
    split: EvalSplit, *, encoder: str, read_clothes: ReadClothes, processes: Processes = ALONE
) -> Relevance:
    """Encode the annotations that the queries of a split ask for, and the gallery's of the same kinds, each once.

    encoder: of texts, `tfidf`, `t_s:FOLDER-OR-HUB-ID` or `t_s_centred:FOLDER-OR-HUB-ID`, while pictures of clothes
    become colour and texture histograms; or `albef:FILE`, of both. read_clothes: source -> picture, cut as the source
    says. processes: share the work out; all get everything. A gallery item without an annotation of a kind, or with an
    empty text, has none. Raises UserError for an unknown encoder, an unreadable picture, and a query of an annotated
    list that has no annotation, naming its record.
    """
    asked = [_asked(query_list) for query_list in split.query_lists]
    kinds = [
        kind
        for kind in AnnotationKind
        if any(kind in found for queries in asked if queries is not None for found in queries)
    ]
    offered = [
        split.gallery_annotations[item] if split.gallery_annotations else {} for item in range(len(split.gallery))
    ]
    encoders = _Encoders(encoder, read_clothes, processes)
    gallery: dict[str, AnnotationVectors] = {}
    lists: list[dict[str, AnnotationVectors]] = [{} for _ in asked]
    parts = []
    for kind in kinds:
        columns = [
            [found.get(kind) for found in side]
            for side in (offered, *(queries for queries in asked if queries is not None))
        ]
        known = list(dict.fromkeys(source for column in columns for source in column if source is not None))
        vectors, places, name, checksum = encoders.encode(known, kind)
        parts.append((kind.value, name, checksum))
        rows = [
            np.array([ABSENT if source is None else places[source] for source in column], dtype=np.int64)
            for column in columns
        ]
        gallery[kind.value] = AnnotationVectors(vectors=vectors, rows=rows[0])
        remaining = iter(rows[1:])
        for index, queries in enumerate(asked):
            if queries is not None:
                found = AnnotationVectors(vectors=vectors, rows=next(remaining))
                _require_content(split.query_lists[index], queries, kind, found.rows)
                lists[index][kind.value] = found
    return Relevance(
        name="; ".join(f"{kind}: {name}" for kind, name, _ in parts),
        gallery=gallery,
        lists=tuple(None if queries is None else vectors for queries, vectors in zip(asked, lists)),
        checksum=digest([np.frombuffer(repr(parts).encode(), dtype=np.uint8)]),
    )


def _asked(query_list: QueryList) -> list[Mapping[AnnotationKind, Source]] | None:
    """What each query asks for, as a mapping with one entry; None for a list without annotations."""
    if not any(annotation is not None for annotation in query_list.annotations):
        return None
    found: list[Mapping[AnnotationKind, Source]] = []
    for entry, kind, annotation in zip(
        query_list.entries, query_list.annotation_kinds, query_list.annotations, strict=True
    ):
        if kind is None or annotation is None:
            raise _without_annotation(query_list, entry, "has none")
        found.append({kind: annotation})
    return found


def _require_content(
    query_list: QueryList, queries: Sequence[Mapping[AnnotationKind, Source]], kind: AnnotationKind, rows: np.ndarray
) -> None:
    for entry, asked, row in zip(query_list.entries, queries, rows):
        if kind in asked and row == ABSENT:
            raise _without_annotation(query_list, entry, "has an empty one")


def _without_annotation(query_list: QueryList, entry: Sequence[Source], what: str) -> UserError:
    return UserError(
        f"{entry[0].record or entry[0].value}: the other queries of {query_list.name} have an annotation and this one "
        f"{what}; mAP at a threshold needs one for every query, add it or evaluate without thresholds"
    )


class _Encoders:
    """One encoder of texts and one of clothes, each read when the first of its kind comes."""

    def __init__(self, text: str, read_clothes: ReadClothes, processes: Processes) -> None:
        parse_encoder(text)
        self._name, self._read_clothes, self._processes = text, read_clothes, processes
        self._text: TextEncoder | None = None
        self._clothes: ClothesEncoder | None = None

    def encode(self, sources: Sequence[Source], kind: AnnotationKind) -> tuple[Vectors, Mapping[Source, int], str, str]:
        """Return vectors, the row of each source in them (-1 for an empty text), the encoder's name and a digest."""
        pictures = {MODALITIES[source.modality].is_image for source in sources}
        assert len(pictures) == 1, f"annotations of kind {kind.value} are pictures and texts"
        if pictures.pop():
            if self._clothes is None:
                self._clothes = clothes_encoder(self._name)
            own = sources[self._processes.share(len(sources), CLOTHES_BATCH)]
            part = self._clothes.encode(map(self._read_clothes, own), len(own)) if own else None
            parts = [found for found in self._processes.told(part) if found is not None]
            vectors = np.concatenate([found for found, _ in parts])
            return vectors, {source: row for row, source in enumerate(sources)}, self._clothes.name, parts[0][1]
        if self._text is None:
            self._text = text_encoder(self._name)
        pieces = [self._text.pieces(source.value) for source in sources]
        spoken = [row for row, found in enumerate(pieces) if found]
        encoded: Vectors = np.zeros((0, 1))
        checksum = ""
        if spoken:
            encoded, checksum = self._text.encode([pieces[row] for row in spoken], self._processes)
        places = dict.fromkeys(sources, ABSENT) | {sources[row]: place for place, row in enumerate(spoken)}
        return encoded, places, self._text.name, checksum
