"""Exact ranks of the matches of each query, by counting instead of sorting.

Shapes: Q queries, G gallery items, b queries of one block, M (query, match) pairs. Ranking is by descending
similarity; ties are broken by gallery index. Ranks are 1-based.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.retrieval.exclusion import ExclusionRule, LabelBlock, same_item

DEFAULT_MEMORY_BYTES = 256 << 20
# Scores of one matrix product: fixed, so that the memory budget cannot move a last bit of a similarity.
PRODUCT_SCORES = {"cpu": 1 << 22, "cuda": 1 << 25}
MIN_PRODUCT_ROWS = 16
LARGEST_SQUARED = 2.0**40
"""Numbers up to this, and down to its inverse, are squared and summed without leaving float32's range."""
# Scores ranked at once on a CPU: about what its second-level cache holds with all temporaries.
CPU_CHUNK_SCORES = 1 << 19
# Peak bytes per score inside `rank_chunk` when every score is tied with a match.
BYTES_PER_SCORE = 64
MIN_BINS, MAX_BINS, BINS_PER_MATCH = 256, 1 << 15, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedMatches:
    """Matches of the queries first to first + count - 1 that the exclusion rule keeps, by (query, rank)."""

    first: int
    count: int
    queries: np.ndarray
    """(M,) int64, counted from `first`."""
    gallery: np.ndarray
    """(M,) int64: gallery index."""
    ranks: np.ndarray
    """(M,) int64: 1-based, after the exclusion."""
    full_ranks: np.ndarray | None = None
    """(M,) int64: the same before the exclusion."""
    identity_ranks: np.ndarray | None = None
    """(count,) int64: 1-based place of the query's person among distinct persons, each at its best item, 0 without a
    match.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingPlan:
    """Who matches whom, what is dropped, and what is wanted of the ranking."""

    query: LabelBlock
    gallery: LabelBlock
    """Person ids are comparable between the two."""
    rule: ExclusionRule
    full_ranks: bool = False
    """Fill that field of RankedMatches."""
    identity_ranks: bool = False
    """Fill that field of RankedMatches."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """Budget of a block of similarities and its working copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SortedGallery:
    """The whole gallery sorted for the queries first, first + 1, ...: b of them."""

    first: int
    similarity: Tensor
    """(b, G) float32, descending."""
    order: Tensor
    """(b, G) int64: gallery index of each; equal similarities by gallery index."""


class _MatchIndex:
    """Gallery positions grouped by person."""

    def __init__(self, gallery_persons: np.ndarray) -> None:
        self.order = np.argsort(gallery_persons, kind="stable")
        self.persons, self.starts, self.counts = np.unique(
            gallery_persons[self.order], return_index=True, return_counts=True
        )

    def find(self, query_persons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (M,) and gallery columns (M,) of all matches, by (row, column)."""
        place = np.searchsorted(self.persons, query_persons)
        place[place == len(self.persons)] = 0
        counts = np.where(self.persons[place] == query_persons, self.counts[place], 0)
        rows = np.repeat(np.arange(len(query_persons)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.order[self.starts[place][rows] + within]


class _Workspace:
    """Buffers that are used again for every chunk: fresh pages cost more than the arithmetic done on them."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return `size` elements of undefined content, valid until the next call for this dtype."""
        buffer = self._buffers.get(dtype)
        if buffer is None or len(buffer) < size or buffer.device != device:
            buffer = self._buffers[dtype] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size]


