"""What a search looks in: the images of a folder or a data set that were encoded for it, or an index that lasts.

Shapes: G gallery images, N of them encoded, D embed_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.vocabulary import BOX, Modality
from datasets.structures import Person, Source
from solver.evaluation.plan import Integers
from solver.gallery.adding import changed_files
from solver.gallery.approximate import load, told
from solver.gallery.index import GalleryIndex
from solver.search.gallery import Gallery
from utils.errors import UserError
from utils.files import sha256_of
from utils.identical import crossing, identical_files
from utils.retrieval.exact import FeatureRows

APPROXIMATE = (
    "approximate (nprobe {}): images were compared exactly, but only those that codes named, so that better ones may "
    "be missing and no rank of a right image is given; measured when the codes were made: {}"
)
TOLD = {"text": "same", "picture": "same"}
"""An index's word for what its images were told -> that of a search: one instruction for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryImage:
    """An encoded image of a gallery."""

    index: int
    """In the gallery, or its id in an index."""
    path: str
    person_id: Person | None = None
    """None = unknown."""
    camera: str = ""
    """Empty = unknown."""


class SearchedGallery(ABC):
    """An encoded gallery, as searches and reports see it. Rows are counted from 0, in the gallery's order."""

    gallery: Gallery
    """Its name, protocol, notes and what its images are told; of an index without the images."""
    reused: bool
    """The features were there before."""

    @property
    @abstractmethod
    def rows(self) -> FeatureRows:
        """The features that are searched."""

    @property
    @abstractmethod
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images."""

    @property
    @abstractmethod
    def persons_known(self) -> bool:
        """Whether the images say whom they show."""

    @property
    @abstractmethod
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of each image that could not be read."""

    @abstractmethod
    def images(self, rows: Integers) -> list[GalleryImage]:
        """Return the images of rows (n,)."""

    @abstractmethod
    def person_rows(self, person: str) -> Integers:
        """Return the rows that show a person, ascending."""

    @abstractmethod
    def copies(self, paths: Sequence[str]) -> dict[str, Integers]:
        """Return, for each path that is in the gallery, its rows, those of byte copies among them, ascending."""

    @abstractmethod
    def told(self, rows: Integers) -> list[Source | None]:
        """Return what the model was told with the images of rows (n,), None = nothing."""

    def numbers(self, rows: Integers) -> Integers:
        """Return the index in the gallery of rows (n,)."""
        return np.array([image.index for image in self.images(rows)], dtype=np.int64)

    def outdated(self, rows: Integers) -> dict[int, str]:
        """Return, for those of the rows whose file is no longer what was encoded, `changed` or `missing`."""
        return {}

    @property
    def approximate(self) -> str:
        """What must be known of an approximate search, empty = it is exact."""
        return ""

    @property
    def count(self) -> int:
        """Images that can be found."""
        return self.rows.searched

    def candidates(self, queries: Tensor, top_k: int) -> list[Integers] | None:
        """Return, for each of the queries (Q, D) of length 1, the rows that may be among its best, ascending; None =
        the gallery names none, every row is looked at.
        """
        return None

    @functools.cached_property
    def every(self) -> Integers:
        """(N,): all rows that are searched, ascending."""
        masks = self.rows.kept or (None,) * len(self.rows.parts)
        found = [
            np.arange(len(part)) + start if mask is None else np.flatnonzero(mask) + start
            for start, part, mask in zip(self.rows.starts.tolist(), self.rows.parts, masks)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    def all_features(self) -> Tensor:
        """Return the features (N, D) float32 of `every` row, on the CPU; whole in memory."""
        if not self.rows.parts:
            return torch.zeros(0, 0)
        masks = self.rows.kept or (None,) * len(self.rows.parts)
        kept = [
            part if mask is None else part[torch.from_numpy(mask).to(part.device)]
            for part, mask in zip(self.rows.parts, masks, strict=True)
        ]
        return torch.cat([part.float().cpu() for part in kept])


@dataclass(frozen=True, kw_only=True)
class EncodedGallery(SearchedGallery):
    """A gallery and the features of its readable images."""

    gallery: Gallery
    features: Tensor
    """(N, D) float32, as an index keeps them."""
    positions: Integers
    """(N,): index of each row in the gallery."""
    failures: Mapping[int, str]
    """Reason by gallery index of each unreadable image."""
    reused: bool

    @functools.cached_property
    def rows(self) -> FeatureRows:
        """The features that are searched."""
        return FeatureRows(parts=(self.features,))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images."""
        return self.gallery.modalities

    @property
    def persons_known(self) -> bool:
        """Whether the images say whom they show."""
        return self.gallery.person_ids is not None

    @property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of each image that could not be read."""
        return [(self.gallery.sources[index].value, reason) for index, reason in self.failures.items()]

    def images(self, rows: Integers) -> list[GalleryImage]:
        """Return the images of rows (n,)."""
        return [
            GalleryImage(
                index=index,
                path=self.gallery.sources[index].value,
                person_id=self.gallery.person(index),
                camera=self.gallery.cameras[index] if self.gallery.cameras else "",
            )
            for index in self.positions[rows].tolist()
        ]

    def numbers(self, rows: Integers) -> Integers:
        """Return the index in the gallery of rows (n,)."""
        return self.positions[rows]

    @functools.cached_property
    def _persons(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, index in enumerate(self.positions.tolist()):
            found.setdefault(str(self.gallery.person(index)), []).append(row)
        return found

    @functools.cached_property
    def _paths(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, index in enumerate(self.positions.tolist()):
            found.setdefault(os.path.abspath(self.gallery.sources[index].value), []).append(row)
        return found

    def person_rows(self, person: str) -> Integers:
        """Return the rows that show a person, ascending."""
        return np.array(self._persons.get(person, []), dtype=np.int64)

    def copies(self, paths: Sequence[str]) -> dict[str, Integers]:
        """Return, for each path that is in the gallery, its rows, those of byte copies among them, ascending."""
        if not paths:
            return {}
        rows = self._paths
        asked = {path: os.path.abspath(path) for path in paths}
        same: dict[str, tuple[str, ...]] = {path: (path,) for path in asked.values()}
        for files in identical_files([*asked.values(), *rows], crossing(asked.values(), rows)):
            same |= dict.fromkeys(files, files)
        found = {path: [row for copy in same[own] for row in rows.get(copy, ())] for path, own in asked.items()}
        return {path: np.array(sorted(own), dtype=np.int64) for path, own in found.items() if own}

    def told(self, rows: Integers) -> list[Source | None]:
        """Return what the model was told with the images of rows (n,), None = nothing."""
        if not self.gallery.instructions:
            return [None] * len(rows)
        return [self.gallery.instructions[index] for index in self.positions[rows].tolist()]


def index_place(index: GalleryIndex) -> Gallery:
    """Return an index's name and what its images were told, as those of a gallery without images."""
    told = str(index.state.instruction["told"])
    return Gallery(
        name=f"index {index.folder}", location=os.path.abspath(index.folder), sources=(), told=TOLD.get(told, told)
    )


class IndexedGallery(SearchedGallery):
    """A gallery index, of which a search reads the rows that it needs."""

    def __init__(self, index: GalleryIndex, modality: Modality | None = None, nprobe: int = 0) -> None:
        """modality: only images of it are searched, None = all. nprobe: lists of its codes that are looked through for
        candidates, 0 = the search is exact. Raises UserError when there are no such images, or no codes.
        """
        if modality is not None and modality not in index.modalities:
            listed = " and ".join(entry.name for entry in index.modalities)
            what = f"{listed} images, and {modality.name} ones are searched; give --gallery-modality"
            raise UserError(f"{index.folder} holds {what}" if listed else f"{index.folder} holds no image; add some")
        self.index = index
        self.modality = modality
        self.nprobe = nprobe
        self.codes = load(index) if nprobe else None
        self.reused = True
        self.gallery = index_place(index)

    @functools.cached_property
    def rows(self) -> FeatureRows:
        """The features that are searched."""
        return self.index.features(self.modality)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images."""
        return self.index.modalities if self.modality is None else (self.modality,)

    @property
    def persons_known(self) -> bool:
        """Whether any image says whom it shows."""
        return self.index.persons_known

    @functools.cached_property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of each image that could not be read."""
        return [(row.path, row.reason) for _, row in self.index.unreadable()]

    def images(self, rows: Integers) -> list[GalleryImage]:
        """Return the images of rows (n,)."""
        return [
            GalleryImage(index=identity, path=row.path, person_id=row.person, camera=row.camera)
            for identity, row in zip(self.index.ids(rows).tolist(), self.index.rows(rows), strict=True)
        ]

    def numbers(self, rows: Integers) -> Integers:
        """Return the ids of rows (n,)."""
        return self.index.ids(rows)

    def candidates(self, queries: Tensor, top_k: int) -> list[Integers] | None:
        """Return, for each of the queries (Q, D) of length 1, the rows that may be among its best, ascending; None =
        every row is looked at.
        """
        if self.codes is None:
            return None
        return [self._searched(rows) for rows in self.codes.rows(queries, self.index, top_k, self.nprobe)]

    @property
    def approximate(self) -> str:
        """What must be known of an approximate search, empty = it is exact."""
        return "" if self.codes is None else APPROXIMATE.format(self.nprobe, told(self.codes.measured))

    def _searched(self, rows: Integers) -> Integers:
        rows = np.unique(rows)
        return rows if self.modality is None else rows[np.isin(rows, self.every)]

    def person_rows(self, person: str) -> Integers:
        """Return the rows that show a person, ascending."""
        return self._searched(self.index.find("person", [person])[person])

    def copies(self, paths: Sequence[str]) -> dict[str, Integers]:
        """Return, for each path that is in the gallery, its rows, those of byte copies among them, ascending: of files
        as they were when they were encoded.
        """
        absolute = {path: os.path.abspath(path) for path in paths}
        contents = {path: sha256_of(path) for path in paths if Path(path).is_file()}
        by_path = self.index.find("path", absolute.values())
        by_content = self.index.find("content", contents.values())
        none = np.zeros(0, dtype=np.int64)
        found = {
            path: self._searched(np.concatenate([by_path[own], by_content.get(contents.get(path, ""), none)]))
            for path, own in absolute.items()
        }
        return {path: rows for path, rows in found.items() if len(rows)}

    def told(self, rows: Integers) -> list[Source | None]:
        """Return what the model was told with the images of rows (n,), None = nothing; of a picture its digest."""
        record: Mapping[str, Any] = self.index.state.instruction
        if record["told"] == "crop":
            return [Source(modality=Modality.RGB, value=image.path, crop=BOX) for image in self.images(rows)]
        said = {
            "text": Source(modality=Modality.TEXT, value=str(record.get("text", ""))),
            "picture": Source(modality=Modality.RGB, value=f"SHA-256 {record.get('sha256', '')}"),
        }
        return [said.get(str(record["told"]))] * len(rows)

    def outdated(self, rows: Integers) -> dict[int, str]:
        """Return, for those of the rows whose file is no longer what was encoded, `changed` or `missing`."""
        found = {}
        for row, line in zip(rows.tolist(), self.index.rows(rows), strict=True):
            changes = changed_files([line])
            if changes.changed or changes.missing:
                found[row] = "changed" if changes.changed else "missing"
        return found


class PartOfGallery(SearchedGallery):
    """Some images of an encoded gallery; rows and indices are those of the whole."""

    def __init__(self, whole: SearchedGallery, rows: Integers) -> None:
        """rows: those that are searched, ascending."""
        self.whole, self.every = whole, rows
        self.gallery, self.reused = whole.gallery, whole.reused
        marked = np.zeros(int(whole.rows.starts[-1]), dtype=bool)
        marked[rows] = True
        parts = np.split(marked, whole.rows.starts[1:-1])
        self._rows = dataclasses.replace(whole.rows, kept=tuple(parts) if whole.rows.parts else ())

    @property
    def rows(self) -> FeatureRows:
        """The features that are searched."""
        return self._rows

    @functools.cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images; of a gallery of several, those that the whole has."""
        return self.whole.modalities

    @property
    def persons_known(self) -> bool:
        """Whether the images say whom they show."""
        return self.whole.persons_known

    @property
    def unreadable(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of each image that could not be read."""
        return self.whole.unreadable

    @property
    def approximate(self) -> str:
        """What must be known of an approximate search, empty = it is exact."""
        return self.whole.approximate

    def images(self, rows: Integers) -> list[GalleryImage]:
        """Return the images of rows (n,)."""
        return self.whole.images(rows)

    def person_rows(self, person: str) -> Integers:
        """Return the rows that show a person, ascending."""
        return self._kept(self.whole.person_rows(person))

    def copies(self, paths: Sequence[str]) -> dict[str, Integers]:
        """Return, for each path that is in the gallery, its rows, those of byte copies among them, ascending."""
        found = {path: self._kept(rows) for path, rows in self.whole.copies(paths).items()}
        return {path: rows for path, rows in found.items() if len(rows)}

    def told(self, rows: Integers) -> list[Source | None]:
        """Return what the model was told with the images of rows (n,), None = nothing."""
        return self.whole.told(rows)

    def outdated(self, rows: Integers) -> dict[int, str]:
        """Return, for those of the rows whose file is no longer what was encoded, `changed` or `missing`."""
        return self.whole.outdated(rows)

    def candidates(self, queries: Tensor, top_k: int) -> list[Integers] | None:
        """Return, for each of the queries (Q, D) of length 1, the rows that may be among its best, ascending."""
        found = self.whole.candidates(queries, top_k)
        return None if found is None else [self._kept(rows) for rows in found]

    def _kept(self, rows: Integers) -> Integers:
        return rows[np.isin(rows, self.every)]


def part_of(gallery: SearchedGallery, keep: Callable[[GalleryImage], bool]) -> SearchedGallery:
    """Return the images of a gallery that `keep` keeps. Raises UserError when that is none."""
    rows = gallery.every
    kept = np.array([keep(image) for image in gallery.images(rows)], dtype=bool)
    if not kept.any():
        raise UserError(f"{gallery.gallery.name} has no image that passes the filter; take less of it")
    return PartOfGallery(gallery, rows[kept])
