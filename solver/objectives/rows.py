"""What an objective compares: the rows of a batch, encoded, as columns that shares of a batch can be joined by.

A batch may be encoded in several shares (micro-batches, processes), whose columns are joined before the losses look at
them. Shapes: n entries of a column; other axes are the column's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Columns of a batch or of a share of one. A column that a share lacks has no entry of it."""

    features: Mapping[str, Tensor]
    """(n, ...) by name: what the losses send gradients to."""
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    """(n, ...) by name, of any type: what they read besides, without gradient."""
    refers: Mapping[str, str] = field(default_factory=dict)
    """Fact -> column whose entries its numbers (n,) int64 are; -1 = none of them."""

    def detached(self) -> Rows:
        """Return the same without the graph of the features."""
        return Rows(
            features={name: value.detach() for name, value in self.features.items()},
            facts=self.facts,
            refers=self.refers,
        )

    def columns(self) -> dict[str, Tensor]:
        """Return features and facts together."""
        return {**self.features, **self.facts}

    def count(self, name: str) -> int:
        """Return the entries of a column, 0 for one that is not there."""
        column = self.features.get(name, self.facts.get(name))
        return 0 if column is None else len(column)


def joined(shares: Sequence[Rows]) -> Rows:
    """Return the shares one after the other; what refers to entries of a column counts on."""
    refers = {name: column for share in shares for name, column in share.refers.items()}
    facts: dict[str, list[Tensor]] = {}
    first = dict.fromkeys(refers.values(), 0)
    for share in shares:
        for name, values in share.facts.items():
            if name in refers:
                values = torch.where(values >= 0, values + first[refers[name]], values)
            facts.setdefault(name, []).append(values)
        for name in first:
            first[name] += share.count(name)
    features: dict[str, list[Tensor]] = {}
    for share in shares:
        for name, values in share.features.items():
            features.setdefault(name, []).append(values)
    return Rows(features=_stacked(features), facts=_stacked(facts), refers=refers)


def _stacked(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: values[0] if len(values) == 1 else torch.cat(list(values)) for name, values in parts.items()}


class Spread:
    """How the losses compute what is expensive and goes row by row: here all at once, in this process."""

    def rows(self, count: int, compute: Callable[[slice], Tensor]) -> Tensor:
        """Return compute(0..count), (count, ...); a part of the rows comes out as it does among all."""
        return compute(slice(0, count))

    def agreed(self, drawn: Tensor) -> Tensor:
        """Return what was drawn, the same in every process."""
        return drawn


WHOLE = Spread()
"""Everything at once, in one process."""
