"""What infer.py does: load a trained model, encode queries and gallery, rank, write picture, JSON, page and
features.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.loading.readers import open_source
from datasets.modalities import MODALITIES
from datasets.structures import Source
from solver.calibration import Calibration
from solver.commands.opening import ModelChoice, Takes, instructions_taken
from solver.gallery.index import open_index
from solver.reports.features_file import check_export, export_path
from solver.reports.search_files import (
    SearchResult,
    Threshold,
    export_features,
    exported_lines,
    printed_lines,
    write_files,
)
from solver.run_directory import RETRIEVAL_EXTENSIONS, RETRIEVAL_FILE, check_no_artefact
from solver.search.arguments import SearchOptions
from solver.search.gallery import Gallery, own_gallery
from solver.search.named import named_instruction, named_queries
from solver.search.queries import (
    Query,
    check_encodable,
    find_lists,
    instructed,
)
from solver.search.ranked import search
from solver.search.searched import IndexedGallery, SearchedGallery, index_place
from solver.search.session import SearchSession
from solver.search.thresholds import relevant_images
from utils.errors import UserError
from utils.files import check_folder, files_together, real_path
from utils.log import configure_logging

logger = logging.getLogger(__name__)

REPLACED_SUFFIXES = frozenset({".png", ".json", ".html", ".htm", ".jpg", ".jpeg"})


def run_search(options: SearchOptions) -> str:
    """Search, write the files and return what is to be printed. Raises UserError for wrong input, before any file is
    written.
    """
    configure_logging()
    choice = ModelChoice.of(options)
    if options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: must be at least 1")
    if not (options.parts or options.queries or options.tasks or options.export):
        raise UserError("nothing to do: give a query, or --export FILE.npz for the features of the gallery alone")
    if options.index and not options.tasks:
        raise UserError("--index needs --task NAME, the list that it counts in")
    if options.threshold is not None and (not options.tasks or options.gallery or options.gallery_index):
        raise UserError(
            f"--threshold {options.threshold:g}: what resembles a query's annotation is known for --task NAME in the "
            "test gallery of the data set only; leave --threshold out, or search there"
        )
    # Whatever is wrong with files that the user names is said before the weights are read.
    told, named = named_instruction(options), named_queries(options)
    for instruction in (told, *(query.instruction for query in named)):
        if instruction is not None and MODALITIES[instruction.modality].is_image:
            open_source(instruction)
    folder = own_gallery(options.gallery) if options.gallery else None
    index = open_index(options.gallery_index) if options.gallery_index else None
    _check_told(options, instructions_taken(choice), named, told)
    session = SearchSession.open(choice, options.gallery_cache)
    output = output_path(options.output, session.home)
    drawn = bool(options.output or not options.export)
    written = [output.with_suffix(extension) for extension in RETRIEVAL_EXTENSIONS] if drawn else []
    _check_places(options, written, session.cache)
    asked = _asked(options, session, named, told, folder if index is None else index_place(index))
    if index is not None:
        found = session.indexed(
            index,
            options.gallery_modality,
            asked.queries,
            told=options.gallery_instruction,
            nprobe=options.nprobe,
        )
        asked = dataclasses.replace(asked, index=found)
    exported = [export_path(options.export)] if options.export else []
    _check_inputs([*written, *exported], options.queries, asked)
    asked = dataclasses.replace(asked, calibration=_calibration(options, session, asked) if drawn else None)
    result = _search(session, asked, options, options.top_k if drawn else 0)
    if drawn:
        with files_together(output.parent, output.with_suffix(".json").name) as together:
            write_files(together / output.name, result)
    if options.export:
        written.append(export_features(options.export, result))
    lines = printed_lines(result) if drawn else exported_lines(result)
    return "\n".join([*lines, "written: " + ", ".join(map(str, written))])


def _calibration(options: SearchOptions, session: SearchSession, asked: _Asked) -> Calibration | None:
    """Return the thresholds to answer by. Raises UserError for a rate that queries have no threshold at."""
    if options.error_rate is None:
        return session.calibration
    searched = (asked.gallery if asked.index is None else asked.index).modalities
    return session.calibration_at(options.error_rate, asked.queries, searched)


def _check_told(options: SearchOptions, takes: Takes, named: Sequence[Query], told: Source | None) -> None:
    """Raise UserError for an instruction that the model does not take, with queries or with the gallery."""
    whose = [query.name for query in named if query.instruction is not None] or ["--instruction"] * (told is not None)
    if whose and not takes.queries:
        raise UserError(
            f"{whose[0]}: this model follows no instructions; leave --instruction and --instruction-image out, or use "
            "a model of a family that does"
        )
    asked = options.gallery_instruction
    if asked not in ("", "none") and not takes.gallery:
        reason = "encodes gallery images alone" if takes.queries else "follows no instructions"
        raise UserError(
            f"--gallery-instruction {asked}: this model {reason}; leave it out, or use a model of a family that takes "
            "it"
        )


def _check_places(options: SearchOptions, written: Sequence[Path], cache: Path) -> None:
    """Refuse, before any work, places that cannot be written to or hold files of a run. written: picture, page, JSON;
    empty = they are not asked for. Raises UserError.
    """
    check_folder(cache, "--gallery-cache")
    if options.export:
        check_export(options.export)
    for path in written:
        check_folder(path.parent, "--output")
        check_no_artefact(path, "--output")
    if options.gallery and written and real_path(written[0]).is_relative_to(real_path(options.gallery)):
        logger.warning("%s lies inside the gallery folder: the next search will find it among the images", written[0])


def _check_inputs(written: Sequence[Path], listed: str, asked: _Asked) -> None:
    """Raise UserError when a file that would be written is one that this search reads. listed: the file of queries."""
    sources = [("query", source) for query in asked.queries for source in query.sources]
    sources += [("instruction", query.instruction) for query in asked.queries if query.instruction is not None]
    sources += [("gallery", source) for source in asked.gallery.sources]
    read = {source.value: what for what, source in sources if MODALITIES[source.modality].is_image} | {
        listed: "queries"
    }
    if asked.index is not None:
        read |= dict.fromkeys(asked.index.copies([str(path) for path in written]), "gallery")
    for path in filter(os.path.exists, written):
        what = next((what for name, what in read.items() if name and _same_file(name, path)), "")
        if what:
            raise UserError(f"{path} would be replaced, and this search reads it ({what}); choose another name")


def _same_file(name: str, path: Path) -> bool:
    try:
        return path.samefile(name)
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What is searched for, and where."""

    queries: tuple[Query, ...]
    gallery: Gallery
    relevant: Mapping[str, NDArray[np.bool_]] | None = None
    """See solver.search.ranked.search."""
    foreign: bool = False
    """The gallery is the user's own."""
    index: IndexedGallery | None = None
    """An index, which is searched instead of `gallery`."""
    calibration: Calibration | None = None
    """Thresholds to answer by."""


