"""What is measured of a ranking of queries against one gallery, per query and summarised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.retrieval.options import MetricOptions


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RetrievalResult(Mapping[str, float]):
    """Metrics by name: `result["mAP"]`, `result["R20"]`, `result["mAP@0.25"]`, `result.mINP`, `dict(result)`.

    Shares and precisions in percent; a summary over no query is nan.
    """

    scores: Mapping[str, float]
    """Each metric of utils.retrieval.metrics.METRICS, then mAP@tau, over the queries."""
    per_query: Mapping[str, np.ndarray]
    """By metric (Q,): value of each query, nan where the query does not enter the metric."""
    cmc: np.ndarray
    """(max_rank,): percent of the queries with a match at that rank or before."""
    first_rank: np.ndarray
    """(Q,) int64: rank of the first match from 1 (place of the person under a CMC by identity), 0 = none."""
    unmatched: tuple[int, ...]
    """Queries without any match after the exclusion; they enter no metric but mAP@tau under `zero`."""
    absent: tuple[int, ...]
    """Those of them whose person the gallery does not hold at all."""
    queries: int
    """Number of the queries with a match."""
    gallery: int
    """Number of gallery items."""
    threshold_ap: Mapping[str, np.ndarray]
    """By mAP@tau (Q,): percent, nan where the query has no positive at tau."""
    kept_share: Mapping[str, float]
    """By mAP@tau: share of the identity matches that tau keeps; 1 = the threshold says nothing."""
    threshold_queries: Mapping[str, int]
    """By mAP@tau: number of queries in its mean."""
    pairs: int
    """Number of identity matches, 0 without thresholds."""
    unannotated: int
    """Those of them whose item lacks an annotation of the query's kind, so that no threshold keeps them."""
    unannotated_items: int
    """Number of gallery items in them."""
    options: MetricOptions
    """What was measured."""

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items())
        return f"RetrievalResult({values}; {self.queries} queries, {self.gallery} gallery items)"

    def __getitem__(self, name: str) -> float:
        if name in self.scores:
            return self.scores[name]
        if name.startswith("R") and name[1:].isdigit() and 1 <= int(name[1:]) <= len(self.cmc):
            return float(self.cmc[int(name[1:]) - 1])
        raise KeyError(f"{name}: not measured; there are {', '.join(self.scores)} and R1 to R{len(self.cmc)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def R1(self) -> float:
        """Rank-1 in percent."""
        return self.scores["R1"]

    @property
    def R5(self) -> float:
        """Rank-5 in percent."""
        return self.scores["R5"]

    @property
    def R10(self) -> float:
        """Rank-10 in percent."""
        return self.scores["R10"]

    @property
    def mAP(self) -> float:
        """Mean average precision in percent."""
        return self.scores["mAP"]

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty in percent."""
        return self.scores["mINP"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and lists; nan becomes None, so that it is valid JSON."""
        document: dict[str, Any] = {name: _plain(value) for name, value in self.scores.items()}
        document |= {
            "queries": self.queries,
            "gallery": self.gallery,
            "unmatched": list(self.unmatched),
            "absent": list(self.absent),
            "cmc": _plain(self.cmc),
        }
        if self.threshold_ap:
            document |= {
                "kept_share": {name: _plain(share) for name, share in self.kept_share.items()},
                "threshold_queries": dict(self.threshold_queries),
                "unannotated": self.unannotated,
                "unannotated_items": self.unannotated_items,
            }
        document["per_query"] = {"first_rank": _plain(self.first_rank)}
        document["per_query"] |= {
            name: _plain(values) for name, values in {**self.per_query, **self.threshold_ap}.items()
        }
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(number) for number in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value
