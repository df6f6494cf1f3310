"""The result of an evaluation: per query, per query list, and averaged by the number of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from configs.vocabulary import GROUP_NAMES, Combination, parse_combination
from datasets.structures import EvalSplit, Source

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
"""Columns of the reference's table, in percent."""

TIE_RULE = "equal similarities are ordered by gallery index"


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSource:
    """A source that could not be read and was left out, with the reason."""

    source: Source
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ListResult:
    """One query list of n entries.

    first_rank (n,) int64: rank of the first match from 1, 0 = no match in the gallery, -1 = not ranked because a
    source was unreadable. average_precision, inverse_penalty (n,) float64 in percent, NaN where first_rank < 1.
    """

    task: str
    combination: Combination
    gallery: int
    first_rank: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    inverse_penalty: NDArray[np.float64]

    @property
    def queries(self) -> int:
        """Entries with a match: those that the means are over."""
        return int((self.first_rank > 0).sum())

    @property
    def without_match(self) -> NDArray[np.int64]:
        """Indices of entries without any match in the gallery."""
        return np.flatnonzero(self.first_rank == 0)

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """Indices of entries left out because a source could not be read."""
        return np.flatnonzero(self.first_rank < 0)

    def metrics(self) -> dict[str, float]:
        """Return the metrics in percent; NaN when no entry has a match."""
        matched = self.first_rank > 0
        if not matched.any():
            return dict.fromkeys(METRICS, float("nan"))
        ranks = self.first_rank[matched]
        shares = {f"R{depth}": 100.0 * float((ranks <= depth).mean()) for depth in (1, 5, 10)}
        return shares | {"mAP": float(self.average_precision[matched].mean()), "mINP": float(self.inverse_penalty[matched].mean())}


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageRow:
    """Plain mean over the query lists of one size, or over those group means (ALL_AVER).

    lists: how many lists entered; expected: how many the benchmark defines.
    """

    task: str
    metrics: Mapping[str, float]
    lists: int
    expected: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedSplit:
    """Features behind a result, for showing single queries. gallery: indices into the split's gallery that were ranked."""

    split: EvalSplit
    features: Tensor
    gallery_features: Tensor
    gallery: NDArray[np.int64]
    rows: Mapping[str, NDArray[np.int64]]

    def search(self, task: str, entry: int, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return gallery indices and cosine similarities of the `top_k` best images for one entry of a list."""
        query = F.normalize(self.features[int(self.rows[task][entry])], dim=0)
        similarity = F.normalize(self.gallery_features, dim=1) @ query
        order = torch.argsort(similarity, descending=True, stable=True)[:top_k]
        return self.gallery[order.cpu().numpy()], similarity[order].cpu().numpy()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Everything measured on one split. counts and cache are plain values for the result file."""

    name: str
    protocol: str
    lists: tuple[ListResult, ...]
    missing_lists: tuple[str, ...]
    ap_form: str
    precision: str
    counts: Mapping[str, object]
    cache: Mapping[str, object]
    skipped: tuple[SkippedSource, ...]
    seconds: Mapping[str, float]
    ranked: RankedSplit

    def averages(self) -> tuple[AverageRow, ...]:
        """Return the mean of each group of equal size, then ALL_AVER, the mean of the group means.

        A list without any scored query enters no mean; a group without scored lists has NaN and enters no ALL_AVER.
        """
        scored: dict[int, list[dict[str, float]]] = {}
        sizes = [len(entry.combination) for entry in self.lists] + [len(parse_combination(name)) for name in self.missing_lists]
        for size in sorted(set(sizes)):
            scored[size] = [entry.metrics() for entry in self.lists if len(entry.combination) == size and entry.queries]
        groups = [AverageRow(task=GROUP_NAMES[size], metrics=_mean(rows), lists=len(rows), expected=sizes.count(size))
                  for size, rows in scored.items()]
        total = AverageRow(task="ALL_AVER", metrics=_mean([dict(group.metrics) for group in groups if group.lists]),
                           lists=sum(group.lists for group in groups), expected=len(sizes))
        return (*groups, total)

    def average(self, task: str = "ALL_AVER", metric: str = "mAP") -> float:
        """Return one metric of one average row, in percent; NaN when there is no such row."""
        return next((row.metrics[metric] for row in self.averages() if row.task == task), float("nan"))

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the table must know: missing lists, unmatched queries, skipped sources."""
        found: list[str] = []
        if self.missing_lists:
            found.append(f"{len(self.missing_lists)} query lists are missing ({', '.join(self.missing_lists)}); "
                         "the averages are over the others")
        unmatched = sum(len(entry.without_match) for entry in self.lists)
        if unmatched:
            found.append(f"{unmatched} queries have no match in the gallery and are left out of every mean")
        if self.skipped:
            left_out = sum(len(entry.unreadable) for entry in self.lists)
            found.append(f"{len(self.skipped)} unreadable sources were skipped; {left_out} queries were left out with them")
        return tuple(found)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) if rows else float("nan") for name in METRICS}