def _asked(
    options: SearchOptions,
    session: SearchSession,
    named: tuple[Query, ...],
    told: Source | None,
    folder: Gallery | None,
) -> _Asked:
    """Return what is searched for and where, with what the model is told; see `_found`. told: with entries of a
    list, None = what the list says.
    """
    asked = _found(options, session, named, folder)
    queries = asked.queries if named else tuple(instructed(query, told) for query in asked.queries)
    choice = options.gallery_instruction
    if not session.abilities.told.gallery or (not choice and not options.tasks):
        choice = "none"
    gallery = asked.gallery.instructed(choice, queries) if choice else asked.gallery
    return dataclasses.replace(asked, queries=queries, gallery=gallery, foreign=folder is not None)


def _found(options: SearchOptions, session: SearchSession, named: tuple[Query, ...], folder: Gallery | None) -> _Asked:
    """Return queries and gallery; the data set's lists are read only when one of both comes from them."""
    check_encodable(named, session.abilities.modalities)
    if not options.tasks:
        return _Asked(queries=named, gallery=session.images(folder, options.gallery_modality, named))
    split = session.test_split
    lists = find_lists(split, options.tasks)
    entries = options.index or (0,)
    queries = tuple(query for listed in lists for query in session.listed(listed.name, entries))
    gallery = session.images(folder, options.gallery_modality, queries, lists[0])
    relevant = None
    if options.threshold is not None:
        if not gallery.items:
            raise UserError(
                f"--threshold {options.threshold:g}: {gallery.note}; these have no annotations of a gallery, leave "
                "--threshold or --gallery-modality out"
            )
        encoder = session.trained.config.eval.relevance
        right = [
            row
            for listed in lists
            for row in relevant_images(split, listed, entries, threshold=options.threshold, encoder=encoder)
        ]
        relevant = {query.name: row[list(gallery.items)] for query, row in zip(queries, right, strict=True)}
    return _Asked(queries=queries, gallery=gallery, relevant=relevant)


def output_path(name: str, home: Path) -> Path:
    """Return the path of the picture; page and JSON lie beside it. A folder or nothing gets the default name.

    A suffix of one of the three files is replaced by .png, anything else behind a dot is part of the name.
    """
    path = Path(name) if name else home / RETRIEVAL_FILE
    if path.is_dir() or name.endswith(("/", "\\")):
        return path / RETRIEVAL_FILE
    return path.with_suffix(".png") if path.suffix.lower() in REPLACED_SUFFIXES else path.with_name(f"{path.name}.png")


def _search(session: SearchSession, asked: _Asked, options: SearchOptions, top_k: int) -> SearchResult:
    """Encode queries and gallery and rank them. top_k: 0 = only the features are asked for."""
    tau = options.threshold
    said = session.text_notes(asked.queries)
    encoded = session.encode(asked.queries)
    found: SearchedGallery = session.encode_gallery(asked.gallery) if asked.index is None else asked.index
    ranked = search(encoded, found, top_k, asked.relevant, asked.calibration) if top_k else []
    result = session.result(
        encoded,
        found,
        ranked,
        top_k,
        said=said,
        calibration=asked.calibration,
        foreign=asked.foreign,
        threshold=None if tau is None else Threshold(tau=tau, encoder=session.trained.config.eval.relevance),
    )
    for note in result.notes():
        logger.warning("%s", note)
    return result
