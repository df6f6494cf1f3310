"""Exact search in rows that may be larger than memory: blocks of matrix products, and a second, exact look at whatever
may be among the best.

Shapes: Q queries, N rows, d compared columns, b rows of a block, K results, P pivots, C candidates.

A product in float32 depends in its last bits on the shape of the matrices, so that it cannot decide a ranking that is
the same for every block size. It only rules rows out, by a bound on its error: |fl(x.y) - x.y| <= d u / (1 - d u)
|x||y| with u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). What is left is
scored in float64 from what is stored and rounded to float32: that is the similarity. Equal ones keep the rows' order.

For few queries the product takes as long as reading the rows. Where rows have a coarse form, a quarter of their size
(`utils.retrieval.coarse`), that is multiplied instead, by a wider bound; a block of which too little is ruled out so is
multiplied in float32 after all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError
from utils.retrieval.coarse import CoarseRows, coarse_products, multiplies
from utils.retrieval.options import Similarity
from utils.retrieval.ranking import LARGEST_SQUARED, true_float32

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_BYTES = 64 << 20
"""Of one block of rows as float32, and of its scores; a quarter of what the search takes beside the rows."""
EXACT_BYTES = 8 << 20
"""Of the candidates that are scored in float64 at once."""
COARSE_ROWS = 1 << 20
"""Of a block in the coarse form, which is read where it lies: 4 MiB of scores for a query."""
SAMPLED = 1 << 14
"""Rows of a block that are sorted to tell which of the others need to be."""
COARSE_QUERIES = 16
"""More are multiplied faster in float32 than by the coarse form."""
COARSE_SHARE = 1 / 16
"""Of a block's rows, that may be left of the coarse form: scoring a row exactly takes as long as reading several."""
UNIT = 2.0**-24
"""u: the largest relative error of one rounding to float32."""
LOWEST = float(np.finfo(np.float32).min)
NO_ROW = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """Features in order, in one or more parts: memory maps, or tensors on any device."""

    parts: tuple[Tensor, ...]
    """(n, D) each, float32 or float16."""
    kept: tuple[Mask | None, ...] = ()
    """Per part which of its rows (n,) are searched, None = all; empty = all rows of all parts."""
    spread: float | None = None
    """Where all rows have a length within 1 +- so much, so much; None = nothing is known of their lengths."""
    coarse: tuple[CoarseRows | None, ...] = ()
    """Per part its coarse form, None = it has none; empty = no part has one."""

    @functools.cached_property
    def starts(self) -> Integers:
        """(parts + 1,): first row of each part, and the number of rows."""
        return np.cumsum([0, *(len(part) for part in self.parts)], dtype=np.int64)

    @functools.cached_property
    def searched(self) -> int:
        """Number of rows that are searched."""
        masks = self.kept or (None,) * len(self.parts)
        return sum(len(part) if mask is None else int(mask.sum()) for part, mask in zip(self.parts, masks, strict=True))

    def each(self) -> Iterator[tuple[int, Tensor, Mask | None, CoarseRows | None]]:
        """Yield (first row, features (n, D), which of them are searched, coarse form) of each part."""
        none = (None,) * len(self.parts)
        yield from zip(self.starts.tolist(), self.parts, self.kept or none, self.coarse or none)

    def gather(self, rows: Integers, columns: slice = slice(None)) -> NDArray[np.float64]:
        """Return rows (n,) as (n, d) float64."""
        width = len(range(*columns.indices(self.parts[0].shape[1]))) if self.parts else 0
        found = np.empty((len(rows), width), dtype=np.float64)
        place = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(place).tolist():
            own = place == number
            local = torch.from_numpy(rows[own] - self.starts[number])
            part = self.parts[number]
            found[own] = part[local.to(part.device)][:, columns].double().cpu().numpy()
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Pivot:
    """A place in the ranking of a query; the rows before it are counted."""

    query: int
    score: float
    row: int = NO_ROW
    """Of the same score only rows before this one count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best rows of each query."""

    rows: Integers
    """(Q, K), from best to worst; K = top_k, or all rows that are searched when they are fewer."""
    scores: Floats
    """(Q, K)."""
    before: Integers
    """(P,): searched rows that rank before each pivot."""


