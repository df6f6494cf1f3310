"""Folders that one process at a time writes; a lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class HeldError(UserError):
    """Another process holds a folder."""


_held: set[int] = set()
"""File descriptors of the folders that this process holds."""


def _let_go() -> None:
    # A lock lasts as long as any copy of its descriptor: loader processes that outlive a killed parent for a moment
    # would hold its folder.
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

_UNSUPPORTED = (errno.ENOTSUP, errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS)
"""What file systems without locks answer, some network ones."""


@contextlib.contextmanager
def locked_folder(folder: Path, remedy: str) -> Iterator[None]:
    """Hold an existing folder. Raises HeldError when another process holds it; nothing is written into it.

    A file system, or an operating system, that has no such locks lets everyone in.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise HeldError(f"{folder} is being written by another process; {remedy}") from error
        yield
    finally:
        # In a child that was forked inside the block it is closed already.
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Return whether another process holds a folder."""
    try:
        with locked_folder(folder, ""):
            return False
    except UserError:
        return True
    except OSError:
        return False
