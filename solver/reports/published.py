"""Published figures beside measured ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.schema.experiment import ExperimentConfig

SUFFIX = " published"
"""What a column of published figures adds to its metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a paper prints for rows of a table."""

    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Name of a row, with its stamp -> metric -> percent."""
    note: str = ""
    """Whose they are, and under which protocol."""

    @classmethod
    def of(cls, config: ExperimentConfig) -> Published:
        """Return what an experiment's configuration quotes."""
        return cls(figures=config.published, note=config.published_note)

    def beside(self, names: Sequence[str]) -> dict[str, float]:
        """Return the cells of a row that goes by any of these names: `mAP published` -> percent."""
        found: Mapping[str, float] = next((self.figures[name] for name in names if name in self.figures), {})
        return {f"{metric}{SUFFIX}": value for metric, value in found.items()}

    def notes(self, names: Collection[str]) -> list[str]:
        """Return what a reader must know of the figures. names: those of the rows that there are."""
        if not self.figures:
            return []
        absent = [name for name in self.figures if name not in names]
        found = [f"published figures: {self.note or 'the configuration does not say by which protocol'}"]
        return [*found, f"published figures without a row here: {', '.join(absent)}"] if absent else found


def with_published(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return columns of a table, each metric followed by its published figures where a row has any."""
    present = {name for row in rows for name in row if name.endswith(SUFFIX)}
    return [name for column in columns for name in (column, f"{column}{SUFFIX}") if name == column or name in present]