class _Piece(NamedTuple):
    """Rows with a coarse form."""

    first: int
    features: Tensor
    """(n, D)."""
    kept: Mask | None
    coarse: CoarseRows


@dataclass(kw_only=True)
class _Search:
    """One pass over the rows."""

    asked: Floats
    """(Q, d): the queries, of length 1 under the cosine."""
    rows: FeatureRows
    similarity: Similarity
    columns: slice
    top_k: int
    pivots: Sequence[Pivot]
    device: torch.device | None
    scores: Floats = field(init=False)
    order: Integers = field(init=False)
    before: Integers = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full((len(self.asked), self.top_k), -np.inf, dtype=np.float32)
        self.order = np.full((len(self.asked), self.top_k), NO_ROW, dtype=np.int64)
        self.before = np.zeros(len(self.pivots), dtype=np.int64)
        self.pivot_query = np.array([pivot.query for pivot in self.pivots], dtype=np.int64)
        self.pivot_score = np.array([pivot.score for pivot in self.pivots], dtype=np.float32)
        self.pivot_row = np.array([pivot.row for pivot in self.pivots], dtype=np.int64)

    def all(self, size: int) -> None:
        """Look at all rows, `size` of them at once, or more by their coarse form."""
        pieces: list[_Piece] = []
        for first, features, kept, coarse in self.rows.each():
            if coarse is None or not self._few(features):
                self._group(pieces, size)
                pieces = []
                self.blocks(first, features, kept, size)
                continue
            for start in range(0, len(features), COARSE_ROWS):
                chosen = slice(start, start + COARSE_ROWS)
                mask = None if kept is None else kept[chosen]
                piece = _Piece(first + start, features[chosen], mask, coarse.rows(chosen.start, chosen.stop))
                if sum(len(one.features) for one in (*pieces, piece)) > COARSE_ROWS:
                    self._group(pieces, size)
                    pieces = []
                pieces.append(piece)
        self._group(pieces, size)

    def _group(self, pieces: Sequence[_Piece], size: int) -> None:
        """Look at pieces of rows that follow one another by their coarse form, or at each in blocks."""
        if pieces and not self._by_coarse(pieces):
            for piece in pieces:
                self.blocks(piece.first, piece.features, piece.kept, size)

    def blocks(self, first: int, features: Tensor, kept: Mask | None, size: int) -> None:
        """Look at rows, `size` of them at once."""
        for start in range(0, len(features), size):
            chosen = None if kept is None else kept[start : start + size]
            if chosen is None or chosen.any():
                self.block(first + start, features[start : start + size], chosen)

    def block(self, first: int, features: Tensor, kept: Mask | None) -> None:
        """Look at one block of rows."""
        scores, error = self._approximate(features)
        if kept is not None:
            scores[:, ~kept] = -np.inf
        candidates = self._candidates(scores, error, kept) if self.top_k else None
        self._take(first, candidates, self._close(scores, error))

    def _few(self, features: Tensor) -> bool:
        """Return whether a coarse form is worth its while, and stands for what is compared."""
        device = self.device or features.device
        whole = (
            self.asked.shape[1] == features.shape[1] and self.similarity == "cosine" and self.rows.spread is not None
        )
        return whole and device.type == "cpu" and len(self.asked) <= COARSE_QUERIES and multiplies()

    def _by_coarse(self, pieces: Sequence[_Piece]) -> bool:
        """Look at pieces by their coarse form; return False, with nothing done, where that rules out too little."""
        scores, error = coarse_products(self.asked, [piece.coarse for piece in pieces])
        end = 0
        for piece in pieces:
            start, end = end, end + len(piece.features)
            if piece.kept is not None:
                scores[:, start:end][:, ~piece.kept] = -np.inf
        error += self._spread_error()
        most = COARSE_SHARE * scores.size
        candidates = self._candidates(scores, error, None) if self.top_k else None
        if candidates is not None and len(candidates[0]) > most:
            return False
        close = self._close(scores, error)
        if sum(len(rows) for _, rows in close) > most:
            return False
        self._take(pieces[0].first, candidates, close)
        return True

    def _spread_error(self) -> float:
        """Return what rows whose lengths are not quite 1 add to the error of their products with queries."""
        assert self.rows.spread is not None, "lengths are left out where they are known"
        # |s / (1 + e) - s| <= |s| e / (1 - e), and |s| <= (1 + e) with a rounding.
        spread, width = self.rows.spread, self.asked.shape[1]
        return (1.5 * width + 32) * UNIT * (1 + spread) + spread * (1 + spread) / max(1 - spread, 0.5)

    def _take(
        self,
        first: int,
        candidates: tuple[Integers, Integers] | None,
        close: Sequence[tuple[int, Integers]],
    ) -> None:
        """Score what may be among the best of a block, and what may be before a pivot, exactly. close: see `_close`."""
        if candidates is not None:
            query, local = candidates
            for part, exact in self._exact(query, first + local):
                self._merge(query[part], first + local[part], exact)
        for number, (above, rows) in enumerate(close):
            self.before[number] += above
            asked = np.full(len(rows), self.pivot_query[number])
            for part, exact in self._exact(asked, first + rows):
                tied = (exact == self.pivot_score[number]) & (first + rows[part] < self.pivot_row[number])
                self.before[number] += np.count_nonzero((exact > self.pivot_score[number]) | tied)

    def _approximate(self, features: Tensor) -> tuple[Floats, Doubles]:
        """Return scores (Q, b), and per query (Q,) how far they may be from the exact ones.

        Rows whose squares leave float32's range have no approximation: their block's scores are NaN.
        """
        block = features[:, self.columns].to(self.device or features.device).float()
        known = self.similarity == "cosine" and self.rows.spread is not None and block.shape[1] == features.shape[1]
        lengths = None if known else _lengths(block)
        width = block.shape[1]
        if lengths is not None and not _in_range(lengths, block):
            return np.full((len(self.asked), len(block)), np.nan, dtype=np.float32), np.zeros(len(self.asked))
        scores = _products(self.asked, block)
        if lengths is None:
            return scores, np.full(len(self.asked), self._spread_error())
        if self.similarity == "cosine":
            scores /= np.where(lengths > 0, lengths, 1)
            return scores, np.full(len(self.asked), (1.5 * width + 32) * UNIT)
        own = np.linalg.norm(self.asked.astype(np.float64), axis=1)
        scores *= 2
        scores -= (own**2).astype(np.float32)[:, None]
        scores -= lengths * lengths
        return scores, (width + 32) * UNIT * (own + float(lengths.max())) ** 2

    def _candidates(self, scores: Floats, error: Doubles, kept: Mask | None) -> tuple[Integers, Integers]:
        """Return (query, row of the block) (C,) of whatever may be among the best, by query."""
        worst = self.scores[:, -1].astype(np.float64)
        cut = _below(worst - error)
        mask = ~(scores < np.maximum(cut, LOWEST)[:, None])
        if kept is not None:
            mask &= kept
        # Of rows that are all better than those before, the block's own best rule most of the others out.
        if scores.shape[1] > self.top_k and np.count_nonzero(mask) > 4 * self.top_k * len(scores):
            own = _best(scores, self.top_k).astype(np.float64)
            cut = np.fmax(cut, _below(own - 2 * error))
            mask = ~(scores < np.maximum(cut, LOWEST)[:, None])
            if kept is not None:
                mask &= kept
        flat = np.flatnonzero(mask)
        return flat // scores.shape[1], flat % scores.shape[1]

    def _exact(self, query: Integers, rows: Integers) -> Iterator[tuple[slice, Floats]]:
        """Yield (which of the candidates, their scores) in parts that fit the memory."""
        step = max(EXACT_BYTES // (8 * self.asked.shape[1]), 1)
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            items = self.rows.gather(rows[part], self.columns)
            yield part, _exact_scores(self.asked[query[part]], items, self.similarity)

    def _merge(self, query: Integers, row: Integers, exact: Floats) -> None:
        """Take candidates (C,), sorted by query, among the best."""
        # Most candidates lose against the last of the best.
        last, behind = self.scores[query, -1], self.order[query, -1]
        better = (exact > last) | ((exact == last) & (row < behind))
        query, row, exact = query[better], row[better], exact[better]
        queries, starts = np.unique(query, return_index=True)
        for number, start, stop in zip(queries.tolist(), starts.tolist(), [*starts[1:].tolist(), len(query)]):
            scores = np.concatenate([self.scores[number], exact[start:stop]])
            rows = np.concatenate([self.order[number], row[start:stop]])
            order = np.lexsort((rows, -scores))[: self.top_k]
            self.scores[number], self.order[number] = scores[order], rows[order]

    def _close(self, scores: Floats, error: Doubles) -> list[tuple[int, Integers]]:
        """Return, for each pivot, how many rows of a block are surely before it, and which are too close to tell."""
        found = []
        for number, query in enumerate(self.pivot_query.tolist()):
            pivot, own = float(self.pivot_score[number]), scores[query]
            above = own > np.nextafter(np.float32(pivot + error[query]), np.float32(np.inf))
            close = np.flatnonzero(~above & ~(own < _below(np.float64(pivot - error[query]))) & ~np.isneginf(own))
            found.append((int(np.count_nonzero(above)), close))
        return found


def _best(scores: Floats, place: int) -> Floats:
    """Return the score (Q,) at a place, from 1, of each row of scores (Q, b)."""
    if len(scores) > COARSE_QUERIES or scores.shape[1] < 4 * max(SAMPLED, place):
        return np.partition(scores, -place, axis=1)[:, -place]
    # Some columns say what most of the others need not be compared for.
    least = np.partition(scores[:, : max(SAMPLED, place)], -place, axis=1)[:, -place]
    lines = [line[~(line < value)] for line, value in zip(scores, least)]
    return np.array([np.partition(line, -place)[-place] for line in lines], dtype=np.float32)


def _below(value: Doubles | np.float64) -> Floats:
    """Return float32 numbers that are not above the given ones."""
    with np.errstate(over="ignore"):
        return np.nextafter(np.asarray(value, dtype=np.float64).astype(np.float32), np.float32(-np.inf))


def _lengths(block: Tensor) -> Floats:
    """Return the lengths (b,) of rows (b, d) float32."""
    if block.device.type != "cpu":
        return torch.linalg.vector_norm(block, dim=1).cpu().numpy()
    # On a CPU einsum reads the block once and writes nothing; torch's norm takes ten times as long.
    values = block.numpy()
    with np.errstate(over="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", values, values))


