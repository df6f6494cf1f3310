"""How several processes share an evaluation: who computes which batch, and how each gets what others have computed.

Batches are shared out whole, so that every number is computed in the company in which one process computes it, and
comes out with the same bits.
Shapes: N slots (distinct sources), n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from solver.evaluation.token_cache import MEGABYTE, TokenCache
from utils.processes import Processes

ROUND_BYTES = 32 * MEGABYTE
"""Tokens that a process fetches at once from the others, about."""
Gather = Callable[[Tensor], Tensor]
"""Slots (n,) of one bank -> their tokens (n, L, K) on the compute device."""


def dealt(sizes: Sequence[int], loads: list[int]) -> list[int]:
    """Return for each batch of some size the process that has least to do so far; `loads`, of all, grow with it."""
    found = []
    for size in sizes:
        rank = loads.index(min(loads))
        loads[rank] += size
        found.append(rank)
    return found


def complete(processes: Processes, values: Tensor, own: Tensor) -> None:
    """Fill in the rows of `values` (N, ...) that other processes have computed. own (n,) int64: rows of this one."""
    if processes.count == 1:
        return
    rows = values.index_select(0, own.to(values.device))
    places = processes.told(own.numpy())
    width = values.shape[1:].numel() * values.element_size()
    data = processes.gathered(rows.reshape(-1).view(torch.uint8), [len(place) * width for place in places])
    for rank, (place, part) in enumerate(zip(places, data, strict=True)):
        if rank != processes.rank:
            found = part.clone().view(values.dtype).view(-1, *values.shape[1:])
            values.index_copy_(0, torch.from_numpy(place).to(values.device), found)


def rounds(cache: TokenCache, batches: Sequence[Tensor]) -> Iterator[tuple[int, Gather]]:
    """Yield the number of each batch that this process computes, and what gives the tokens of its slots.

    batches: slots of each, the same list in all processes, which run through this together.
    """
    processes = cache.owners.processes
    if processes.count == 1:
        yield from ((number, cache.gather) for number in range(len(batches)))
        return
    largest = max((cache.bytes_of(slots.unique()) for slots in batches), default=1)
    step = processes.count * max(1, ROUND_BYTES // max(largest, 1))
    for first in range(0, len(batches), step):
        together = batches[first : first + step]
        shares = [processes.share(len(together), rank=rank) for rank in range(processes.count)]
        tokens = cache.fetched([_distinct(together[share]) for share in shares])
        for number in range(len(together))[shares[processes.rank]]:
            yield first + number, tokens.gather


def _distinct(batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(slots.reshape(-1) for slots in batches)]).unique()
