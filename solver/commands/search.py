"""What infer.py does: load a trained model, encode queries and gallery, rank, write picture, JSON, page and
features.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.vocabulary import Modality
from datasets.build import build_source_reader
from datasets.loading.readers import open_source
from datasets.loading.text_notes import text_notes
from datasets.modalities import MODALITIES
from datasets.structures import Source, distinct_sources
from solver.calibration import Calibration, read_calibration
from solver.commands.evaluate import TEST_SPLIT, load_test_benchmark
from solver.commands.opening import ModelChoice, Opened, Takes, instructions_taken, open_trained
from solver.gallery.commands import check_told
from solver.gallery.encoding import features_depend_on, instruction_record
from solver.gallery.index import GalleryIndex, open_index
from solver.gallery.writing import check_same
from solver.reports.features_file import check_export, export_path
from solver.reports.grid import parts_of
from solver.reports.search_files import (
    SearchResult,
    Threshold,
    export_features,
    exported_lines,
    printed_lines,
    write_files,
)
from solver.run_directory import GALLERY_CACHE_FOLDER, RETRIEVAL_EXTENSIONS, RETRIEVAL_FILE, check_no_artefact
from solver.run_names import find_run
from solver.runs import TrainedModel, model_identity
from solver.search.arguments import SearchOptions
from solver.search.gallery import Gallery, own_gallery, split_gallery
from solver.search.gallery_cache import GalleryEncoder
from solver.search.named import named_instruction, named_queries
from solver.search.queries import (
    VISIBLE_INFRARED,
    Query,
    check_encodable,
    find_list,
    instructed,
    listed_query,
    searched_modality,
)
from solver.search.ranked import encode_queries, search
from solver.search.searched import IndexedGallery, SearchedGallery, index_place
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
    run, checkpoint = find_run(options.run, options.checkpoint)
    options = dataclasses.replace(options, run=run, checkpoint=checkpoint)
    if options.top_k < 1:
        raise UserError(f"--top-k {options.top_k}: must be at least 1")
    if not (options.parts or options.queries or options.task or options.export):
        raise UserError("nothing to do: give a query, or --export FILE.npz for the features of the gallery alone")
    if options.index and not options.task:
        raise UserError("--index needs --task NAME, the list that it counts in")
    if options.threshold is not None and (not options.task or options.gallery or options.gallery_index):
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
    choice = ModelChoice(
        run=options.run,
        config=options.config,
        checkpoint=options.checkpoint,
        device=options.device,
        overrides=options.overrides,
    )
    takes = instructions_taken(choice)
    _check_told(options, takes, named, told)
    opened = open_trained(choice)
    trained = opened.trained
    home = Path(options.run) if options.run else trained.checkpoint.parent
    output = output_path(options.output, home)
    drawn = bool(options.output or not options.export)
    written = [output.with_suffix(extension) for extension in RETRIEVAL_EXTENSIONS] if drawn else []
    cache = Path(options.gallery_cache) if options.gallery_cache else home / GALLERY_CACHE_FOLDER
    _check_places(options, written, cache)
    asked = _asked(options, trained, takes, named, told, folder if index is None else index_place(index))
    if index is not None:
        asked = dataclasses.replace(asked, index=_searched(index, options, asked, opened))
    exported = [export_path(options.export)] if options.export else []
    _check_inputs([*written, *exported], options.queries, asked)
    asked = dataclasses.replace(asked, calibration=read_calibration(trained) if drawn else None)
    threshold = _threshold(options, trained)
    result = _search(opened, asked, options.top_k if drawn else 0, cache, threshold)
    if drawn:
        with files_together(output.parent, output.with_suffix(".json").name) as together:
            write_files(together / output.name, result)
    if options.export:
        written.append(export_features(options.export, result))
    lines = printed_lines(result) if drawn else exported_lines(result)
    return "\n".join([*lines, "written: " + ", ".join(map(str, written))])


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


def _searched(index: GalleryIndex, options: SearchOptions, asked: _Asked, opened: Opened) -> IndexedGallery:
    """Return an index as it is searched for these queries. Raises UserError for one of another model, of other images,
    or whose images were told something else than is asked for.
    """
    trained = opened.trained
    what = options.run or str(trained.checkpoint)
    check_same(index.state, features_depend_on(model_identity(trained), opened.spec), index.folder, what)
    choice = options.gallery_instruction
    if choice:
        same = asked.queries[0].instruction if choice == "same" else None
        check_told(index.state, instruction_record(same, choice == "crop"), "", index.folder)
    modality = choose_modality(options.gallery_modality, asked.queries, trained.config.model.modalities)
    return IndexedGallery(index, modality, options.nprobe)


def _threshold(options: SearchOptions, trained: TrainedModel) -> Threshold | None:
    tau = options.threshold
    return None if tau is None else Threshold(tau=tau, encoder=trained.config.eval.relevance)


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
    trained: TrainedModel,
    takes: Takes,
    named: tuple[Query, ...],
    told: Source | None,
    folder: Gallery | None,
) -> _Asked:
    """Return what is searched for and where, with what the model is told; see `_found`. told: with entries of a
    list, None = what the list says.
    """
    asked = _found(options, trained, takes, named, folder)
    queries = asked.queries if named else tuple(instructed(query, told) for query in asked.queries)
    choice = options.gallery_instruction
    if not takes.gallery or (not choice and not options.task):
        choice = "none"
    gallery = asked.gallery.instructed(choice, queries) if choice else asked.gallery
    return dataclasses.replace(asked, queries=queries, gallery=gallery, foreign=folder is not None)


def _found(
    options: SearchOptions, trained: TrainedModel, takes: Takes, named: tuple[Query, ...], folder: Gallery | None
) -> _Asked:
    """Return queries and gallery; the data set's lists are read only when one of both comes from them."""
    config = trained.config
    check_encodable(named, config.model.modalities)
    if folder is not None and not options.task:
        modality = choose_modality(options.gallery_modality, named, config.model.modalities)
        return _Asked(queries=named, gallery=folder.read_as(modality))
    benchmark = load_test_benchmark(config, trained, whole=True)
    split = benchmark.splits[TEST_SPLIT]
    listed = find_list(split, options.task) if options.task else None
    entries = options.index or (0,)
    if listed is not None:
        queries = tuple(listed_query(split, listed, entry, takes.queries) for entry in entries)
    else:
        queries = named
    check_encodable(queries, config.model.modalities)
    if folder is None and (listed is not None or not queries):
        chosen = Modality(options.gallery_modality) if options.gallery_modality else None
        gallery = split_gallery(benchmark, split, chosen, listed)
    else:
        modality = choose_modality(options.gallery_modality, queries, config.model.modalities, distinct_sources(split))
        gallery = folder.read_as(modality) if folder is not None else split_gallery(benchmark, split, modality)
    relevant = None
    if options.threshold is not None and listed is not None:
        if not gallery.items:
            raise UserError(
                f"--threshold {options.threshold:g}: {gallery.note}; these have no annotations of a gallery, leave "
                "--threshold or --gallery-modality out"
            )
        right = relevant_images(split, listed, entries, threshold=options.threshold, encoder=config.eval.relevance)
        relevant = {query.name: row[list(gallery.items)] for query, row in zip(queries, right, strict=True)}
    return _Asked(queries=queries, gallery=gallery, relevant=relevant)