def _in_range(lengths: Floats, block: Tensor) -> bool:
    """Return whether the lengths (b,) of a block's rows are those of their squares; only zeros have a length of 0."""
    short = lengths < 1 / LARGEST_SQUARED
    if short.any() and bool((block[torch.from_numpy(short).to(block.device)] != 0).any()):
        return False
    return float(lengths.max(initial=1)) <= LARGEST_SQUARED


def _products(asked: Floats, block: Tensor) -> Floats:
    """Return inner products (Q, b) in float32, whatever autocast and TF32 say."""
    if block.device.type == "cpu":
        values = block.numpy()
        # One query: a matrix by a vector reads the block at the speed of memory.
        return (values @ asked[0])[None] if len(asked) == 1 else asked @ values.T
    with true_float32(block.device):
        return (torch.from_numpy(asked).to(block.device) @ block.T).cpu().numpy()


def _exact_scores(asked: Floats, items: Doubles, similarity: Similarity) -> Floats:
    """Return the similarities (n,) of queries (n, d) and rows (n, d), summed in float64 row by row."""
    queries = asked.astype(np.float64)
    if similarity == "cosine":
        lengths = np.sqrt((items * items).sum(1))
        scores = (queries * items).sum(1) / np.where(lengths > 0, lengths, 1)
    else:
        scores = -((queries - items) ** 2).sum(1)
    with np.errstate(over="ignore"):
        # Adding 0 makes the two zeros equal.
        return scores.astype(np.float32) + np.float32(0)


