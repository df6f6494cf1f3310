"""The result of one query list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from configs.vocabulary import Combination
from utils.retrieval.metrics import METRICS, threshold_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdResult:
    """mAP@tau of one list of n entries."""

    values: NDArray[np.float64]
    """(n,) in percent, NaN where the query has no positive at tau."""
    mean: float
    """Over the queries that the policy of eval.no_positive counts."""
    queries: int
    """How many those are."""
    kept: int
    """Identity matches that tau keeps."""
    pairs: int
    """All identity matches."""
    unannotated: int = 0
    """Those whose item has no annotation of the query's kind, which no tau keeps."""

    @property
    def share(self) -> float:
        """Share of the identity matches that tau keeps; 1 = the column says nothing. NaN without any."""
        return self.kept / self.pairs if self.pairs else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class ListResult:
    """One query list of n entries, measured in one way."""

    task: str
    """Name of the list, with its stamp."""
    combination: Combination
    """Modalities of its entries."""
    gallery: int
    """Images that were ranked."""
    first_rank: NDArray[np.int64]
    """(n,): rank of the first match from 1 (place of the person under a CMC by identity), 0 = no valid match, -1 = not
    ranked because a source was unreadable.
    """
    per_query: Mapping[str, NDArray[np.float64]]
    """By metric (n,): value of each entry, NaN where it does not enter the metric."""
    absent: NDArray[np.bool_] | None = None
    """(n,): the person is not searched at all, for entries without a match; None = unknown."""
    protocol: str = ""
    """Name of the protocol."""
    group: str = ""
    """Row of averages that the list belongs to, empty = none."""
    draws: bool = True
    """The lists of its group repeat one measurement; see datasets.structures.QueryList."""
    stamp: str = ""
    """What was done beside the plain way (`flip`, `re-ranked`, `ap_topk=500`), empty = the plain way."""
    thresholds: Mapping[float, ThresholdResult] = field(default_factory=dict)
    """mAP@tau by tau."""

    @property
    def name(self) -> str:
        """Name of the list, without its stamp."""
        return self.task.removesuffix(f" [{self.stamp}]") if self.stamp else self.task

    @property
    def queries(self) -> int:
        """Entries with a match: those that the metrics are over."""
        return int((self.first_rank > 0).sum())

    @property
    def without_match(self) -> NDArray[np.int64]:
        """Indices of entries without any valid match in the gallery."""
        return np.flatnonzero(self.first_rank == 0)

    @property
    def unreadable(self) -> NDArray[np.int64]:
        """Indices of entries left out because a source could not be read."""
        return np.flatnonzero(self.first_rank < 0)

    def metrics(self) -> dict[str, float]:
        """Return each metric of utils.retrieval.metrics.METRICS in its unit; NaN when no entry enters it."""
        return {name: metric.summarise(self.per_query[name]) for name, metric in METRICS.items()}

    def threshold_metrics(self) -> dict[str, float]:
        """Return for each tau mAP@tau in percent and the share of matches that it keeps."""
        measured: dict[str, float] = {}
        for tau, result in self.thresholds.items():
            measured |= {threshold_name(tau): result.mean, share_name(tau): result.share}
        return measured

    def all_metrics(self) -> dict[str, float]:
        """Return everything that is averaged over lists."""
        return self.metrics() | self.threshold_metrics()


def share_name(tau: float) -> str:
    """Return the column of the share of matches that a threshold keeps, for instance kept@0.25."""
    return f"kept@{tau:g}"


def stamped(name: str, stamp: str) -> str:
    """Return the name with a stamp behind it: `NIR [flip]`."""
    return f"{name} [{stamp}]" if stamp else name


def pooled(lists: Sequence[ListResult]) -> ListResult:
    """Return lists of one group and stamp as one list: every query counts once, whatever list it is in."""
    return replace(
        lists[0],
        task=lists[0].group,
        gallery=max(listed.gallery for listed in lists),
        absent=None,
        first_rank=np.concatenate([listed.first_rank for listed in lists]),
        per_query={name: np.concatenate([listed.per_query[name] for listed in lists]) for name in METRICS},
        thresholds={
            tau: _pooled_threshold([listed.thresholds[tau] for listed in lists])
            for tau in lists[0].thresholds
            if all(tau in listed.thresholds for listed in lists)
        },
    )


def _pooled_threshold(parts: Sequence[ThresholdResult]) -> ThresholdResult:
    queries = sum(part.queries for part in parts)
    total = sum(part.mean * part.queries for part in parts if part.queries)
    return ThresholdResult(
        values=np.concatenate([part.values for part in parts]),
        mean=total / queries if queries else float("nan"),
        queries=queries,
        kept=sum(part.kept for part in parts),
        pairs=sum(part.pairs for part in parts),
        unannotated=sum(part.unannotated for part in parts),
    )