def _nonzero(mask: Tensor) -> Tensor:
    """Indices of the true entries of a flat mask. NumPy's is five times as fast on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().view(-1)


def _descending_order(rows: Tensor, scores: Tensor) -> Tensor:
    """Order by (row, descending score); entries that are equal in both keep their order."""
    if scores.dtype != torch.float32:
        by_score = torch.argsort(scores, descending=True, stable=True)
        return by_score[torch.argsort(rows[by_score], stable=True)]
    # One integer key: IEEE bits made monotone, below the row. Adding 0.0 makes the two zeros equal.
    bits = (scores + 0.0).view(torch.int32)
    monotone = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return torch.argsort((rows << 32) - monotone, stable=True)


def _bins(scores: Tensor, rows: Tensor, match_scores: Tensor, count: int, workspace: _Workspace) -> Tensor:
    """Map each score of (b, G) to one of `count` bins of its row, monotonically; (b * G,) int32, row offset included.

    The bins span the matches of the row; all below the lowest match share bin 0. Each step is one correctly rounded
    operation, so equal scores share a bin and a larger score never has a smaller bin.
    """
    size = len(scores)
    lowest = torch.full((size,), torch.inf, dtype=scores.dtype, device=scores.device)
    highest = torch.full_like(lowest, -torch.inf)
    lowest.scatter_reduce_(0, rows, match_scores, "amin")
    highest.scatter_reduce_(0, rows, match_scores, "amax")
    resolution = 4 * torch.finfo(scores.dtype).eps * torch.maximum(lowest.abs(), highest.abs())
    width = torch.maximum((highest - lowest) / (count - 3), resolution).clamp_(min=1e-30)
    width = torch.where(torch.isfinite(width), width, 1.0)
    # The lowest match stands in the middle of bin 1: rounding cannot move it into bin 0, which holds the bulk.
    base = lowest - 1.5 * width
    binned = workspace.take(scores.numel(), scores.dtype, scores.device).view(scores.shape)
    torch.sub(scores, base[:, None], out=binned).mul_((1 / width)[:, None]).clamp_(0, count - 1)
    bins = workspace.take(scores.numel(), torch.int32, scores.device).view(scores.shape).copy_(binned)
    offsets = torch.arange(0, size * count, count, dtype=torch.int32, device=scores.device)
    return bins.add_(offsets[:, None]).view(-1)


def rank_chunk(
    scores: Tensor, rows: Tensor, columns: Tensor, workspace: _Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """Rank the items (rows, columns) (M,) within their rows of `scores` (b, G); exact, ties by column.

    scores: float32 or float64, -inf = never counted. Returns the flat positions row * G + column (M,) by (row, rank)
    and the 1-based ranks (M,). Scores are counted in bins; only those that share a bin with a wanted item are sorted.
    """
    workspace = workspace or _Workspace()
    size, width = scores.shape
    wanted = rows * width + columns
    flat = scores.reshape(-1)
    # More bins than half the items cost more than the sorting that they save.
    count = min(max(BINS_PER_MATCH * len(wanted) // max(size, 1), MIN_BINS), max(width // 2, MIN_BINS // 4), MAX_BINS)
    bins = _bins(scores, rows, flat[wanted], count, workspace)
    shared = torch.zeros(size * count, dtype=torch.bool, device=scores.device)
    shared[bins[wanted]] = True
    near_mask = workspace.take(scores.numel(), torch.bool, scores.device)
    near = _nonzero(torch.index_select(shared, 0, bins, out=near_mask))

    far = torch.bincount(bins, minlength=size * count).masked_fill_(shared, 0).view(size, count)
    up_to = torch.cumsum(far, 1, out=workspace.take(size * count, torch.int64, scores.device).view(size, count))

    near_rows = torch.div(near, width, rounding_mode="floor")
    order = _descending_order(near_rows, flat[near])
    chosen = torch.zeros(len(near), dtype=torch.bool, device=scores.device)
    chosen[torch.searchsorted(near, wanted)] = True
    place = _nonzero(chosen[order])
    found = near[order[place]]
    found_rows = torch.div(found, width, rounding_mode="floor")
    row_starts = torch.searchsorted(near_rows, found_rows)
    far_above = up_to[:, -1][found_rows] - up_to.view(-1)[bins[found]]
    return found, place - row_starts + far_above + 1


def _identity_ranks(scores: Tensor, found: Tensor, persons: Tensor) -> Tensor:
    """1 + number of distinct persons with an item before the first match; (b,) int64, 0 without a match.

    found: flat positions by (row, rank); persons (G,): codes 0..n-1 of the gallery.
    """
    size, width = scores.shape
    rows = torch.div(found, width, rounding_mode="floor")
    first = torch.searchsorted(rows, torch.arange(size, device=scores.device))
    has_match = torch.bincount(rows, minlength=size) > 0
    top = found[first[has_match]]
    top_scores = scores.reshape(-1)[top][:, None]
    kept = scores[has_match]
    earlier = torch.arange(width, device=scores.device) < (top % width)[:, None]
    before = (kept > top_scores) | ((kept == top_scores) & earlier)
    seen = torch.zeros((len(kept), int(persons.max()) + 1), dtype=torch.bool, device=scores.device)
    before_rows, before_columns = before.nonzero(as_tuple=True)
    seen[before_rows, persons[before_columns].long()] = True
    ranks = torch.zeros(size, dtype=torch.int64, device=scores.device)
    ranks[has_match] = seen.sum(1) + 1
    return ranks


def _keep(rows: Tensor, columns: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (M,) that are not dropped (b, G)."""
    stays = ~dropped[rows, columns]
    return rows[stays], columns[stays]


