"""Writing an index: one process at a time, one change at a time, each of them whole or not at all.

Shapes: n images that were read, D embed_dim, r removed rows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from solver.gallery.index import GalleryIndex, Shard, open_index
from solver.gallery.layout import (
    BAD,
    CODES,
    FEATURES,
    JOBS_FOLDER,
    KEYS,
    KNOWN_SPREAD,
    MODALITIES_BY_CODE,
    SCALES,
    SHARDS_FOLDER,
    TABLE,
    TABLE_KEYS,
    UNKNOWN_KEY,
    IndexRow,
    IndexState,
    ShardEntry,
    key_of,
    read_state,
)
from solver.gallery.place import INDEX_FILE, is_index
from utils.errors import UserError
from utils.files import atomic_path, is_leftover, remove_leftovers, sha256_of, user_errors_of_writing, write_json
from utils.locks import locked_folder
from utils.retrieval.coarse import coded, has_form, scales_of

logger = logging.getLogger(__name__)

SHARD_ROWS = 65_536
"""Rows of a shard: what a killed process loses at most of what it had encoded, and about 128 MiB at 512 dimensions."""
COPIED_ROWS = 8_192
"""Rows that are copied at once."""
JOB_FILE = "job.json"
"""In the folder of a job that is not finished."""
ANY_SPREAD = 1e30
"""Of rows whose lengths say nothing."""


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What goes into a shard."""

    features: np.ndarray
    """(n, D)."""
    rows: Sequence[IndexRow]
    """n images, in the order of the features."""
    numbers: Sequence[int]
    """(n,): the place of each image among all that were asked for, unreadable ones among them, ascending."""
    bad: Sequence[IndexRow] = ()
    """Those that could not be read, with their place and the reason."""


def write_shard(folder: Path, name: str, content: ShardContent, dtype: str) -> ShardEntry:
    """Write the files of a shard and return its entry, with ids from 0. name: relative to the folder.

    Each file is whole or absent; nothing refers to them yet. Raises UserError for features that are not finite, or not
    within the range of `dtype`.
    """
    features = stored(content.features, dtype)
    place = folder / name
    keys = np.zeros(len(content.rows), dtype=KEYS)
    lines = [row.line().encode("ascii") for row in content.rows]
    keys["id"] = content.numbers
    keys["offset"] = np.cumsum([0, *map(len, lines)])[:-1]
    for column, values in _hashed(content.rows).items():
        keys[column] = values
    for end, array in ((FEATURES, features), (TABLE_KEYS, keys)):
        with atomic_path(place.with_name(place.name + end)) as temporary, temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    _write_lines(place.with_name(place.name + TABLE), lines)
    if content.bad:
        _write_lines(place.with_name(place.name + BAD), [row.line().encode("ascii") for row in content.bad])
    return shard_entry(folder, name, features, bad=len(content.bad), spread=_spread(features))


def shard_entry(folder: Path, name: str, features: np.ndarray, *, bad: int, spread: float) -> ShardEntry:
    """Return the entry of a shard whose files are there but the coarse form of its features (n, D), which is made."""
    place = folder / name
    coarse = _write_coarse(place, features, spread)
    ends = (FEATURES, TABLE_KEYS, TABLE, *((BAD,) if bad else ()), *((CODES, SCALES) if coarse else ()))
    paths = {end: place.with_name(place.name + end) for end in ends}
    files = {end: (path.stat().st_size, sha256_of(path)) for end, path in paths.items()}
    return ShardEntry(name=name, rows=len(features), bad=bad, first_id=0, spread=spread, files=files, coarse=coarse)


def _write_coarse(place: Path, features: np.ndarray, spread: float) -> tuple[float, float] | None:
    """Write the coarse form of features (n, D), a few rows at a time; return its error and length, None = there is
    none.
    """
    if not len(features) or not has_form(features.shape[1], spread, KNOWN_SPREAD):
        return None
    scales, error, longest = scales_of(features), 0.0, 0.0
    with atomic_path(place.with_name(place.name + CODES)) as temporary:
        codes = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.int8, shape=features.shape)
        for start in range(0, len(features), COPIED_ROWS):
            rows = slice(start, start + COPIED_ROWS)
            codes[rows], lost, length = coded(features[rows], scales)
            error, longest = max(error, lost), max(longest, length)
        codes.flush()
    with atomic_path(place.with_name(place.name + SCALES)) as temporary, temporary.open("wb") as stream:
        np.save(stream, scales, allow_pickle=False)
    return error, longest


def stored(features: np.ndarray, dtype: str) -> np.ndarray:
    """Return features (n, D) as they are stored. Raises UserError for what cannot be."""
    if not np.isfinite(features).all():
        raise UserError(
            "the model gives features that are not finite for the gallery; its weights are damaged, or "
            "eval.precision=fp32 is needed"
        )
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(features, dtype=dtype)
    if not np.isfinite(found).all():
        raise UserError("the model gives features beyond the range of fp16; make the index with --dtype fp32")
    return found


