"""Where a gallery index is. Imports no library: it is asked before anything slow is loaded."""

from __future__ import annotations

import os

from utils.errors import UserError

INDEX_FILE = "index.json"


def is_index(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a gallery index."""
    return os.path.isfile(os.path.join(folder, INDEX_FILE))


def require_index(folder: str | os.PathLike[str]) -> None:
    """Raise UserError for a folder that is no gallery index."""
    if not os.path.isdir(folder):
        raise UserError(f"no such gallery index: {os.fspath(folder)}; make it with python -m solver.gallery add")
    if not is_index(folder):
        raise UserError(
            f"{os.fspath(folder)} is not a gallery index: it has no {INDEX_FILE}; give the folder of one, or --gallery "
            "for a folder of images"
        )