def choose_modality(
    asked: str, queries: Sequence[Query], encoded: Collection[Modality], present: Collection[Modality] = ()
) -> Modality:
    """Return the modality of the gallery's images: what is asked for; where there are visible and infrared images only,
    the other one than the query's; else, and without a query, RGB.

    encoded: modalities that the model encodes. present: those of the data set's test images, empty = unknown. Raises
    UserError when the queries search different ones.
    """
    if asked:
        return Modality(asked)
    if not queries:
        return Modality.RGB
    return searched_modality(queries) if VISIBLE_INFRARED in (set(encoded), set(present)) else Modality.RGB


def output_path(name: str, home: Path) -> Path:
    """Return the path of the picture; page and JSON lie beside it. A folder or nothing gets the default name.

    A suffix of one of the three files is replaced by .png, anything else behind a dot is part of the name.
    """
    path = Path(name) if name else home / RETRIEVAL_FILE
    if path.is_dir() or name.endswith(("/", "\\")):
        return path / RETRIEVAL_FILE
    return path.with_suffix(".png") if path.suffix.lower() in REPLACED_SUFFIXES else path.with_name(f"{path.name}.png")


def _search(opened: Opened, asked: _Asked, top_k: int, cache: Path, threshold: Threshold | None) -> SearchResult:
    """Encode queries and gallery and rank them. top_k: 0 = only the features are asked for."""
    trained, device, spec = opened.trained, opened.device, opened.spec
    reader = build_source_reader(trained.config.data, trained.config.model)
    queries = asked.queries
    said = text_notes((source for query in queries for _, source in parts_of(query)), reader)
    # Loader processes take longer to start than a few queries to read.
    encoded = encode_queries(trained.model, queries, reader, dataclasses.replace(spec, workers=0), device)
    if queries and not encoded.queries:
        raise UserError(f"no query can be read, the first: {encoded.failures[0][1]}")
    found: SearchedGallery | None = asked.index
    if found is None:
        encoder = GalleryEncoder(
            trained.model,
            reader,
            spec,
            device,
            identity=model_identity(trained),
            cache=cache,
            limits=(trained.config.data.cache_gb, trained.config.data.cache_days),
        )
        found = encoder.encode(asked.gallery)
    result = SearchResult(
        trained=trained,
        encoded=encoded,
        gallery=found,
        ranked=tuple(search(encoded, found, top_k, asked.relevant, asked.calibration)) if top_k else (),
        requested=top_k,
        precision=spec.config.precision,
        device=str(device),
        said=tuple(said),
        calibration=asked.calibration,
        foreign=asked.foreign,
        threshold=threshold,
    )
    for note in result.notes():
        logger.warning("%s", note)
    return result
