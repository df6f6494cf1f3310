"""The files that a search is told by name, looked at before anything slow is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datasets.formats.manifest_rows import SUFFIXES
from solver.search.queries import Query, query_from_parts, read_queries
from utils.errors import UserError


def check_named(parts: Mapping[str, str], queries: str, gallery: str) -> None:
    """Raise UserError for query files that cannot be meant and a gallery that is not there. Imports no torch.

    parts: key -> file or text of one query. queries: a file of them, empty = none. gallery: a folder or a manifest,
    empty = the data set's.
    """
    named_queries(parts, queries)
    if gallery and not is_manifest(gallery):
        require_gallery(gallery)


def named_queries(parts: Mapping[str, str], queries: str) -> tuple[Query, ...]:
    """Return the queries of a file, or the one of `parts`, or none. Raises UserError."""
    if queries:
        return read_queries(queries)
    return (query_from_parts(parts, "query"),) if parts else ()


def is_manifest(place: str | os.PathLike[str]) -> bool:
    """Return whether a gallery is given by a manifest (.csv, .jsonl) rather than by a folder."""
    return Path(place).suffix.lower() in SUFFIXES and os.path.isfile(place)


def require_gallery(place: str | os.PathLike[str]) -> None:
    """Raise UserError when there is no such folder."""
    if not os.path.isdir(place):
        raise UserError(f"no such gallery folder: {os.fspath(place)}; give a folder of images or a manifest")