def _spread(features: np.ndarray) -> float:
    lengths = np.concatenate(
        [np.zeros(0)]
        + [
            np.linalg.norm(features[start : start + COPIED_ROWS].astype(np.float64), axis=1)
            for start in range(0, len(features), COPIED_ROWS)
        ]
    )
    return float(min(np.abs(lengths - 1).max(initial=0.0), ANY_SPREAD))


def _hashed(rows: Sequence[IndexRow]) -> dict[str, list[int]]:
    known: dict[str, int] = {}

    def key(text: str) -> int:
        if text not in known:
            known[text] = key_of(text)
        return known[text]

    return {
        "path": [key_of(row.path) for row in rows],
        "person": [UNKNOWN_KEY if row.person is None else key(str(row.person)) for row in rows],
        "content": [key_of(row.file[-1]) if row.file and row.file[-1] else UNKNOWN_KEY for row in rows],
        "modality": [MODALITIES_BY_CODE.index(row.modality) for row in rows],
    }


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(lines)


class IndexWriter:
    """The one writer of an index; see `writing`."""

    def __init__(self, folder: Path, state: IndexState) -> None:
        self.folder = folder
        self.state = state

    def read(self) -> GalleryIndex:
        """Return the index as it is now."""
        if not is_index(self.folder):
            return GalleryIndex(self.folder, self.state, (), np.zeros(0, dtype=np.int64))
        return open_index(self.folder, verify=False)

    def append(self, content: ShardContent, count: int, removed: Sequence[int] = ()) -> None:
        """Add a shard. count: images that were asked for, unreadable ones among them. removed: ids that it replaces."""
        entry = write_shard(self.folder, self._name(), content, self.state.dtype)
        self.publish([(entry, count)], removed)

    def publish(self, entries: Sequence[tuple[ShardEntry, int]], removed: Sequence[int] = (), job: str = "") -> None:
        """Add shards whose files are there, each with the number of ids that it takes. job: that made them."""
        shards, next_id = list(self.state.shards), self.state.next_id
        for entry, count in entries:
            shards.append(replace(entry, first_id=next_id))
            next_id += count
        jobs = (*self.state.jobs, job) if job else self.state.jobs
        self._commit(self.state.next(shards=tuple(shards), next_id=next_id, jobs=jobs), removed)

    def remove(self, ids: Sequence[int]) -> None:
        """Take images away, by their ids; their rows stay in the shards until `compact`."""
        if len(ids):
            self._commit(self.state.next(), ids)

    def replace(self, content: ShardContent, count: int, state: IndexState | None = None) -> None:
        """Replace everything by one shard; whoever has the old files open keeps them. state: of the index that it
        becomes, None = as it is.
        """
        new = replace(state or self.state, generation=self.state.generation)
        entry = write_shard(self.folder, self._name(), content, new.dtype)
        self._commit(new.next(shards=(entry,), removed=None, next_id=count))
        self.tidy()

    def compact(self, shard_rows: int = SHARD_ROWS) -> None:
        """Write what is not removed into as few shards as it takes, in the same order, and delete the old files."""
        index = self.read()
        bad = [replace(row, number=identity) for identity, row in index.unreadable()]
        pieces = list(_pieces(index, shard_rows))
        entries = []
        for number, piece in enumerate(pieces or ([[]] if bad else [])):
            # Images that could not be read have no place in the order: the first shard lists them all.
            entries.append(_merged(self.folder, self._name(), piece, bad if number == 0 else [], self.state))
        self._commit(self.state.next(shards=tuple(entries), removed=None))
        self.tidy()

    def tidy(self) -> None:
        """Delete what killed writers have left, and what the index no longer names."""
        named = {f"{shard.name}{end}" for shard in self.state.shards for end in shard.files}
        named |= {self.state.removed[0]} if self.state.removed else set()
        remove_leftovers(self.folder, 0)
        with contextlib.suppress(OSError):
            for path in sorted((self.folder / SHARDS_FOLDER).iterdir()):
                if f"{SHARDS_FOLDER}/{path.name}" not in named:
                    path.unlink()
        for job in sorted((self.folder / JOBS_FOLDER).glob("*")):
            open_job = (job / JOB_FILE).is_file()
            if not open_job and not any(name.startswith(f"{JOBS_FOLDER}/{job.name}/") for name in named):
                shutil.rmtree(job, ignore_errors=True)

    def _name(self) -> str:
        # Random: the files of a killed writer are never taken for those of this one.
        return f"{SHARDS_FOLDER}/{self.state.generation + 1:06d}-{secrets.token_hex(4)}"

    def _commit(self, state: IndexState, removed: Sequence[int] = ()) -> None:
        """Make a state that of the index, with further removed ids."""
        if len(removed):
            known = np.zeros(0, dtype=np.int64) if state.removed is None else self.read().removed
            ids = np.union1d(known, np.asarray(removed, dtype=np.int64))
            name = f"{SHARDS_FOLDER}/removed-{state.generation:06d}.npy"
            with atomic_path(self.folder / name) as temporary, temporary.open("wb") as stream:
                np.save(stream, ids, allow_pickle=False)
            state = replace(state, removed=(name, len(ids), sha256_of(self.folder / name)))
        write_json(self.folder / INDEX_FILE, state.document())
        _sync(self.folder)
        before, self.state = self.state, state
        if before.removed is not None and before.removed != state.removed:
            (self.folder / before.removed[0]).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