def _rank_block(
    scores: Tensor, first: int, plan: RankingPlan, index: _MatchIndex, workspace: _Workspace
) -> RankedMatches:
    """Rank the matches of the queries first, first + 1, ... whose scores (b, G) are given."""
    query = plan.query.rows(first, first + len(scores)).to(scores.device)
    rows, columns = (torch.from_numpy(part).to(scores.device) for part in index.find(query.persons.cpu().numpy()))
    own = same_item(query, plan.gallery)
    if own is not None:
        # The query's own image is no part of its gallery: it is gone before any cut.
        scores = scores.masked_fill(own, -torch.inf)
        rows, columns = _keep(rows, columns, own)
    kept = scores
    if plan.rule.drop is not None:
        dropped = plan.rule.drop(query, plan.gallery)
        rows, columns = _keep(rows, columns, dropped)
        kept = scores.masked_fill(dropped, -torch.inf)
    found, ranks = rank_chunk(kept, rows, columns, workspace)
    full_ranks = None
    if plan.full_ranks:
        positions, all_ranks = rank_chunk(scores, rows, columns, workspace)
        by_position = torch.argsort(positions)
        full_ranks = all_ranks[by_position][torch.searchsorted(positions[by_position], found)].cpu().numpy()
    identity_ranks = _identity_ranks(kept, found, plan.gallery.persons).cpu().numpy() if plan.identity_ranks else None
    width = scores.shape[1]
    positions_np = found.cpu().numpy()
    return RankedMatches(
        first=first,
        count=len(scores),
        queries=positions_np // width,
        gallery=positions_np % width,
        ranks=ranks.cpu().numpy(),
        full_ranks=full_ranks,
        identity_ranks=identity_ranks,
    )


