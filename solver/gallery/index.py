"""An index opened for reading: memory maps of its features, the keys of its rows, and their lines on demand.

Shapes: N rows, removed ones among them; D embed_dim.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from configs.vocabulary import Modality
from solver.gallery.layout import (
    BAD,
    CODES,
    FEATURES,
    KEYS,
    KNOWN_SPREAD,
    MODALITIES_BY_CODE,
    SCALES,
    TABLE,
    TABLE_KEYS,
    UNKNOWN_KEY,
    IndexRow,
    IndexState,
    ShardEntry,
    among,
    key_of,
    read_state,
)
from utils.errors import UserError, first_line
from utils.files import sha256_of
from utils.foreign import DAMAGE_ERRORS
from utils.retrieval.coarse import CoarseRows
from utils.retrieval.exact import FeatureRows

logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

VERIFIED_BYTES = 1 << 29
"""An index up to this size is read whole when it is opened, and its checksums compared: half a second."""
ATTEMPTS = 5
"""Openings of an index that is compacted at the same time: its old files go when the new ones are there."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of an open index."""

    entry: ShardEntry
    place: Path
    """Of its files, without their ends."""
    features: np.ndarray
    """(n, D), a memory map."""
    keys: np.ndarray
    """(n,) KEYS, a memory map."""
    coarse: CoarseRows | None
    """Their coarse form, a memory map; None = they have none."""

    def rows(self, local: Iterable[int]) -> Iterator[IndexRow]:
        """Yield the rows of these numbers within the shard. Raises UserError for a damaged table."""
        path = self.place.with_name(self.place.name + TABLE)
        try:
            with path.open("rb") as stream:
                for number in local:
                    stream.seek(int(self.keys["offset"][number]))
                    yield IndexRow.read(stream.readline())
        except DAMAGE_ERRORS as error:
            raise damaged(path, first_line(error)) from error

    def all_rows(self) -> Iterator[IndexRow]:
        """Yield all rows. Raises UserError for a damaged table."""
        return _lines(self.place.with_name(self.place.name + TABLE), self.entry.rows)

    def bad(self) -> Iterator[IndexRow]:
        """Yield what could not be read. Raises UserError for a damaged table."""
        return _lines(self.place.with_name(self.place.name + BAD), self.entry.bad) if self.entry.bad else iter(())

    @property
    def ids(self) -> Integers:
        """(n,): ids of the rows."""
        return self.keys["id"] + self.entry.first_id


def damaged(path: Path, reason: str) -> UserError:
    """Return what is said of a broken file of an index."""
    return UserError(f"{path} of the gallery index is damaged ({reason}); restore a copy of it, or make the index anew")


def _lines(path: Path, count: int) -> Iterator[IndexRow]:
    try:
        with path.open("rb") as stream:
            found = 0
            for line in stream:
                found += 1
                yield IndexRow.read(line)
            if found != count:
                raise ValueError(f"{found} lines instead of {count}")
    except DAMAGE_ERRORS as error:
        raise damaged(path, first_line(error)) from error


