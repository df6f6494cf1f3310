"""Figures that a configuration quotes from a paper, shown beside the measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.schema.checks import require

METRIC = re.compile(r"R(1|5|10)|mAP|mINP|mAP@0?\.\d+")
"""What a table has in percent."""


@dataclass(frozen=True)
class PublishedFigures:
    """What `published` in a configuration is made of."""

    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Name of a row of the result table, or of a group of rows -> metric -> percent, for instance
    {market: {mAP: 93.5, R1: 96.5}}."""


def check_published(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ValueError for a metric that no table has, and for a value that is no percentage."""
    for row, values in figures.items():
        for metric, value in values.items():
            key = f"published.{row}.{metric}"
            if not METRIC.fullmatch(metric):
                raise ValueError(f"{key}: a table has no column {metric!r}; give R1, R5, R10, mAP, mINP or mAP@0.25")
            require(0 <= value <= 100, key, value, "a percentage, 0 to 100")