def _chunk_rows(width: int, device: torch.device, memory_bytes: int) -> int:
    """Queries ranked at once: within the budget, and on a CPU within its cache; at least one."""
    scores = memory_bytes // BYTES_PER_SCORE
    if device.type == "cpu":
        scores = min(scores, CPU_CHUNK_SCORES)
    # The number of bins of a chunk must stay below 2^31.
    return int(min(max(scores // max(width, 1), 1), (1 << 31) // MAX_BINS - 1))


def _check_finite(scores: Tensor, first: int, name: str) -> None:
    if not scores.numel():
        return
    lowest, highest = torch.aminmax(scores)
    if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
        row = int((~torch.isfinite(scores)).any(1).nonzero()[0])
        raise UserError(f"{name} has a value that is not finite in row {first + row}; check what computed it")


def _ranking_device(device: torch.device) -> torch.device:
    """Where to rank what was computed on `device`: there, when it is a CPU or a CUDA GPU; others lack operations."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def _rankable(block: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """A block of similarities on `device` as float32, or as float64 when it is float64 or integer."""
    if isinstance(block, np.ndarray):
        block = torch.from_numpy(np.require(block, requirements=["C", "W"]))
    block = block.to(device)
    if block.dtype in (torch.float32, torch.float64):
        return block.detach().contiguous()
    return block.detach().to(torch.float32 if block.is_floating_point() else torch.float64)


def rank_similarity(similarity: Tensor | np.ndarray, plan: RankingPlan) -> Iterator[RankedMatches]:
    """Yield the ranked matches of blocks of queries, from a similarity (Q, G) on a CPU or a GPU.

    Half precision is ranked as float32. Every block size gives the same ranks. The input is not changed.
    Raises UserError for a value that is not finite.
    """
    device = similarity.device if isinstance(similarity, Tensor) else torch.device("cpu")
    step = _chunk_rows(similarity.shape[1], _ranking_device(device), plan.memory_bytes)
    return rank_scores(((start, similarity[start : start + step]) for start in range(0, len(similarity), step)), plan)


def rank_scores(blocks: Iterable[tuple[int, Tensor | np.ndarray]], plan: RankingPlan) -> Iterator[RankedMatches]:
    """Yield the ranked matches of a similarity that arrives as (first query, (b, G)), in order, all on one device.

    Blocks of any size give the same ranks. Raises UserError for a value that is not finite, and for queries left out.
    """
    workspace = _Workspace()
    index = _MatchIndex(plan.gallery.persons.cpu().numpy())
    done = 0
    for first, block in blocks:
        if first != done or block.shape[1] != len(plan.gallery.persons):
            raise UserError(
                f"a block of similarities of shape {tuple(block.shape)} starts at query {first}; query {done} is due, "
                f"with {len(plan.gallery.persons)} gallery items"
            )
        device = _ranking_device(block.device if isinstance(block, Tensor) else torch.device("cpu"))
        if plan.gallery.persons.device != device:
            plan = _on_device(plan, device)
        step = _chunk_rows(block.shape[1], device, plan.memory_bytes)
        for start in range(0, len(block), step):
            scores = _rankable(block[start : start + step], device)
            _check_finite(scores, first + start, "similarity")
            yield _rank_block(scores, first + start, plan, index, workspace)
        done += len(block)
    if done != len(plan.query.persons):
        raise UserError(f"the blocks of similarities end at query {done} of {len(plan.query.persons)}")


def rank_blocks(
    query_features: Tensor, gallery_features: Tensor, plan: RankingPlan, chosen: slice = slice(None)
) -> Iterator[RankedMatches]:
    """Yield the ranked matches of blocks of queries from features (Q, D) and (G, D), whose products are the scores.
    chosen: queries to rank, by the very products that they have among all.

    Products are float32 whatever the features are and whatever autocast or TF32 say; at most 4 million of them (33
    million on a GPU, never less than 16 queries) exist at a time. They are ranked on the gallery's device.
    Ranks do not depend on `plan.memory_bytes`. Raises UserError for a feature that is not finite.
    """
    for features, name in ((query_features, "query_features"), (gallery_features, "gallery_features")):
        _check_finite(features, 0, name)
    workspace = _Workspace()
    index = _MatchIndex(plan.gallery.persons.cpu().numpy())
    plan = _on_device(plan, _ranking_device(gallery_features.device))
    first, stop, _ = chosen.indices(len(query_features))
    for start, scores in products(query_features, gallery_features, chosen):
        scores = scores.to(_ranking_device(scores.device))
        _check_finite(scores, start, "the similarity of the features")
        step = _chunk_rows(scores.shape[1], scores.device, plan.memory_bytes)
        last = min(stop - start, len(scores))
        for offset in range(max(first - start, 0), last, step):
            yield _rank_block(scores[offset : min(offset + step, last)], start + offset, plan, index, workspace)


def sort_blocks(query_features: Tensor, gallery_features: Tensor) -> Iterator[SortedGallery]:
    """Yield the gallery (G, D) sorted for blocks of queries (Q, D) by the same products as `rank_blocks`, ties alike.

    On the gallery's device. Items that do not count for a query are left out by the caller.
    """
    for start, scores in products(query_features, gallery_features):
        similarity, order = scores.sort(dim=1, descending=True, stable=True)
        yield SortedGallery(first=start, similarity=similarity, order=order)


def products(
    query_features: Tensor, gallery_features: Tensor, chosen: slice = slice(None)
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first query, inner products (b, G) float32) on the gallery's device, whatever autocast and TF32 say.
    chosen: blocks without any of these queries are left out.
    """
    device = gallery_features.device
    gallery = gallery_features.detach().float().t()
    rows = max(PRODUCT_SCORES.get(device.type, PRODUCT_SCORES["cpu"]) // max(gallery.shape[1], 1), MIN_PRODUCT_ROWS)
    first, stop, _ = chosen.indices(len(query_features))
    for start in range(first // rows * rows, stop, rows):
        with true_float32(device):
            scores = query_features[start : start + rows].detach().to(device).float() @ gallery
        yield start, scores


def unit_length(features: Tensor) -> Tensor:
    """Features (n, D) as float32 of length 1, so that products are cosines, whatever their size; a zero row stays zero.

    Rows whose squares leave float32's range are scaled by a power of two before, which changes no digit.
    """
    features = features.detach().float()
    largest = features.abs().amax(1) if features.shape[1] else features.new_zeros(len(features))
    beyond = ((largest > LARGEST_SQUARED) | (largest < 1 / LARGEST_SQUARED)) & (largest > 0) & largest.isfinite()
    if bool(beyond.any()):
        features = features.clone()
        features[beyond] = torch.ldexp(features[beyond], -torch.frexp(largest[beyond])[1][:, None])
    return F.normalize(features, dim=1)


def _on_device(plan: RankingPlan, device: torch.device) -> RankingPlan:
    return replace(plan, gallery=plan.gallery.to(device))


@contextlib.contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32, whatever the caller has set."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