class GalleryIndex:
    """An open index. Rows are numbered in the order in which they were added, over all shards."""

    def __init__(self, folder: Path, state: IndexState, shards: Sequence[Shard], removed: Integers) -> None:
        self.folder = folder
        self.state = state
        self.shards = tuple(shards)
        self.removed = removed
        """(r,): ids, ascending."""
        self.starts = np.cumsum([0, *(shard.entry.rows for shard in self.shards)], dtype=np.int64)

    @functools.cached_property
    def kept(self) -> tuple[Mask | None, ...]:
        """Per shard which rows are not removed, None = all."""
        masks = [~np.isin(shard.ids, self.removed) if len(self.removed) else None for shard in self.shards]
        return tuple(None if mask is None or mask.all() else mask for mask in masks)

    @functools.cached_property
    def count(self) -> int:
        """Images that can be found."""
        return self.features().searched

    @functools.cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images that can be found."""
        codes = {code for shard, mask in self._masked() for code in np.unique(_chosen(shard.keys["modality"], mask))}
        return tuple(entry for entry in Modality if MODALITIES_BY_CODE.index(entry) in codes)

    @functools.cached_property
    def persons_known(self) -> bool:
        """Whether any image says whom it shows."""
        return any(bool((_chosen(shard.keys["person"], mask) != UNKNOWN_KEY).any()) for shard, mask in self._masked())

    def _masked(self) -> Iterator[tuple[Shard, Mask | None]]:
        return zip(self.shards, self.kept, strict=True)

    def features(self, modality: Modality | None = None) -> FeatureRows:
        """Return the rows to search. modality: only images of it, None = all."""
        masks: list[Mask | None] = list(self.kept)
        if modality is not None and self.modalities != (modality,):
            code = MODALITIES_BY_CODE.index(modality)
            for number, (shard, mask) in enumerate(self._masked()):
                own = shard.keys["modality"] == code
                masks[number] = own if mask is None else own & mask
        spread = max((shard.entry.spread for shard in self.shards), default=0.0)
        return FeatureRows(
            parts=tuple(torch.from_numpy(shard.features) for shard in self.shards),
            kept=tuple(masks),
            spread=spread if spread <= KNOWN_SPREAD else None,
            coarse=tuple(shard.coarse for shard in self.shards),
        )

    def rows(self, numbers: Integers) -> list[IndexRow]:
        """Return the lines of rows (n,). Raises UserError for a damaged table."""
        place = np.searchsorted(self.starts, numbers, side="right") - 1
        found: dict[int, IndexRow] = {}
        for number in np.unique(place).tolist():
            own = numbers[place == number]
            found |= zip(own.tolist(), self.shards[number].rows((own - self.starts[number]).tolist()), strict=True)
        return [found[number] for number in numbers.tolist()]

    def ids(self, numbers: Integers) -> Integers:
        """Return the ids of rows (n,)."""
        place = np.searchsorted(self.starts, numbers, side="right") - 1
        found = np.empty(len(numbers), dtype=np.int64)
        for number in np.unique(place).tolist():
            own = place == number
            found[own] = self.shards[number].ids[numbers[own] - self.starts[number]]
        return found

    def images(self) -> Iterator[tuple[int, IndexRow]]:
        """Yield (id, row) of every image that can be found, in order. Raises UserError for a damaged table."""
        for shard, mask in self._masked():
            for number, (identity, row) in enumerate(zip(shard.ids.tolist(), shard.all_rows(), strict=True)):
                if mask is None or mask[number]:
                    yield identity, row

    def unreadable(self) -> Iterator[tuple[int, IndexRow]]:
        """Yield (id, row) of every image that could not be read and is not removed."""
        removed = set(self.removed.tolist())
        for shard in self.shards:
            for row in shard.bad():
                if shard.entry.first_id + row.number not in removed:
                    yield shard.entry.first_id + row.number, row

    def find(self, column: str, texts: Iterable[str]) -> dict[str, Integers]:
        """Return, for each text, the rows whose `path`, `person` or `content` is that text and that are not removed."""
        wanted = list(dict.fromkeys(texts))
        keys = np.array([key_of(text) for text in wanted], dtype=np.uint64)
        hits = [np.zeros(0, dtype=np.int64)]
        for start, (shard, mask) in zip(self.starts.tolist(), self._masked()):
            own = among(shard.keys[column], keys)
            hits.append(np.flatnonzero(own if mask is None else own & mask) + start)
        numbers = np.concatenate(hits)
        found: dict[str, list[int]] = {text: [] for text in wanted}
        for number, row in zip(numbers.tolist(), self.rows(numbers)):
            text = {"path": row.path, "person": str(row.person), "content": row.file[-1]}[column]
            if text in found:
                found[text].append(number)
        return {text: np.asarray(rows, dtype=np.int64) for text, rows in found.items()}


def _chosen(values: np.ndarray, mask: Mask | None) -> np.ndarray:
    return values if mask is None else values[mask]


def open_index(folder: str | Path, *, verify: bool | None = None) -> GalleryIndex:
    """Open an index. verify: compare the checksums of all files; None = of an index up to VERIFIED_BYTES.

    Raises UserError for a folder that is none, and for a file that is missing or damaged, which it names.
    """
    place = Path(folder)
    for attempt in range(ATTEMPTS):
        state = read_state(place)
        try:
            return _opened(place, state, verify)
        except FileNotFoundError as error:
            if attempt == ATTEMPTS - 1 or read_state(place).generation == state.generation:
                raise damaged(Path(str(error.filename)), "it is missing") from error
    raise AssertionError("the last attempt returns or raises")


def _opened(folder: Path, state: IndexState, verify: bool | None) -> GalleryIndex:
    if verify is None:
        total = sum(size for shard in state.shards for size, _ in shard.files.values())
        verify = total <= VERIFIED_BYTES
    removed = np.zeros(0, dtype=np.int64)
    if state.removed is not None:
        path = folder / state.removed[0]
        _check_file(path, path.stat().st_size, state.removed[2], verify=True)
        removed = load_array(path, np.int64, (state.removed[1],))
    return GalleryIndex(folder, state, [open_shard(folder, entry, state, verify) for entry in state.shards], removed)


def open_shard(folder: Path, entry: ShardEntry, state: IndexState, verify: bool) -> Shard:
    """Return a shard of an index. Raises UserError for a damaged file, FileNotFoundError for a missing one."""
    place = folder / entry.name
    for end, (size, digest) in entry.files.items():
        _check_file(place.with_name(place.name + end), size, digest, verify=verify)
    return Shard(
        entry=entry,
        place=place,
        features=load_array(
            place.with_name(place.name + FEATURES), np.dtype(state.dtype), (entry.rows, state.dimension)
        ),
        keys=load_array(place.with_name(place.name + TABLE_KEYS), KEYS, (entry.rows,)),
        coarse=_coarse(place, entry, state.dimension),
    )


def _coarse(place: Path, entry: ShardEntry, width: int) -> CoarseRows | None:
    if entry.coarse is None:
        return None
    codes = load_array(place.with_name(place.name + CODES), np.int8, (entry.rows, width))
    scales = np.array(load_array(place.with_name(place.name + SCALES), np.float32, (2, width)))
    error, longest = entry.coarse
    return CoarseRows(codes=torch.from_numpy(codes), scales=scales, error=error, longest=longest)


def _check_file(path: Path, size: int, digest: str, *, verify: bool) -> None:
    found = path.stat().st_size
    if found != size:
        raise damaged(path, f"{found:,} bytes instead of {size:,}")
    if verify and sha256_of(path) != digest:
        raise damaged(path, "its checksum is another one")


def load_array(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of a file as a memory map, which nobody writes. Raises UserError for another kind or shape,
    FileNotFoundError.
    """
    try:
        # Copy on write: torch warns of maps that may not be written.
        array = np.load(path, mmap_mode="c" if 0 not in shape else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except DAMAGE_ERRORS as error:
        raise damaged(path, first_line(error)) from error
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise damaged(path, f"{array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    return array
