"""k-reciprocal re-ranking in bounded memory: sparse neighbourhoods instead of matrices over all pairs of items.

Shapes: Q queries, G gallery items, N = Q + G items of both (queries first), D dimensions, k = k1 + 1 or k2 if larger.
Conventions. An item is the first of its own neighbours, so that "the k1 nearest" are lists of k1 + 1 entries, itself
included, in both directions, and "half" lists have round(k1 / 2) + 1 (a half rounds to the even number); the k2 lists
that are averaged include the item as well. The base distance is the squared Euclidean one, divided by the largest of
its row over all N items. Equal distances are ordered by index, queries first.
Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, equations 3 to 12, with
the conventions of its public code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.retrieval.ranking import true_float32

# Scores of one product: fixed, so that the budget cannot move a last bit of a distance.
BLOCK_SCORES = 1 << 21
MIN_BLOCK_ROWS = 16
BYTES_PER_SCORE = 64
# Values of one step of the set arithmetic, and the bytes that its temporaries take for each.
CHUNK_VALUES = 1 << 21
BYTES_PER_VALUE = 40
BYTES_PER_ENTRY = 8
MEGABYTE = 1 << 20


def half_list(k1: int) -> int:
    """Entries of the half lists, the item itself included."""
    return round(k1 / 2) + 1


def longest_set(k1: int) -> int:
    """Largest possible number of expanded reciprocal neighbours: a half list joins only if two thirds are in
    already.
    """
    return (k1 + 1) * (1 + (half_list(k1) - 1) // 3)


def estimate_bytes(queries: int, gallery: int, k1: int, k2: int = 6) -> int:
    """Return the most bytes that re-ranking takes beside the features; real data take less.

    The neighbour lists, the reciprocal sets (twice while they are joined), the inverted index of the averaged sets, and
    the blocks that are worked on.
    """
    items = queries + gallery
    entries = longest_set(k1)
    lists = items * max(k1 + 1, k2) * 4
    sets = 2 * items * min(entries, items) * BYTES_PER_ENTRY
    index = gallery * min(entries * k2, items) * BYTES_PER_ENTRY
    blocks = max(BLOCK_SCORES, MIN_BLOCK_ROWS * items) * BYTES_PER_SCORE + CHUNK_VALUES * BYTES_PER_VALUE
    return lists + sets + index + blocks + items * 32


def rerank_distances(
    query_features: Tensor,
    gallery_features: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    memory_mb: float = 1024.0,
    normalize: bool = True,
) -> Iterator[tuple[int, Tensor]]:
    """Return an iterator over (first query, final distances (b, G) float32 on the CPU), all queries in order.

    The final distance is (1 - weight) * Jaccard + weight * base distance; lower = more alike. Rank it block by block
    with `evaluate_blocks(((start, -block) for start, block in rerank_distances(...)), query, gallery, (Q, G),
    options=...)` of utils.retrieval.metrics; no block needs to be kept. Neighbours are taken among all queries and all
    of the gallery handed in, whatever an exclusion rule drops later, so every gallery draw is a re-ranking of its own.

    features: (Q, D) and (G, D), float32 or lower, on one device, where the products are computed. normalize: compare
    directions, as the cosine does; without it the features as they are. Distances do not depend on `memory_mb`.
    Raises UserError, before any work, when `estimate_bytes` exceeds `memory_mb`, and for a wrong argument.
    """
    queries, gallery = len(query_features), len(gallery_features)
    _check(query_features, gallery_features, k1, k2, weight)
    needed = estimate_bytes(queries, gallery, k1, k2)
    if needed > memory_mb * MEGABYTE:
        raise UserError(
            f"re-ranking {queries} queries against {gallery} gallery items with k1 = {k1} takes up to "
            f"{needed / MEGABYTE:.0f} MiB, and the budget is {memory_mb:g} MiB; raise the budget, lower k1, or do not "
            "re-rank"
        )
    return _rerank(_Points(query_features, gallery_features, normalize), k1, k2, weight)


def _check(query: Tensor, gallery: Tensor, k1: int, k2: int, weight: float) -> None:
    for name, features in (("query_features", query), ("gallery_features", gallery)):
        if features.ndim != 2:
            raise UserError(f"{name} must be a matrix, one row per item, but has shape {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"{name} has a value that is not finite; check what computed it")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query_features have {query.shape[1]} dimensions and gallery_features {gallery.shape[1]}; both must come "
            "from one model"
        )
    if not 0 <= weight <= 1:
        raise UserError(f"weight = {weight!r}: must be between 0 (Jaccard distance alone) and 1 (base distance alone)")
    if k1 < 1 or k2 < 1:
        raise UserError(f"k1 = {k1}, k2 = {k2}: both must be at least 1")
    items = len(query) + len(gallery)
    if not len(gallery):
        raise UserError("the gallery is empty; give at least one gallery item")
    if max(k1 + 1, k2) > items:
        raise UserError(
            f"k1 = {k1}, k2 = {k2}: lists of {max(k1 + 1, k2)} neighbours do not exist among {items} items; lower them"
        )


class _Points:
    """Queries and gallery as one list of N points."""

    def __init__(self, query: Tensor, gallery: Tensor, normalize: bool) -> None:
        self.sides = [
            features.detach() if features.dtype == torch.float32 else features.detach().float()
            for features in (query, gallery)
        ]
        self.queries, self.count = len(query), len(query) + len(gallery)
        squares = torch.cat([side.square().sum(1) for side in self.sides])
        lengths = squares.sqrt()
        self.scale = torch.where(lengths > 0, 1 / lengths, 1.0) if normalize else torch.ones_like(lengths)
        self.squares = squares * self.scale.square()

    def rows(self, indices: Tensor) -> Tensor:
        """Features (len(indices), D)."""
        found = torch.empty((len(indices), self.sides[0].shape[1]), device=self.scale.device)
        of_query = indices < self.queries
        found[of_query] = self.sides[0][indices[of_query]]
        found[~of_query] = self.sides[1][indices[~of_query] - self.queries]
        return found.mul_(self.scale[indices, None])

    def distances(self, start: int, stop: int, first: int = 0) -> Tensor:
        """Squared distances (stop - start, N - first) of some points to the points from `first` on, exactly 0 to
        themselves.
        """
        points = torch.arange(start, stop, device=self.scale.device)
        own = self.rows(points)
        sides = [self.sides[1]] if first == self.queries else self.sides
        with true_float32(own.device):
            products = torch.cat([own @ side.t() for side in sides], dim=1)
        products.mul_(self.scale[first:]).mul_(-2).add_(self.squares[start:stop, None]).add_(
            self.squares[first:]
        ).clamp_(min=0)
        inside = points >= first
        products[inside, points[inside] - first] = 0
        return products

    def pair_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Squared distances (M,) of pairs."""
        step = max(CHUNK_VALUES // self.sides[0].shape[1], 1)
        found = [np.empty(0, dtype=np.float32)]
        for start in range(0, len(left), step):
            one, other = (torch.from_numpy(side[start : start + step]).to(self.scale.device) for side in (left, right))
            gaps = (self.rows(one) - self.rows(other)).square().sum(1)
            found.append(gaps.cpu().numpy())
        return np.concatenate(found)


def _blocks(count: int, width: int, start: int = 0) -> Iterator[tuple[int, int]]:
    step = max(BLOCK_SCORES // max(width, 1), MIN_BLOCK_ROWS)
    return ((first, min(first + step, count)) for first in range(start, count, step))


def _nearest(points: _Points, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The `length` nearest of each point, itself first, (N, length) int32, and the largest distance of its row (N,)."""
    lists = np.empty((points.count, length), dtype=np.int32)
    largest = np.empty(points.count, dtype=np.float32)
    for start, stop in _blocks(points.count, points.count):
        distances = points.distances(start, stop)
        largest[start:stop] = distances.amax(1).cpu().numpy()
        rows = torch.arange(stop - start, device=distances.device)
        distances[rows, rows + start] = -1
        reach = torch.topk(distances, length, dim=1, largest=False).values[:, -1:]
        # Items tied with the last place come in the order of their index, which topk does not promise.
        near_rows, near = (distances <= reach).nonzero(as_tuple=True)
        by_distance = torch.argsort(distances[near_rows, near], stable=True)
        order = by_distance[torch.argsort(near_rows[by_distance], stable=True)]
        begin = torch.searchsorted(near_rows, rows)
        chosen = near[order[begin[:, None] + torch.arange(length, device=rows.device)]]
        lists[start:stop] = chosen.cpu().numpy()
    largest[largest == 0] = 1
    return lists, largest


@dataclass(frozen=True, slots=True)
class _Sets:
    """Sparse rows: row i has columns[starts[i]:starts[i + 1]], ascending, with weights that sum to 1."""

    starts: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place in `rows` and position of every entry of these rows."""
        counts = np.diff(self.starts)[rows]
        place = np.repeat(np.arange(len(rows)), counts)
        return place, np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts - self.starts[rows], counts)


def _reciprocal(lists: np.ndarray, items: np.ndarray, length: int) -> np.ndarray:
    """Which of the first `length` neighbours of some items have the item among theirs, (..., length) boolean."""
    near = lists[items, :length]
    return (lists[near, :length] == items[..., None, None]).any(-1)


def _expanded(lists: np.ndarray, items: np.ndarray, k1: int) -> tuple[np.ndarray, np.ndarray]:
    """Expanded reciprocal neighbours of some items as (place in items, neighbour), sorted, each once.

    The half lists' reciprocal neighbours of a neighbour join when more than two thirds of them are there already.
    """
    near, half = lists[items, : k1 + 1], half_list(k1)
    mutual = _reciprocal(lists, items, k1 + 1)
    wider = lists[near, :half]
    wider_mutual = _reciprocal(lists, near, half)
    known = ((wider[..., None] == near[:, None, None, :]) & mutual[:, None, None, :]).any(-1)
    shared, size = (known & wider_mutual).sum(-1), wider_mutual.sum(-1)
    joins = wider_mutual & (mutual & (3 * shared > 2 * size))[..., None]
    place, column = mutual.nonzero()
    more_place, of, more_column = joins.nonzero()
    keys = np.concatenate(
        [
            place * np.int64(len(lists)) + near[place, column],
            more_place * np.int64(len(lists)) + wider[more_place, of, more_column],
        ]
    )
    return np.divmod(np.unique(keys), len(lists))


def _reciprocal_sets(points: _Points, lists: np.ndarray, largest: np.ndarray, k1: int) -> _Sets:
    """Expanded reciprocal neighbours of every point, weighted by exp(-distance) (equations 5 and 7)."""
    step = max(CHUNK_VALUES // ((k1 + 1) ** 2 * half_list(k1)), 1)
    counts, columns, weights = [], [], []
    for start in range(0, points.count, step):
        items = np.arange(start, min(start + step, points.count))
        place, neighbours = _expanded(lists, items, k1)
        gaps = points.pair_distances(items[place], neighbours) / largest[items[place]]
        raw = np.exp(-gaps.astype(np.float64))
        sums = np.bincount(place, weights=raw, minlength=len(items))
        counts.append(np.bincount(place, minlength=len(items)))
        columns.append(neighbours.astype(np.int32))
        weights.append((raw / sums[place]).astype(np.float32))
    starts = np.append(0, np.cumsum(np.concatenate(counts)))
    return _Sets(starts, np.concatenate(columns), np.concatenate(weights))


def _averaged(sets: _Sets, lists: np.ndarray, items: np.ndarray, k2: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the sets of the k2 nearest as (place in items, column, weight), sorted (equation 11)."""
    place, entry = sets.entries(lists[items, :k2].reshape(-1))
    keys, position = np.unique(place // k2 * np.int64(len(lists)) + sets.columns[entry], return_inverse=True)
    weights = np.bincount(position.reshape(-1), weights=sets.weights[entry], minlength=len(keys)) / k2
    return *np.divmod(keys, len(lists)), weights


def _average_steps(sets: _Sets, start: int, stop: int, k2: int) -> Iterator[np.ndarray]:
    longest = int(np.diff(sets.starts).max())
    step = max(CHUNK_VALUES // (longest * k2), 1)
    return (np.arange(first, min(first + step, stop)) for first in range(start, stop, step))


def _gallery_index(sets: _Sets, lists: np.ndarray, queries: int, k2: int) -> _Sets:
    """For each of the N columns the gallery items whose averaged set has it, with their weights."""
    count = len(lists)
    sizes = np.zeros(count, dtype=np.int64)
    for items in _average_steps(sets, queries, count, k2):
        sizes += np.bincount(_averaged(sets, lists, items, k2)[1], minlength=count)
    starts = np.append(0, np.cumsum(sizes))
    holders, weights = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.float32)
    free = starts[:-1].copy()
    for items in _average_steps(sets, queries, count, k2):
        place, columns, values = _averaged(sets, lists, items, k2)
        order = np.argsort(columns, kind="stable")
        added = np.bincount(columns, minlength=count)
        within = np.arange(len(order)) - np.repeat(np.cumsum(added) - added, added)
        target = free[columns[order]] + within
        holders[target], weights[target] = items[place[order]] - queries, values[order]
        free += added
    return _Sets(starts, holders, weights)


def _shared_weight(
    index: _Sets, entries: tuple[np.ndarray, np.ndarray, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
    """Sum over the columns of the smaller of the two weights, (queries of a block, G) float64 (equation 10)."""
    place, columns, weights = entries
    shared = np.zeros(shape[0] * shape[1])
    sizes = np.diff(index.starts)[columns]
    reached = np.cumsum(sizes)
    limit = max(CHUNK_VALUES, shape[1])
    first = 0
    while first < len(columns):
        done = reached[first - 1] if first else 0
        last = max(int(np.searchsorted(reached, done + limit, side="right")), first + 1)
        part = slice(first, last)
        which, entry = index.entries(columns[part])
        smaller = np.minimum(index.weights[entry], weights[part][which])
        shared += np.bincount(
            place[part][which] * shape[1] + index.columns[entry], weights=smaller, minlength=len(shared)
        )
        first = last
    return shared.reshape(shape)


def _rerank(points: _Points, k1: int, k2: int, weight: float) -> Iterator[tuple[int, Tensor]]:
    lists, largest = _nearest(points, max(k1 + 1, k2))
    sets = _reciprocal_sets(points, lists, largest, k1)
    index = _gallery_index(sets, lists, points.queries, k2)
    gallery = points.count - points.queries
    for start, stop in _blocks(points.queries, gallery):
        base = points.distances(start, stop, first=points.queries).cpu().numpy() / largest[start:stop, None]
        shared = np.zeros((stop - start, gallery))
        for items in _average_steps(sets, start, stop, k2):
            shared[items - start] = _shared_weight(index, _averaged(sets, lists, items, k2), (len(items), gallery))
        final = (1 - weight) * (1 - shared / (2 - shared)) + weight * base
        yield start, torch.from_numpy(final.astype(np.float32))
