"""Which file an image was encoded from: its version, and its content."""

from __future__ import annotations

import os
from typing import Any

from utils.identical import content_digest, file_version

Signature = list[Any]
"""[size, inode, modification and change time in ns, SHA-256 of the content]; see ABSENT."""

ABSENT = (-1, 0, 0, 0)
"""The version of a file that is empty or not there."""
SIGNED = [int, int, int, int, str]
"""Types of a signature."""


def sign(path: str) -> Signature:
    """Return the signature of a file, with its content's digest."""
    version = file_version(path)
    return [*(version or ABSENT), content_digest(path, version) if version else ""]


def refreshed(signature: Signature, path: str) -> Signature | None:
    """Return the signature of an unchanged file, None for a changed one.

    A file of another version counts as the same when its content's digest is.
    """
    if signature[:-1] == [*(file_version(path) or ABSENT)]:
        return signature
    current = sign(path)
    return current if current[-1] and current[-1] == signature[-1] else None


def is_there(path: str) -> bool:
    """Return whether a file is there that is not empty."""
    return os.path.isfile(path) and file_version(path) is not None
