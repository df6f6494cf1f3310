"""Files of the same bytes: sizes are compared first, and only files of equal size are read."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence

from utils.files import sha256_of

REMEMBERED = 1 << 18
"""Digests that a process keeps: a validation after every epoch reads no file again."""

Version = tuple[int, int, int, int]
"""Size, inode, modification and change time of a file; equal = the same bytes."""


def identical_files(
    paths: Iterable[str], worth: Callable[[Sequence[str]], bool] = lambda same_size: True
) -> list[tuple[str, ...]]:
    """Return every set of two or more of the paths whose files have the same bytes, each in the order given, and the
    sets by their first paths.

    worth: whether files together are of interest; asked of those of one size, which are read only then, and of those of
    the same bytes. Empty files, folders, devices and what cannot be read belong to no set.
    """
    ordered = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    by_size: dict[int, list[tuple[str, Version]]] = {}
    for path in ordered:
        version = file_version(path)
        if version is not None:
            by_size.setdefault(version[0], []).append((path, version))
    found = []
    for same_size in by_size.values():
        if len(same_size) < 2 or not worth([path for path, _ in same_size]):
            continue
        by_digest: dict[str, list[str]] = {}
        for path, version in same_size:
            digest = content_digest(path, version)
            if digest:
                by_digest.setdefault(digest, []).append(path)
        found += [tuple(same) for same in by_digest.values() if len(same) > 1 and worth(same)]
    return sorted(found, key=lambda same: ordered[same[0]])


def crossing(one: Iterable[str], other: Iterable[str]) -> Callable[[Sequence[str]], bool]:
    """Return what says whether files of one size are from both sides: two files of one side are not compared."""
    left, right = frozenset(one), frozenset(other)
    return lambda paths: not left.isdisjoint(paths) and not right.isdisjoint(paths)


def pairs_across(
    copies: Iterable[Sequence[str]], one: Collection[str], other: Collection[str]
) -> list[tuple[str, str]]:
    """Return every (path of one side, path of the other) that are of one set of `identical_files` and two files."""
    return [
        (left, right)
        for same in copies
        for left in same
        if left in one
        for right in same
        if right in other and left != right
    ]


def file_version(path: str | os.PathLike[str]) -> Version | None:
    """Return the version of a file; None for an empty one, a folder, a device, and what is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=REMEMBERED)
def content_digest(path: str, version: Version) -> str:
    """Return the SHA-256 of a file of that version, empty when it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""
