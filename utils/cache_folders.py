"""Folders of files that can be made again: how large they may become, how old, and how they are emptied.

An entry is what a cache names by a fingerprint: `<16 hex digits>.<suffix>`, one file or several. Nothing else in such a
folder is ever removed, except a table that a cache names and what killed processes left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import is_leftover, remove_leftovers

logger = logging.getLogger(__name__)

SECONDS_PER_DAY = 86_400
BYTES_PER_GB = 10**9
TABLES = ("hashes.json",)
"""What a cache remembers beside its entries; goes when the folder is emptied."""
INDEX_SUFFIX = ".index"
"""Of an encoded gallery, a folder; see solver.gallery."""
_ENTRY = re.compile(r"([0-9a-f]{16})\.(npy|npz|json|index)")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry:
    """One entry of a cache folder."""

    name: str
    """Its fingerprint."""
    files: tuple[Path, ...]
    size: int
    """Bytes of all files."""
    used: float
    """When it was used last, in seconds since the epoch."""


def cache_entries(folder: str | Path) -> list[CacheEntry]:
    """Return the entries of a folder, the one used longest ago first; nothing for a folder that is not there.

    Raises UserError for a folder that cannot be listed.
    """
    try:
        paths = sorted(Path(folder).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot list the cache {folder}: {error.strerror}; give the folder of a cache") from error
    found: dict[str, list[tuple[Path, os.stat_result, int]]] = {}
    for path in paths:
        match = _ENTRY.fullmatch(path.name)
        # Another process may tidy the folder at the same time.
        with contextlib.suppress(OSError):
            if match and path.is_dir() == (path.suffix == INDEX_SUFFIX):
                found.setdefault(match[1], []).append((path, path.stat(), _bytes(path)))
    entries = [
        CacheEntry(
            name=name,
            files=tuple(path for path, _, _ in files),
            size=sum(size for _, _, size in files),
            used=max(status.st_mtime for _, status, _ in files),
        )
        for name, files in found.items()
    ]
    return sorted(entries, key=lambda entry: (entry.used, entry.name))


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for below in path.rglob("*"):
        # Its writer may replace it at the same time.
        with contextlib.suppress(OSError):
            total += 0 if below.is_dir() else below.stat().st_size
    return total


def mark_used(path: str | Path) -> None:
    """Note that the entry of a file is used now; a folder that cannot be written keeps its times."""
    with contextlib.suppress(OSError):
        os.utime(path)


def tidy(folder: str | Path, *, gigabytes: float, days: float, keep: Sequence[str] = ()) -> list[CacheEntry]:
    """Remove the entries that were not used for so many days, then those used longest ago until the others fit into so
    many GB (10^9 bytes); return what is gone. 0 = no limit. keep: names of entries that stay.

    A file that cannot be removed stays, and the log says so. Raises UserError for a folder that cannot be listed.
    """
    entries = cache_entries(folder)
    total = sum(entry.size for entry in entries)
    oldest = time.time() - days * SECONDS_PER_DAY if days else 0.0
    gone = []
    for entry in entries:
        if entry.name in keep:
            continue
        if entry.used < oldest or (gigabytes and total > gigabytes * BYTES_PER_GB):
            if _removed(entry):
                total -= entry.size
                gone.append(entry)
    if gone:
        logger.info(
            "cache %s: %d entries removed, %.2f GB", folder, len(gone), sum(e.size for e in gone) / BYTES_PER_GB
        )
    return gone


def clear(folder: str | Path) -> list[CacheEntry]:
    """Remove every entry, the tables beside them and unfinished files; return the entries that are gone."""
    gone = [entry for entry in cache_entries(folder) if _removed(entry)]
    for name in TABLES:
        with contextlib.suppress(OSError):
            (Path(folder) / name).unlink(missing_ok=True)
    remove_leftovers(folder, 0)
    return gone


def is_cache(folder: str | Path) -> bool:
    """Return whether a folder holds nothing but what a cache writes."""
    names = [path.name for path in Path(folder).iterdir()]
    return all(_ENTRY.fullmatch(name) or name in TABLES or is_leftover(name) for name in names)


def _removed(entry: CacheEntry) -> bool:
    try:
        for path in entry.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed from the cache: %s", error.filename, error.strerror)
        return False
    return True
