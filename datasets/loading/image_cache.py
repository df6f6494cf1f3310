"""Decoded images as one memory-mapped uint8 array, found again only when the files' bytes are the same."""

from __future__ import annotations

import contextlib
import json
import logging
import zlib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import PIL

from datasets.loading.readers import PillowReader
from datasets.structures import Source
from utils.cache_folders import BYTES_PER_GB, TABLES, mark_used, tidy
from utils.errors import UserError
from utils.files import LEFTOVER_SECONDS, atomic_path, fingerprint, ordinary, remove_leftovers, write_json
from utils.foreign import DAMAGE_ERRORS
from utils.identical import content_digest, file_version
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

VERSION = 3
"""To be raised when the array's form or the reading of images changes."""
CHUNK = 256
HASHES_FILE = TABLES[0]
"""Beside the entries: path -> version and SHA-256 of an image file."""

ImageKey = tuple[str, str]
"""File of a picture, and the part of it that is meant (empty = all)."""


class CachedReader:
    """An ImageReader over a built cache; a file that is not in it, or is damaged there, is decoded.

    sums: CRC-32 of each row.
    """

    def __init__(
        self,
        array_file: Path,
        rows: dict[ImageKey, int],
        failures: Collection[int],
        image_size: tuple[int, int],
        sums: Sequence[int],
    ) -> None:
        self.array_file, self.rows, self.failures = array_file, rows, frozenset(failures)
        self.fallback = PillowReader(image_size)
        self._sums = np.asarray(sums, dtype=np.uint32)
        self._array: np.ndarray | None = None
        self._damaged = False

    def __call__(self, source: Source) -> np.ndarray:
        """Return (3, H, W) uint8. Raises UserError for a file that could not be decoded when the cache was built."""
        row = self.rows.get(image_key(source))
        if row is None or row in self.failures:
            # Decoding again gives the error its record.
            return self.fallback(source)
        image = self._cached(row)
        return self.fallback(source) if image is None else image

    def _cached(self, row: int) -> np.ndarray | None:
        """Return a row, None when it is not what was written there."""
        try:
            if self._array is None:
                self._array = np.load(self.array_file, mmap_mode="r", allow_pickle=False)
            image = np.array(self._array[row])
            if image.dtype == np.uint8 and zlib.crc32(image.data) == self._sums[row]:
                return image
        except DAMAGE_ERRORS as error:
            logger.debug("%s: %s", self.array_file, error)
        if not self._damaged:
            self._damaged = True
            logger.warning(
                "decode cache %s is damaged: its images are decoded again, at the next start all", self.array_file
            )
            # A cache that may only be read stays as it is.
            with contextlib.suppress(OSError):
                self.array_file.with_suffix(".json").unlink(missing_ok=True)
        return None

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the file itself instead of receiving the array.
        return {**self.__dict__, "_array": None}


def image_key(source: Source) -> ImageKey:
    """Return what an image source shows: its file, and the part of it."""
    return source.value, source.crop


def build_cache(
    sources: Iterable[Source],
    image_size: tuple[int, int],
    directory: str | Path,
    threads: int,
    *,
    gigabytes: float = 0.0,
    days: float = 0.0,
) -> CachedReader:
    """Decode every picture once into `directory` and return the reader; an existing cache of the same contents is
    reused.

    The key is made of the files' names and SHA-256, the parts of them that are meant, the image size, this format's
    version and Pillow's: a file whose size, inode, modification or change time is another is hashed again. gigabytes,
    days: largest size of all entries together and longest time without use (see `tidy`), 0 = no limit.
    Raises UserError when the disk is full, and before any work when the pictures alone exceed the limit.
    """
    unique = [source for _, source in sorted({image_key(source): source for source in sources}.items())]
    directory = Path(directory)
    _check_room(len(unique), image_size, gigabytes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir = {str(directory)!r} cannot be made: {error.strerror}; choose another folder"
        ) from error
    remove_leftovers(directory, LEFTOVER_SECONDS)
    hashes = _hashes(sorted({source.value for source in unique}), directory)
    pictures = [[*hashes[source.value], *([source.crop] if source.crop else [])] for source in unique]
    key = fingerprint([VERSION, list(image_size), PIL.__version__, *pictures])
    array_file, index_file = directory / f"{key}.npy", directory / f"{key}.json"
    index = _read_index(index_file, len(unique))
    if index is None or not _complete(array_file, (len(unique), 3, *image_size)):
        index = _decode_all(unique, image_size, array_file, threads)
        write_json(index_file, {"failures": index[0], "sums": index[1]})
    failures, sums = index
    mark_used(index_file)
    tidy(directory, gigabytes=gigabytes, days=days, keep=[key])
    logger.info("decode cache %s: %d images, %.1f MiB", array_file, len(unique), array_file.stat().st_size / 2**20)
    rows = {image_key(source): row for row, source in enumerate(unique)}
    return CachedReader(
        array_file, rows, [row for row, source in enumerate(unique) if _name(source) in failures], image_size, sums
    )