Piece = list[tuple[Shard, np.ndarray]]
"""Rows (n,) of shards, in order."""


def _pieces(index: GalleryIndex, shard_rows: int) -> Iterator[Piece]:
    """Yield the rows of each new shard."""
    piece: Piece = []
    room = shard_rows
    for shard, mask in zip(index.shards, index.kept, strict=True):
        rows = np.arange(shard.entry.rows) if mask is None else np.flatnonzero(mask)
        while len(rows):
            piece.append((shard, rows[:room]))
            room -= len(piece[-1][1])
            rows = rows[len(piece[-1][1]) :]
            if not room:
                yield piece
                piece, room = [], shard_rows
    if piece:
        yield piece


def _merged(folder: Path, name: str, piece: Piece, bad: Sequence[IndexRow], state: IndexState) -> ShardEntry:
    """Write a shard of rows of others, a few at a time, and return its entry."""
    place = folder / name
    count = sum(len(rows) for _, rows in piece)
    keys = np.zeros(count, dtype=KEYS)
    with (
        atomic_path(place.with_name(place.name + FEATURES)) as features,
        atomic_path(place.with_name(place.name + TABLE)) as table,
        table.open("wb") as lines,
    ):
        # NumPy maps no empty file.
        target = _created(features, (count, state.dimension), state.dtype)
        done = 0
        for shard, rows in piece:
            for start in range(0, len(rows), COPIED_ROWS):
                chosen = rows[start : start + COPIED_ROWS]
                new = slice(done, done + len(chosen))
                target[new] = shard.features[chosen]
                keys[new] = shard.keys[chosen]
                keys["id"][new] += shard.entry.first_id
                for number, row in zip(range(done, done + len(chosen)), shard.rows(chosen.tolist())):
                    keys["offset"][number] = lines.tell()
                    lines.write(row.line().encode("ascii"))
                done += len(chosen)
        if isinstance(target, np.memmap):
            target.flush()
    with atomic_path(place.with_name(place.name + TABLE_KEYS)) as temporary, temporary.open("wb") as stream:
        np.save(stream, keys, allow_pickle=False)
    if bad:
        _write_lines(place.with_name(place.name + BAD), [row.line().encode("ascii") for row in bad])
    spread = max((shard.entry.spread for shard, _ in piece), default=0.0)
    return shard_entry(folder, name, target, bad=len(bad), spread=spread)


def _created(path: Path, shape: tuple[int, int], dtype: str) -> np.ndarray:
    if 0 not in shape:
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("wb") as stream:
        np.save(stream, np.zeros(shape, dtype=dtype), allow_pickle=False)
    return np.zeros(shape, dtype=dtype)


REFUSED = "wait until it is done, or end it"


@contextlib.contextmanager
def writing(folder: str | Path, new: IndexState | None = None) -> Iterator[IndexWriter]:
    """Hold an index as its only writer; the lock ends with the process. new: the state of an index that is not there
    yet, None = it has to be there.

    Raises UserError when another process holds it, for a folder of other files, and for one that cannot be written.
    """
    place = Path(folder)
    if new is None:
        read_state(place)
    with contextlib.ExitStack() as stack:
        with user_errors_of_writing(place):
            if new is not None:
                place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_folder(place, REFUSED))
            if is_index(place):
                state = read_state(place)
            else:
                check_unused(place)
                assert new is not None, "an index without a new state has been read"
                state = new
            (place / SHARDS_FOLDER).mkdir(exist_ok=True)
            writer = IndexWriter(place, state)
            writer.tidy()
        try:
            yield writer
        finally:
            if not is_index(place):
                leave(place)


def leave(folder: Path) -> None:
    """Remove the folder of an index that nothing was added to."""
    for path in (folder / SHARDS_FOLDER, folder / JOBS_FOLDER, folder):
        with contextlib.suppress(OSError):
            remove_leftovers(path, 0)
            path.rmdir()


def check_unused(folder: Path) -> None:
    """Raise UserError for a folder of other files than those of an index."""
    own = (INDEX_FILE, SHARDS_FOLDER, JOBS_FOLDER)
    others = [path.name for path in folder.iterdir() if path.name not in own and not is_leftover(path.name)]
    if others:
        raise UserError(
            f"{folder} holds other files ({sorted(others)[0]}) and is no gallery index; give a folder that is empty or "
            "not there"
        )


def check_same(state: IndexState, wanted: Mapping[str, Any], folder: Path, what: str) -> None:
    """Raise UserError for an index that was made with another model. what: names the model."""
    different = [key for key in wanted if state.model.get(key) != wanted[key]]
    different += [key for key in state.model if key not in wanted]
    if different:
        told = ", ".join(f"{key} {state.model.get(key)!r} there, {wanted.get(key)!r} here" for key in different[:3])
        raise UserError(
            f"{folder} was made with another model than {what} ({told}); search it with that model, or make an index "
            "of its own for this one"
        )