def as_compared(features: Tensor, similarity: Similarity) -> Floats:
    """Return features (n, d) as a search takes its queries: under the cosine of length 1, rounded once from float64, so
    that what is compared by them again has the same last bits.
    """
    found = np.empty(features.shape, dtype=np.float32)
    step = max(EXACT_BYTES // (8 * max(features.shape[1], 1)), 1)
    for start in range(0, len(features), step):
        rows = features[start : start + step].detach().double().cpu().numpy()
        if similarity == "cosine":
            # Row by row: a query alone has the last bits that it has among others.
            lengths = np.sqrt((rows * rows).sum(1, keepdims=True))
            rows = rows / np.where(lengths > 0, lengths, 1)
        found[start : start + step] = rows
    return found


def _asked(queries: Tensor, similarity: Similarity) -> Floats:
    """Return queries (Q, d) as they are compared. Raises UserError for one that is not finite."""
    found = as_compared(queries, similarity)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise UserError(f"the feature of query {row} has a value that is not finite; check what computed it")
    return found


def exact_scores(
    queries: Tensor, rows: FeatureRows, chosen: Integers, *, similarity: Similarity, columns: slice = slice(None)
) -> Floats:
    """Return the similarity (n,) of queries (n, d) with the rows chosen (n,), one each, as `best_rows` gives it.

    queries: the compared columns alone. Raises UserError for a query that is not finite.
    """
    asked = _asked(queries, similarity)
    step = max(EXACT_BYTES // (8 * max(asked.shape[1], 1)), 1)
    found = [
        _exact_scores(asked[start : start + step], rows.gather(chosen[start : start + step], columns), similarity)
        for start in range(0, len(chosen), step)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


def best_rows(
    queries: Tensor,
    rows: FeatureRows,
    top_k: int,
    *,
    similarity: Similarity = "cosine",
    columns: slice = slice(None),
    pivots: Sequence[Pivot] = (),
    block_bytes: int = BLOCK_BYTES,
    device: torch.device | None = None,
) -> Best:
    """Return the best `top_k` of the searched rows for each of the queries (Q, d), exactly, equal ones in the rows'
    order, and how many rank before each pivot.

    queries: the compared columns alone. columns: which columns of the rows are compared. The result is the same for any
    parts and any block_bytes, and takes about four times that memory beside the rows, (Q, K) results not counted. The
    similarity is the cosine, or minus the squared Euclidean distance. device: where blocks are multiplied, None = where
    the rows are. Raises UserError for a query that is not finite.
    """
    asked = _asked(queries, similarity)
    top_k = min(top_k, rows.searched)
    width = max(asked.shape[1], 1)
    together = max(min(len(asked), block_bytes // (4 * 1024)), 1)
    found = []
    for start in range(0, len(asked), together):
        mine = range(start, start + together)
        chosen = [place for place, pivot in enumerate(pivots) if pivot.query in mine]
        local = [
            Pivot(query=pivots[place].query - start, score=pivots[place].score, row=pivots[place].row)
            for place in chosen
        ]
        part = _Search(
            asked=asked[start : start + together],
            rows=rows,
            similarity=similarity,
            columns=columns,
            top_k=top_k,
            pivots=local,
            device=device,
        )
        size = max(block_bytes // (4 * max(width, len(part.asked))), 1)
        part.all(size)
        found.append((part, chosen))
    before = np.zeros(len(pivots), dtype=np.int64)
    for part, chosen in found:
        before[chosen] = part.before
    empty = np.zeros((0, top_k))
    return Best(
        rows=np.concatenate([empty.astype(np.int64), *(part.order for part, _ in found)]),
        scores=np.concatenate([empty.astype(np.float32), *(part.scores for part, _ in found)]),
        before=before,
    )