def _check_room(count: int, image_size: tuple[int, int], gigabytes: float) -> None:
    needed = count * 3 * image_size[0] * image_size[1] / BYTES_PER_GB
    if gigabytes and needed > gigabytes:
        raise UserError(
            f"data.cache_gb = {gigabytes:g}: the {count:,} decoded images take {needed:.3g} GB; raise it (0 = no "
            "limit) or set data.cache_dir= for no cache"
        )


def _name(source: Source) -> str:
    return f"{source.value} [{source.crop}]" if source.crop else source.value


def _hashes(paths: Sequence[str], directory: Path) -> dict[str, list[str]]:
    """Return path -> [path, sha256] of every file; hashes are remembered by the version of the file."""
    memory_file = directory / HASHES_FILE
    memory = _read_table(memory_file) or {}
    hashes: dict[str, list[str]] = {}
    changed = False
    for path in progress_bar(paths, len(paths), "hashing images", "file"):
        known, version = memory.get(path), file_version(path)
        if version is not None and not (_is_memory(known) and known[:-1] == list(version)):
            known = [*version, content_digest(path, version)]
            # Nothing is remembered of a file that cannot be read.
            if known[-1]:
                memory[path], changed = known, True
        hashes[path] = [path, (known[-1] if known and version is not None else "") or "absent"]
    if changed:
        write_json(memory_file, memory)
    return hashes


def _read_table(path: Path) -> dict[str, Any] | None:
    """Return a JSON object of ours, None when it is absent or damaged: everything in it can be made again."""
    try:
        content = json.loads(ordinary(path).read_text(encoding="utf-8"))
    except DAMAGE_ERRORS:
        return None
    return content if isinstance(content, dict) else None


def _is_memory(known: Any) -> TypeGuard[list[Any]]:
    """Return whether an entry of the remembered hashes is one: the four numbers of a version, digest."""
    return isinstance(known, list) and [type(value) for value in known] == [int, int, int, int, str]


def _read_index(path: Path, count: int) -> tuple[dict[str, str], list[int]] | None:
    """Return the failures and the checksums of `count` rows, None for anything else."""
    content = _read_table(path) or {}
    failures, sums = content.get("failures"), content.get("sums")
    if not isinstance(failures, dict) or not isinstance(sums, list) or len(sums) != count:
        return None
    return (failures, sums) if all(type(value) is int and 0 <= value < 1 << 32 for value in sums) else None


def _complete(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        array = np.load(ordinary(path), mmap_mode="r", allow_pickle=False)
        return array.shape == shape and array.dtype == np.uint8 and bool(array.flags.c_contiguous)
    except DAMAGE_ERRORS:
        return False


def _decode_all(
    sources: Sequence[Source], image_size: tuple[int, int], target: Path, threads: int
) -> tuple[dict[str, str], list[int]]:
    """Write the array row after row: a memory-mapped file on a full disk would end the process without a word. Return
    why files could not be decoded, and the checksum of every row.
    """
    failures: dict[str, str] = {}
    sums: list[int] = []
    chunks = [(sources[start : start + CHUNK], image_size) for start in range(0, len(sources), CHUNK)]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(sources), 3, *image_size)}
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        # Pillow decodes and resizes outside Python's global lock.
        with ThreadPoolExecutor(threads) as pool, progress_bar(None, len(sources), "decoding images", "image") as bar:
            for images, errors in pool.map(_decode_chunk, chunks):
                stream.write(images.tobytes())
                failures |= errors
                sums += [zlib.crc32(image) for image in images]
                bar.update(len(images))
    return failures, sums


def _decode_chunk(chunk: tuple[Sequence[Source], tuple[int, int]]) -> tuple[np.ndarray, dict[str, str]]:
    sources, image_size = chunk
    read = PillowReader(image_size)
    failures: dict[str, str] = {}
    images = np.zeros((len(sources), 3, *image_size), dtype=np.uint8)
    for row, source in enumerate(sources):
        try:
            # Without the record: the same file may be listed in several places.
            images[row] = read(replace(source, record=""))
        except UserError as error:
            failures[_name(source)] = str(error)
    return images, failures
