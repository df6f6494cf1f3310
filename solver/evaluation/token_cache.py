"""Token embeddings of encoded sources, kept on the compute device, then in host memory, then on disk.

Shapes: N slots (one per encoded source), n rows of one request, L tokens of a source, K width of a stored token.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import DISK_FULL
from utils.processes import ALONE, Processes

MEGABYTE = 1 << 20

PINNED_BLOCK_BYTES = 256 * MEGABYTE
"""Pinned memory is taken in blocks: the allocator rounds each up to a power of two, which would double a large one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheBudget:
    """How many bytes of token embeddings are kept where; what exceeds both goes to disk."""

    device_bytes: int
    """On the compute device."""
    host_bytes: int
    """In host memory."""
    directory: str = ""
    """Where the file of the disk tier is made, empty = the system's temporary folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BankShape:
    """Token embeddings of equal shape."""

    slots: Tensor
    """(n,) int64: whose they are."""
    length: int
    """Tokens of each."""
    plain_width: int
    """Values of a plain token."""
    prepared_width: int
    """Values of a prepared one."""
    dtype: torch.dtype

    def bytes(self, prepared: bool) -> int:
        """Bytes of all rows in that form."""
        width = self.prepared_width if prepared else self.plain_width
        return len(self.slots) * self.length * width * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Owners:
    """Which process encodes a source, and so holds its tokens."""

    ranks: Tensor
    """(N,) int64."""
    processes: Processes

    def own(self, slots: Tensor) -> Tensor:
        """Return those of some slots (n,) that are this process's."""
        return slots[self.ranks[slots] == self.processes.rank]


def store_prepared(shapes: Sequence[BankShape], budget: CacheBudget) -> bool:
    """Whether to keep prepared tokens (True) or plain ones.

    Rule: prepared when all of them fit the device and host budgets together. A prepared token is wider (three times,
    for a query-key-value projection) but computed once per source; reading that much more from disk would cost more
    than the projection it saves.
    """
    return sum(shape.bytes(prepared=True) for shape in shapes) <= budget.device_bytes + budget.host_bytes


