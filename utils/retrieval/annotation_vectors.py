"""Vectors of annotations by kind, and the cosines between queries and their matches that mAP at a threshold asks for.

Shapes: n items of one side, m distinct annotations of a kind, D dimensions of its encoder, M (query, match) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.retrieval.arrays import Array, to_numpy

CHUNK_VALUES = 1 << 21
ABSENT = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseRows:
    """m vectors that are mostly zero: row i has `values[starts[i]:starts[i + 1]]` in `columns` of the same places."""

    starts: np.ndarray
    """(m + 1,) int64."""
    columns: np.ndarray
    """(nnz,) int64, below `size` and ascending within a row."""
    values: np.ndarray
    """(nnz,) float64."""
    size: int
    """Dimensions."""

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationVectors:
    """The annotations of one kind."""

    vectors: Array | SparseRows
    """(m, D): the distinct ones."""
    rows: np.ndarray
    """(n,): the row of each item in them, -1 = it has none."""

    def take(self, items: np.ndarray) -> AnnotationVectors:
        """Return the annotations of the items with these indices, in that order; the vectors are shared."""
        return AnnotationVectors(vectors=self.vectors, rows=self.rows[items])


Annotations = Array | Mapping[str, AnnotationVectors]
"""One vector per item (n, D), or the vectors of each kind."""


class _Dense:
    """Vectors (m, D) of one side and kind, with their lengths. Raises UserError for one without a direction."""

    def __init__(self, vectors: np.ndarray, name: str) -> None:
        if vectors.ndim != 2:
            raise UserError(f"{name} must be a matrix, one row per item, but has shape {vectors.shape}")
        self.vectors = vectors
        self.size = self.values_per_row = vectors.shape[1]
        step = max(CHUNK_VALUES // max(self.size, 1), 1)
        parts = [vectors[start : start + step] for start in range(0, len(vectors), step)]
        self.lengths = np.concatenate(
            [np.empty(0), *(np.linalg.norm(part.astype(np.float64), axis=1) for part in parts)]
        )
        _require_directions(self.lengths, name)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Unit vectors (len(rows), D) float64."""
        return self.vectors[rows].astype(np.float64) / self.lengths[rows, None]


class _Sparse:
    """The same for sparse rows."""

    def __init__(self, vectors: SparseRows, name: str) -> None:
        self.vectors = vectors
        self.size = vectors.size
        self.values_per_row = len(vectors.values) // max(len(vectors), 1)
        counts = np.diff(vectors.starts)
        owner = np.repeat(np.arange(len(counts)), counts)
        squares = np.asarray(vectors.values, dtype=np.float64) ** 2
        self.lengths = np.sqrt(np.bincount(owner, weights=squares, minlength=len(counts)))
        _require_directions(self.lengths, name)

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit vectors as (position in `rows`, position * size + column, value), ascending in the second."""
        counts = np.diff(self.vectors.starts)[rows]
        position = np.repeat(np.arange(len(rows)), counts)
        entry = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts - self.vectors.starts[rows], counts)
        return (
            position,
            position * self.size + self.vectors.columns[entry],
            self.vectors.values[entry] / self.lengths[rows][position],
        )


_Directions = _Dense | _Sparse


def _require_directions(lengths: np.ndarray, name: str) -> None:
    sound = np.isfinite(lengths) & (lengths > 0)
    if not sound.all():
        row = int(np.flatnonzero(~sound)[0])
        raise UserError(f"{name} row {row} is zero or not finite and has no direction; give every item an instruction")


def _dot(query: _Directions, gallery: _Directions, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines (M,) of rows `left` of the queries' vectors and rows `right` of the gallery's, both of one form."""
    if isinstance(query, _Dense):
        assert isinstance(gallery, _Dense)
        return np.einsum("md,md->m", query.units(left), gallery.units(right))
    assert isinstance(gallery, _Sparse)
    _, keys, values = query.entries(left)
    position, wanted, weights = gallery.entries(right)
    nearest = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    shared = keys[nearest] == wanted
    return np.bincount(position[shared], weights=weights[shared] * values[nearest[shared]], minlength=len(left))


