"""The files that a search is told by name, looked at before anything slow is imported."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.formats.manifest_rows import SUFFIXES
from datasets.structures import Source
from solver.gallery.place import require_index
from solver.search.arguments import SearchOptions
from solver.search.queries import Query, instructed, instruction_from, query_from_parts, read_queries
from utils.errors import UserError


def check_named(options: SearchOptions) -> None:
    """Raise UserError for query files that cannot be meant and a gallery that is not there. Imports no torch."""
    if options.attention:
        named_picture(options)
        named_instruction(options)
        return
    named_queries(options)
    if options.gallery and not is_manifest(options.gallery):
        require_gallery(options.gallery)
    if options.gallery_index:
        require_index(options.gallery_index)


def named_picture(options: SearchOptions) -> Query:
    """Return the one image that --attention looks at. Raises UserError for none, for several, and for what else is
    asked of a search.
    """
    images = {key: value for key, value in options.parts.items() if key != "text"}
    if len(images) != 1:
        raise UserError("--attention: one image is looked at; give --rgb or --nir FILE")
    given = {
        "--queries": options.queries,
        "--task": options.tasks,
        "--threshold": options.threshold is not None,
        "--gallery": options.gallery,
        "--index": options.gallery_index,
        "--gallery-instruction": options.gallery_instruction,
        "--output": options.output,
        "--export": options.export,
    }
    others = [name for name, value in given.items() if value]
    if others:
        raise UserError(f"--attention looks at one image and searches nothing; leave out {', '.join(others)}")
    return query_from_parts(images, "--attention")


def named_instruction(options: SearchOptions) -> Source | None:
    """Return what --instruction or --instruction-image tells with the queries, None = nothing. Raises UserError."""
    option = "--instruction-image" if options.instruction is None else "--instruction"
    told = instruction_from(options.instruction, options.instruction_image, option)
    if told is not None and not (options.parts or options.queries or options.tasks):
        raise UserError(f"{option}: there is no query to tell it with; give --rgb or --nir FILE, --queries or --task")
    return told


def named_queries(options: SearchOptions) -> tuple[Query, ...]:
    """Return the queries of a file, or the one of parts, or none, with what the model is told. Raises UserError.

    A query of a file that names an instruction keeps its own.
    """
    told = named_instruction(options)
    if options.queries:
        found = read_queries(options.queries)
    else:
        found = (query_from_parts(options.parts, "query"),) if options.parts else ()
    return tuple(query if query.instruction is not None else instructed(query, told) for query in found)


def is_manifest(place: str | os.PathLike[str]) -> bool:
    """Return whether a gallery is given by a manifest (.csv, .jsonl) rather than by a folder."""
    return Path(place).suffix.lower() in SUFFIXES and os.path.isfile(place)


def require_gallery(place: str | os.PathLike[str]) -> None:
    """Raise UserError when there is no such folder."""
    if not os.path.isdir(place):
        raise UserError(f"no such gallery folder: {os.fspath(place)}; give a folder of images or a manifest")
