"""Many images encoded by many processes: parts that are files, each a pure function of its images and the model.

A job is a folder `jobs/KEY` of an index, its parts are folders in it. Whoever holds a part's folder encodes it; a part
with a done record is never encoded again, and one that was being encoded by a killed process begins anew. Parts know
nothing of the index: when all are done, one process adds them in their order, by one change of index.json.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from solver.gallery.adding import Encode, known_images, shard_content
from solver.gallery.index import open_shard
from solver.gallery.layout import JOBS_FOLDER, IndexState, ShardEntry, among, read_state
from solver.gallery.listing import ListedImage
from solver.gallery.place import is_index
from solver.gallery.writing import JOB_FILE, check_same, leave, write_shard, writing
from utils.errors import UserError
from utils.files import fingerprint, read_json, remove_leftovers, write_json
from utils.foreign import foreign_file
from utils.locks import HeldError, locked_folder

logger = logging.getLogger(__name__)

DONE_FILE, SHARD = "done.json", "shard"
SHOWN_BAD = 20
"""Unreadable images that a done record names; the part's table names all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Images that are to be added by several processes."""

    folder: Path
    """Of the index."""
    state: IndexState
    """Of a new index of the model."""
    images: Sequence[ListedImage]
    shards: int
    """Parts that the images are cut into, in their order."""
    model: str
    """Names the model."""

    @cached_property
    def key(self) -> str:
        """What the parts depend on: the listed rows, the number of parts, the model, and how features are kept."""
        rows = [
            [image.path, image.source.modality.value, image.person, image.camera, image.clothes]
            for image in self.images
        ]
        state = self.state
        return fingerprint([self.shards, state.model, state.dtype, state.instruction, rows])

    @property
    def place(self) -> Path:
        """Folder of the job."""
        return self.folder / JOBS_FOLDER / self.key

    def part(self, number: int) -> Sequence[ListedImage]:
        """Return the images of a part."""
        count = len(self.images)
        return self.images[number * count // self.shards : (number + 1) * count // self.shards]

    def part_name(self, number: int) -> str:
        """Return the folder of a part, relative to the index."""
        return f"{JOBS_FOLDER}/{self.key}/{number:05d}"

    def done(self, number: int) -> ShardEntry | None:
        """Return the entry of a part that is done. Raises UserError for a damaged record."""
        file = self.folder / self.part_name(number) / DONE_FILE
        if not file.is_file():
            return None
        content = read_json(file, "the record of a part of a gallery")
        with foreign_file(f"{file} is damaged", "delete it, so that the part is encoded again"):
            return ShardEntry.read(content["shard"])


def run_job(job: Job, encode: Encode, worker: int, workers: int) -> str:
    """Encode this worker's parts, then those that nobody is at work on; the last to finish adds all to the index.

    Returns what is to be printed. Raises UserError when the index is another model's, or is written by somebody else
    when the parts are to be added.
    """
    before = begun(job)
    if before:
        return before
    own = [number for number in range(job.shards) if number % workers == worker % workers]
    others = [number for number in range(job.shards) if number not in own]
    made = sum(encode_part(job, number, encode) for number in (*own, *others))
    return finished(job, f"worker {worker} of {workers}: {made} parts encoded")


def begun(job: Job) -> str:
    """Make the folder of a job; return what is to be printed where there is nothing to do, else empty.

    Raises UserError for more parts than images, and for an index of another model.
    """
    if job.shards > len(job.images):
        raise UserError(f"--shards {job.shards}: there are {len(job.images)} images; give at most so many")
    if is_index(job.folder):
        state = read_state(job.folder)
        check_same(state, job.state.model, job.folder, job.model)
        if job.key in state.jobs:
            return (
                f"{job.folder}: the images of this job were added before; add them without --shards, so that files "
                "that have changed since are looked for"
            )
    job.place.mkdir(parents=True, exist_ok=True)
    if not (job.place / JOB_FILE).is_file():
        write_json(job.place / JOB_FILE, {"shards": job.shards, "images": len(job.images), "model": job.state.model})
    return ""


def finished(job: Job, said: str) -> str:
    """Add all parts to the index if all are done; return what is to be printed. said: what was done so far. Raises
    UserError when no image can be read; then nothing is left of the job.
    """
    if not job.place.is_dir():
        raise UserError(f"no image of {len(job.images):,} can be read, as another worker has said; mend them")
    entries = [job.done(number) for number in range(job.shards)]
    open_parts = [number for number, entry in enumerate(entries) if entry is None]
    if open_parts:
        return f"{said}; {len(open_parts)} of {job.shards} parts are being encoded by others, who add them all"
    return f"{said}; {_publish(job, [entry for entry in entries if entry is not None])}"


def encode_part(job: Job, number: int, encode: Encode) -> bool:
    """Encode a part unless it is done or somebody is at work on it; return whether it was encoded here."""
    place = job.folder / job.part_name(number)
    if job.done(number) is not None:
        return False
    try:
        place.mkdir(exist_ok=True)
    except FileNotFoundError:
        # Another worker has given the job up.
        return False
    try:
        with locked_folder(place, ""):
            # Between the look and the lock somebody may have finished it.
            if job.done(number) is not None:
                return False
            remove_leftovers(place, 0)
            images = job.part(number)
            content = shard_content(images, encode)
            entry = write_shard(job.folder, f"{job.part_name(number)}/{SHARD}", content, job.state.dtype)
            entry = replace(entry, job=job.key, part=number)
            bad = [{"path": row.path, "reason": row.reason} for row in content.bad[:SHOWN_BAD]]
            record = {"images": len(images), "read": entry.rows, "unreadable": entry.bad, "first_unreadable": bad}
            write_json(place / DONE_FILE, {**record, "shard": asdict(entry)})
    except HeldError:
        return False
    logger.info("part %d of %d: %d images, %d unreadable", number, job.shards, entry.rows, entry.bad)
    return True


def _publish(job: Job, entries: Sequence[ShardEntry]) -> str:
    """Add all parts to the index by one change of it, in their order; images that were there before are replaced."""
    try:
        with locked_folder(job.place, ""):
            return _published(job, entries) if any(entry.rows for entry in entries) else _given_up(job, entries)
    except HeldError:
        return "another worker adds them to the index"


def _given_up(job: Job, entries: Sequence[ShardEntry]) -> NoReturn:
    """Remove a job of which no image can be read: kept, its records would say so when the images are mended."""
    first = next(open_shard(job.folder, entries[0], job.state, verify=False).bad())
    shutil.rmtree(job.place, ignore_errors=True)
    if not is_index(job.folder):
        leave(job.folder)
    raise UserError(f"no image of {len(job.images):,} can be read, the first: {first.reason}")


def _published(job: Job, entries: Sequence[ShardEntry]) -> str:
    with writing(job.folder, job.state) as writer:
        if job.key not in writer.state.jobs:
            check_same(writer.state, job.state.model, job.folder, job.model)
            index = writer.read()
            paths = set(_shared_paths(job, entries, index_keys(writer.state, job.folder)))
            replaced = [identity for identity, _ in known_images(index, sorted(paths)).values()]
            counts = [len(job.part(number)) for number in range(job.shards)]
            writer.publish(list(zip(entries, counts, strict=True)), replaced, job=job.key)
        (job.place / JOB_FILE).unlink(missing_ok=True)
        count = writer.read().count
    bad = sum(entry.bad for entry in entries)
    return f"{job.folder}: {count:,} images in all, {bad:,} of this job unreadable"


def index_keys(state: IndexState, folder: Path) -> np.ndarray:
    """Return (n,) uint64: keys of the paths of an index."""
    keys = [np.asarray(open_shard(folder, entry, state, verify=False).keys["path"]) for entry in state.shards]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *keys]))


def _shared_paths(job: Job, entries: Sequence[ShardEntry], known: np.ndarray) -> Iterator[str]:
    """Yield the paths of the job that the index may have already."""
    for entry in entries:
        shard = open_shard(job.folder, entry, job.state, verify=False)
        local = np.flatnonzero(among(shard.keys["path"], known))
        yield from (row.path for row in shard.rows(local.tolist()))
        yield from (row.path for row in shard.bad())


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenJob:
    """A job that is not finished."""

    folder: Path
    done: int
    shards: int


def open_jobs(index: Path) -> list[OpenJob]:
    """Return the jobs of an index that are not finished."""
    found = []
    for file in sorted((index / JOBS_FOLDER).glob(f"*/{JOB_FILE}")):
        content = read_json(file, "a job of a gallery")
        done = sum(1 for _ in file.parent.glob(f"*/{DONE_FILE}"))
        shards = int(content["shards"]) if isinstance(content, dict) and "shards" in content else 0
        found.append(OpenJob(folder=file.parent, done=done, shards=shards))
    return found