class PairCosines:
    """Cosines between what a query asks for and the annotations of gallery items, each within its own kind, in
    float64.
    """

    def __init__(self, query: Annotations, gallery: Annotations, shape: tuple[int, int]) -> None:
        """shape: number of queries and of gallery items. Raises UserError naming the argument that does not fit."""
        sides = [
            _by_kind(annotations, f"{side}_instructions", side, count)
            for annotations, side, count in zip((query, gallery), ("query", "gallery"), shape)
        ]
        if isinstance(query, Mapping) != isinstance(gallery, Mapping):
            raise UserError("query_instructions and gallery_instructions must both be matrices or both be by kind")
        self._rows = [{kind: vectors.rows for kind, vectors in side.items()} for side in sides]
        self._directions: dict[str, tuple[_Directions, _Directions]] = {}
        self._kinds = tuple(sides[0])
        self._kind_of_query = _kind_of_query(self._rows[0], shape[0])
        for kind in self._kinds:
            if kind in sides[1]:
                self._directions[kind] = _comparable(sides[0][kind], sides[1][kind], kind)

    def cosines(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Cosine (M,) of each pair of a query and a gallery index; nan where the item has no annotation of the query's
        kind.
        """
        values = np.full(len(queries), np.nan)
        kinds = self._kind_of_query[queries]
        for number, kind in enumerate(self._kinds):
            if kind not in self._directions:
                continue
            pairs = np.flatnonzero((kinds == number) & (self._rows[1][kind][gallery] != ABSENT))
            left, right = self._rows[0][kind][queries[pairs]], self._rows[1][kind][gallery[pairs]]
            directions = self._directions[kind]
            step = max(CHUNK_VALUES // max(*(side.values_per_row for side in directions), 1), 1)
            for start in range(0, len(pairs), step):
                part = slice(start, start + step)
                values[pairs[part]] = _dot(*directions, left[part], right[part])
        return values


def _by_kind(annotations: Annotations, name: str, side: str, count: int) -> Mapping[str, AnnotationVectors]:
    """Annotations of `count` items by kind; a matrix is one kind without a name."""
    if not isinstance(annotations, Mapping):
        vectors = to_numpy(annotations)
        annotations = {"": AnnotationVectors(vectors=vectors, rows=np.arange(len(vectors) if vectors.ndim else 0))}
    for kind, annotated in annotations.items():
        if len(annotated.rows) != count:
            raise UserError(
                f"{_spelled(name, kind)} has {len(annotated.rows)} rows for {count} {side} items; give one per item"
            )
        if annotated.rows.size and not (
            annotated.rows.min() >= ABSENT and annotated.rows.max() < len(annotated.vectors)
        ):
            raise UserError(
                f"{_spelled(name, kind)} names a row outside its {len(annotated.vectors)} vectors; -1 stands for none"
            )
    return annotations


def _spelled(name: str, kind: str) -> str:
    return f"{name} ({kind})" if kind else name


def _kind_of_query(rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """(count,) position of each query's kind. Raises UserError for a query with no kind or with several."""
    asked = np.array([row != ABSENT for row in rows.values()], dtype=bool).reshape(len(rows), count)
    number = asked.sum(0)
    if (number != 1).any():
        query = int(np.flatnonzero(number != 1)[0])
        raise UserError(
            f"query {query} has instructions of {number[query]} kinds; it is compared within one kind, give exactly one"
        )
    return asked.argmax(0) if len(rows) else np.empty(0, dtype=np.int64)


def _directions(vectors: Array | SparseRows, name: str) -> _Directions:
    return _Sparse(vectors, name) if isinstance(vectors, SparseRows) else _Dense(to_numpy(vectors), name)


def _comparable(query: AnnotationVectors, gallery: AnnotationVectors, kind: str) -> tuple[_Directions, _Directions]:
    names = [_spelled(f"{side}_instructions", kind) for side in ("query", "gallery")]
    left = _directions(query.vectors, names[0])
    right = left if gallery.vectors is query.vectors else _directions(gallery.vectors, names[1])
    if left.size != right.size or type(left) is not type(right):
        raise UserError(
            f"{names[0]} have {left.size} dimensions and {names[1]} {right.size}; both must come from one encoder"
        )
    return left, right
