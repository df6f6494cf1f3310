"""Decoded images as one memory-mapped uint8 array, found again only when the files' bytes are the same."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from datasets.loading.readers import PillowReader
from utils.errors import UserError
from utils.files import atomic_path, fingerprint, sha256_of, write_json
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

VERSION = 1
CHUNK = 256


class CachedReader:
    """An ImageReader over a built cache; a file that is not in it is decoded."""

    def __init__(
        self, array_file: Path, rows: dict[str, int], failures: dict[str, str], image_size: tuple[int, int]
    ) -> None:
        self.array_file, self.rows, self.failures = array_file, rows, failures
        self.fallback = PillowReader(image_size)
        self._array: np.ndarray | None = None

    def __call__(self, path: str, record: str = "") -> np.ndarray:
        """Return (3, H, W) uint8. Raises UserError for a file that could not be decoded when the cache was built."""
        if path in self.failures or path not in self.rows:
            # Decoding again gives the error its record.
            return self.fallback(path, record)
        if self._array is None:
            self._array = np.load(self.array_file, mmap_mode="r", allow_pickle=False)
        return np.array(self._array[self.rows[path]])

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the file itself instead of receiving the array.
        return {**self.__dict__, "_array": None}


def build_cache(paths: Iterable[str], image_size: tuple[int, int], directory: str | Path, threads: int) -> CachedReader:
    """Decode every path once into `directory` and return the reader; an existing cache of the same contents is reused.

    The key is made of the files' names and SHA-256, the image size, this format's version and Pillow's: a file whose
    size or modification time changed is hashed again.
    Raises UserError when the disk is full.
    """
    unique = sorted(set(paths))
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir = {str(directory)!r} cannot be made: {error.strerror}; choose another folder"
        ) from error
    key = fingerprint([VERSION, list(image_size), PIL.__version__, *_hashes(unique, directory)])
    array_file, index_file = directory / f"{key}.npy", directory / f"{key}.json"
    failures = _read_table(index_file)
    if failures is None or not _complete(array_file, (len(unique), 3, *image_size)):
        failures = _decode_all(unique, image_size, array_file, threads)
        write_json(index_file, failures)
    logger.info("decode cache %s: %d images, %.1f MiB", array_file, len(unique), array_file.stat().st_size / 2**20)
    return CachedReader(array_file, {path: row for row, path in enumerate(unique)}, failures, image_size)


def _hashes(paths: Sequence[str], directory: Path) -> list[list[str]]:
    """Return [path, sha256] of every file; hashes are remembered by size and modification time."""
    memory_file = directory / "hashes.json"
    memory = _read_table(memory_file) or {}
    found, changed = [], False
    for path in progress_bar(paths, len(paths), "hashing images", "file"):
        known = memory.get(path)
        try:
            stat = os.stat(path)
            if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
                known = memory[path] = [stat.st_size, stat.st_mtime_ns, sha256_of(path)]
                changed = True
        except OSError:
            found.append([path, "absent"])
            continue
        found.append([path, known[2]])
    if changed:
        write_json(memory_file, memory)
    return found


def _read_table(path: Path) -> dict[str, Any] | None:
    """Return a JSON object of ours, None when it is absent or damaged: everything in it can be made again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _complete(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).shape == shape
    except (OSError, ValueError, EOFError):
        return False


def _decode_all(paths: Sequence[str], image_size: tuple[int, int], target: Path, threads: int) -> dict[str, str]:
    """Write the array row after row: a memory-mapped file on a full disk would end the process without a word."""
    failures: dict[str, str] = {}
    chunks = [(paths[start : start + CHUNK], image_size) for start in range(0, len(paths), CHUNK)]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, *image_size)}
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        # Pillow decodes and resizes outside Python's global lock.
        with ThreadPoolExecutor(threads) as pool, progress_bar(None, len(paths), "decoding images", "image") as bar:
            for images, errors in pool.map(_decode_chunk, chunks):
                stream.write(images.tobytes())
                failures |= errors
                bar.update(len(images))
    return failures


def _decode_chunk(chunk: tuple[Sequence[str], tuple[int, int]]) -> tuple[np.ndarray, dict[str, str]]:
    paths, image_size = chunk
    read, failures = PillowReader(image_size), {}
    images = np.zeros((len(paths), 3, *image_size), dtype=np.uint8)
    for row, path in enumerate(paths):
        try:
            images[row] = read(path)
        except UserError as error:
            failures[path] = str(error)
    return images, failures