class TokenCache:
    """Rows of token embeddings by slot; equal values whichever tier holds them.

    Sources of equal shape share a bank, so that one request may mix modalities. Rows fill the tiers in the order of
    the shapes given. A context manager: leaving it removes the disk tier's file. Of several processes each holds the
    rows that it encodes, within a budget of its own, and `fetched` brings it those of others.
    """

    def __init__(
        self,
        num_slots: int,
        shapes: Sequence[BankShape],
        *,
        device: torch.device,
        budget: CacheBudget,
        owners: Owners | None = None,
    ) -> None:
        """Allocate every tier. owners: of all slots, None = this process has all. Raises UserError when the disk tier
        does not fit its folder.
        """
        self.owners = owners or Owners(ranks=torch.zeros(num_slots, dtype=torch.int64), processes=ALONE)
        # With its index: `cuda` and `cuda:0` are the same device but not equal.
        self.device = torch.empty(0, device=device).device
        own = [replace(shape, slots=self.owners.own(shape.slots)) for shape in shapes]
        self.prepared = all(self.owners.processes.told(store_prepared(own, budget)))
        self._bank_of = torch.full((num_slots,), -1, dtype=torch.int64)
        self._row_of = torch.full((num_slots,), -1, dtype=torch.int64)
        self._left = {"device": budget.device_bytes, "host": budget.host_bytes}
        self._used = {"device": 0, "host": 0, "disk": 0}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._directory = budget.directory
        self._banks: list[_Bank] = []
        grouped: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}
        for shape in shapes:
            width = shape.prepared_width if self.prepared else shape.plain_width
            grouped.setdefault((shape.length, width, shape.dtype), []).append(shape.slots)
        try:
            for (length, width, dtype), slots in grouped.items():
                self._add_bank(torch.cat(slots), length, width, dtype)
        except BaseException:
            self.close()
            raise

    def _add_bank(self, slots: Tensor, length: int, width: int, dtype: torch.dtype) -> None:
        self._bank_of[slots] = len(self._banks)
        slots = self.owners.own(slots)
        self._row_of[slots] = torch.arange(len(slots))
        row_bytes = length * width * dtype.itemsize
        tiers: list[_Tier] = []
        start = 0
        for name in ("device", "host", "disk"):
            remaining = len(slots) - start
            rows = remaining if name == "disk" else min(remaining, self._left[name] // row_bytes)
            block = (
                max(1, PINNED_BLOCK_BYTES // row_bytes)
                if name == "host" and self.device.type == "cuda"
                else max(1, rows)
            )
            for first in range(start, start + rows, block):
                count = min(block, start + rows - first)
                tiers.append(
                    _Tier(
                        first,
                        first + count,
                        self._allocate(name, count * length * width, dtype).view(count, length, width),
                    )
                )
            self._used[name] += rows * row_bytes
            if name != "disk":
                self._left[name] -= rows * row_bytes
            start += rows
        self._banks.append(_Bank(length, width, dtype, tuple(tiers)))

    def _allocate(self, tier: str, numel: int, dtype: torch.dtype) -> Tensor:
        if tier == "device":
            return torch.empty(numel, dtype=dtype, device=self.device)
        if tier == "host":
            return torch.empty(numel, dtype=dtype, pin_memory=self.device.type == "cuda")
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tokens-", dir=self._directory or None)
        path = Path(self._folder.name) / f"bank{len(self._banks)}.bin"
        reserve_file(path, numel * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=numel, dtype=dtype)

    def put(self, slots: Tensor, values: Tensor) -> None:
        """Store `values` (n, L, K) under `slots` (n,) int64 on the CPU, all of one bank."""
        bank = self._bank(slots)
        bank.write(self._row_of[slots], values.to(bank.dtype))

    def gather(self, slots: Tensor) -> Tensor:
        """Return the rows of `slots` (n,) int64 on the CPU, all of one bank, as (n, L, K) on the compute device."""
        return self._bank(slots).read(self._row_of[slots], self.device)

    def fetched(self, wanted: Sequence[Tensor]) -> FetchedTokens:
        """Return the rows that this process wants, whichever processes hold them. All call this together. wanted: slots
        (n,) int64, each once, that each process wants, by rank; the same in all of them.
        """
        processes, ranks = self.owners.processes, self.owners.ranks
        mine = wanted[processes.rank]
        coming = [mine[ranks[mine] == rank] for rank in range(processes.count)]
        received = processes.exchanged(
            [self._bytes(self.owners.own(slots)) for slots in wanted], [self.bytes_of(slots) for slots in coming]
        )
        found: list[tuple[Tensor, Tensor]] = []
        for own, data in zip(coming, received, strict=True):
            for bank, slots in self._by_bank(own):
                size = len(slots) * bank.row_bytes
                # A copy: numbers of another width need not begin where these end.
                values = data[:size].clone().view(bank.dtype).view(len(slots), bank.length, bank.width)
                found.append((slots, values))
                data = data[size:]
        return FetchedTokens(self._bank_of, found)

    def _bytes(self, slots: Tensor) -> Tensor:
        """The rows of some slots of this process, bank after bank."""
        parts = [
            bank.read(self._row_of[own], self.device).reshape(-1).view(torch.uint8)
            for bank, own in self._by_bank(slots)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=self.device)

    def _by_bank(self, slots: Tensor) -> list[tuple[_Bank, Tensor]]:
        banks = self._bank_of[slots]
        parts = [(bank, slots[banks == number]) for number, bank in enumerate(self._banks)]
        return [(bank, own) for bank, own in parts if len(own)]

    def bytes_of(self, slots: Tensor) -> int:
        """Bytes of the rows of some slots (n,) int64."""
        return sum(len(own) * bank.row_bytes for bank, own in self._by_bank(slots))

    def length(self, slot: int) -> int:
        """Number of tokens of a slot."""
        return self._banks[int(self._bank_of[slot])].length

    def lengths(self, slots: Tensor) -> Tensor:
        """Number of tokens of each slot (n,) int64."""
        per_bank = torch.tensor([bank.length for bank in self._banks], dtype=torch.int64)
        return per_bank[self._bank_of[slots]]

    @property
    def left(self) -> CacheBudget:
        """What the budget leaves for others."""
        return CacheBudget(device_bytes=self._left["device"], host_bytes=self._left["host"], directory=self._directory)

    @property
    def used_mb(self) -> dict[str, float]:
        """Megabytes allocated per tier, by all processes, which ask together."""
        told = self.owners.processes.told(self._used)
        return {name: round(sum(used[name] for used in told) / MEGABYTE, 3) for name in self._used}

    def close(self) -> None:
        """Free every tier and remove the disk tier's file."""
        self._banks = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> TokenCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bank(self, slots: Tensor) -> _Bank:
        index = int(self._bank_of[slots[0]])
        assert index >= 0 and bool((self._bank_of[slots] == index).all()), (
            "slots of one request must be stored in one bank"
        )
        return self._banks[index]


class FetchedTokens:
    """Rows of some slots, from wherever they are held."""

    def __init__(self, bank_of: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """bank_of (N,): of all slots. parts: slots (n,) of one bank and their tokens (n, L, K)."""
        self._bank_of = bank_of
        grouped: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for slots, values in parts:
            grouped.setdefault(int(bank_of[slots[0]]), []).append((slots, values))
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        for bank, alike in grouped.items():
            slots, order = torch.cat([own for own, _ in alike]).sort()
            values = torch.cat([own for _, own in alike])
            self._rows[bank] = slots, values.index_select(0, order.to(values.device))

    def gather(self, slots: Tensor) -> Tensor:
        """Return the rows of `slots` (n,) int64 on the CPU, all of one bank, as (n, L, K) on the compute device."""
        known, values = self._rows[int(self._bank_of[slots[0]])]
        return values.index_select(0, torch.searchsorted(known, slots.contiguous()).to(values.device))


def reserve_file(path: Path, size: int) -> None:
    """Create a file of `size` bytes whose blocks exist. Raises UserError when the disk has no room.

    A sparse file would end the process by a signal at the first write that finds the disk full.
    """
    try:
        with path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"no room for {size / MEGABYTE:.0f} MB of cached tokens in {path.parent.parent}: raise "
                "eval.cache_host_mb, or point TMPDIR to a larger disk"
            ) from error
        raise


@dataclass(frozen=True, slots=True)
class _Tier:
    """Rows start..stop of a bank: data (stop - start, L, K)."""

    start: int
    stop: int
    data: Tensor


@dataclass(frozen=True, slots=True)
class _Bank:
    length: int
    width: int
    dtype: torch.dtype
    tiers: tuple[_Tier, ...]

    @property
    def row_bytes(self) -> int:
        return self.length * self.width * self.dtype.itemsize

    def write(self, rows: Tensor, values: Tensor) -> None:
        for tier, selected in self._split(rows):
            data = values if selected is None else values[selected.to(values.device)]
            own = rows if selected is None else rows[selected]
            tier.data.index_copy_(0, (own - tier.start).to(tier.data.device), data.to(tier.data.device))

    def read(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return the tokens of some rows on `device`, wherever they are kept."""
        parts = self._split(rows)
        if len(parts) == 1:
            return _fetch(parts[0][0], rows, device)
        tokens = torch.empty((len(rows), self.length, self.width), dtype=self.dtype, device=device)
        for tier, selected in parts:
            assert selected is not None
            tokens.index_copy_(0, selected.to(device), _fetch(tier, rows[selected], device))
        return tokens

    def _split(self, rows: Tensor) -> list[tuple[_Tier, Tensor | None]]:
        """Return the tiers that hold some of `rows` with the positions they hold; None = all of them."""
        if len(self.tiers) == 1:
            return [(self.tiers[0], None)]
        parts: list[tuple[_Tier, Tensor | None]] = []
        for tier in self.tiers:
            positions = torch.nonzero((rows >= tier.start) & (rows < tier.stop)).squeeze(1)
            if len(positions) == len(rows):
                return [(tier, None)]
            if len(positions):
                parts.append((tier, positions))
        return parts


def _fetch(tier: _Tier, rows: Tensor, device: torch.device) -> Tensor:
    own = rows - tier.start
    if tier.data.device == device:
        return tier.data.index_select(0, own.to(device))
    if device.type != "cuda":
        return tier.data.index_select(0, own).to(device)
    # A pinned staging buffer lets the copy overlap with the computation before it.
    staging = torch.empty((len(own), *tier.data.shape[1:]), dtype=tier.data.dtype, pin_memory=True)
    torch.index_select(tier.data, 0, own, out=staging)
    return staging.to(device, non_blocking=True)
