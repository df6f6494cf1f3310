"""Rows that several processes encoded, brought together: every process sees the columns of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solver.objectives.rows import Rows
from utils.processes import Processes

ALIGNMENT = 16
"""Bytes at whose multiples a column begins in the joined memory; enough for every type."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a share is read from its bytes; plain values that cross process borders."""

    features: dict[str, tuple[tuple[int, ...], torch.dtype]]
    facts: dict[str, tuple[tuple[int, ...], torch.dtype]]
    refers: dict[str, str]
    on_host: tuple[str, ...]
    """Facts that stay on the CPU."""


def gathered(processes: Processes, shares: Sequence[Rows], device: torch.device) -> list[list[Rows]]:
    """Return for each share what every process has of it, by rank, without graph. All have equally many shares."""
    if processes.count == 1:
        return [[share.detached()] for share in shares]
    layouts = processes.told([_layout(share) for share in shares])
    sizes = [sum(_size(entry) for share in found for entry in _entries(share)) for found in layouts]
    own = [_bytes(value, device) for share in shares for value in (*share.features.values(), *share.facts.values())]
    data = processes.gathered(torch.cat(own) if own else torch.empty(0, dtype=torch.uint8, device=device), sizes)
    by_rank = [_read(part, found) for part, found in zip(data, layouts, strict=True)]
    return [list(of_share) for of_share in zip(*by_rank, strict=True)]


def _layout(share: Rows) -> Layout:
    return Layout(
        features=_shapes(share.features),
        facts=_shapes(share.facts),
        refers=dict(share.refers),
        on_host=tuple(name for name, value in share.facts.items() if value.device.type == "cpu"),
    )


def _shapes(columns: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in columns.items()}


def _entries(layout: Layout) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [*layout.features.values(), *layout.facts.values()]


def _length(entry: tuple[tuple[int, ...], torch.dtype]) -> int:
    shape, kind = entry
    return torch.Size(shape).numel() * torch.empty(0, dtype=kind).element_size()


def _size(entry: tuple[tuple[int, ...], torch.dtype]) -> int:
    """Bytes of a column with what is left free behind it."""
    return -(-_length(entry) // ALIGNMENT) * ALIGNMENT


def _bytes(value: Tensor, device: torch.device) -> Tensor:
    flat = value.detach().to(device).contiguous().reshape(-1).view(torch.uint8)
    return torch.nn.functional.pad(flat, (0, -len(flat) % ALIGNMENT))


def _read(data: Tensor, layouts: Sequence[Layout]) -> list[Rows]:
    place, found = 0, []
    for layout in layouts:
        columns: list[dict[str, Tensor]] = []
        for entries in (layout.features, layout.facts):
            read = {}
            for name, entry in entries.items():
                flat = data[place : place + _length(entry)]
                # A copy: the memory of all columns would live as long as any of them.
                read[name] = flat.clone().view(entry[1]).reshape(entry[0])
                place += _size(entry)
            columns.append(read)
        facts = {name: value.cpu() if name in layout.on_host else value for name, value in columns[1].items()}
        found.append(Rows(features=columns[0], facts=facts, refers=layout.refers))
    return found
