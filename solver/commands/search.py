"""What infer.py does: load a trained model, encode queries and gallery, rank, write picture, JSON, page and
features.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.load import experiment_to_dict
from configs.vocabulary import Modality
from datasets.build import build_source_reader
from datasets.loading.text_notes import text_notes
from datasets.modalities import MODALITIES
from datasets.structures import distinct_sources
from solver.commands.evaluate import TEST_SPLIT, load_test_benchmark
from solver.commands.opening import ModelChoice, Opened, open_trained
from solver.evaluation.result import TIE_RULE
from solver.reports.features_file import (
    check_export,
    export_path,
    exported_features,
    person_array,
    query_columns,
    write_arrays,
)
from solver.reports.grid import OWN_IMAGE, describe_query, printable, word_of, write_grid
from solver.reports.html_page import write_page
from solver.run_directory import GALLERY_CACHE_FOLDER, RETRIEVAL_EXTENSIONS, RETRIEVAL_FILE, check_no_artefact
from solver.run_names import find_run
from solver.runs import TrainedModel
from solver.search.gallery import EncodedGallery, Gallery, GalleryEncoder, own_gallery, split_gallery
from solver.search.named import named_queries
from solver.search.queries import (
    VISIBLE_INFRARED,
    Query,
    check_encodable,
    find_list,
    listed_query,
    searched_modality,
)
from solver.search.ranked import EncodedQueries, RankedQuery, encode_queries, search
from utils.errors import UserError
from utils.files import check_folder, files_together, fingerprint, real_path, write_json
from utils.log import configure_logging, library_versions

logger = logging.getLogger(__name__)

REPLACED_SUFFIXES = frozenset({".png", ".json", ".html", ".htm", ".jpg", ".jpeg"})
SHOWN_QUERIES, SHOWN_RESULTS = 50, 50
"""Bounds of the picture and the page; the JSON file lists everything."""
PRINTED_RESULTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """The command line of infer.py. parts: key -> file or text of one query. task, index: an entry of the test lists
    (None = the first).

    gallery: a folder or a manifest, empty = the test gallery of the run's data set. gallery_modality: rgb or nir, empty
    = see `choose_modality`. gallery_cache: folder of encoded galleries, empty = gallery_cache/ beside the checkpoint.
    output: name of the picture, empty = retrieval.png beside it. export: file of the features, empty = none; without an
    output nothing else is written then, and without a query they are those of the gallery.
    """

    run: str = ""
    config: str = ""
    checkpoint: str = ""
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    queries: str = ""
    task: str = ""
    index: int | None = None
    gallery: str = ""
    gallery_modality: str = ""
    gallery_cache: str = ""
    top_k: int = 10
    output: str = ""
    export: str = ""
    device: str = "auto"
    overrides: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Everything that the written files are made of."""

    trained: TrainedModel
    encoded: EncodedQueries
    gallery: EncodedGallery
    ranked: tuple[RankedQuery, ...]
    requested: int
    precision: str
    device: str
    said: tuple[str, ...] = ()
    """Of the queries' texts."""

    @property
    def listed(self) -> int:
        """Results of each query."""
        return min(self.requested, len(self.gallery.positions))

    def notes(self) -> tuple[str, ...]:
        """Return what a reader must know: a clamped top-k, skipped images and queries, how the checkpoint was
        chosen.
        """
        found = [*self.trained.notes, *self.said, *([self.gallery.gallery.note] if self.gallery.gallery.note else [])]
        if self.listed < self.requested:
            found.append(f"top-k {self.requested} is larger than the gallery: all {self.listed} images are listed")
        if self.gallery.failures:
            found.append(f"{len(self.gallery.failures)} unreadable gallery images were skipped")
        if self.encoded.failures:
            found.append(f"{len(self.encoded.failures)} queries with an unreadable image were skipped")
        itself = sum(row.own_images > 0 for row in self.ranked)
        if itself:
            found.append(
                f"{itself} of {len(self.ranked)} queries are in the gallery themselves, as the same file or a byte "
                f"copy: marked {OWN_IMAGE!r}, and no match"
            )
        if self.trained.selected_on == "test":
            found.append("selected on test: the checkpoint was chosen by the test split")
        return tuple(found)


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
    if options.index is not None and not options.task:
        raise UserError("--index needs --task NAME, the list that it counts in")
    # Whatever is wrong with files that the user names is said before the weights are read.
    named = named_queries(options.parts, options.queries)
    folder = own_gallery(options.gallery) if options.gallery else None
    opened = open_trained(
        ModelChoice(
            run=options.run,
            config=options.config,
            checkpoint=options.checkpoint,
            device=options.device,
            overrides=options.overrides,
        )
    )
    trained = opened.trained
    home = Path(options.run) if options.run else trained.checkpoint.parent
    output = output_path(options.output, home)
    drawn = bool(options.output or not options.export)
    written = [output.with_suffix(extension) for extension in RETRIEVAL_EXTENSIONS] if drawn else []
    cache = Path(options.gallery_cache) if options.gallery_cache else home / GALLERY_CACHE_FOLDER
    _check_places(options, written, cache)
    queries, gallery = _queries_and_gallery(options, trained, named, folder)
    exported = [export_path(options.export)] if options.export else []
    _check_inputs([*written, *exported], options.queries, queries, gallery)
    result = _search(opened, queries, gallery, options.top_k if drawn else 0, cache)
    if drawn:
        with files_together(output.parent, output.with_suffix(".json").name) as together:
            _write_files(together / output.name, result)
    if options.export:
        written.append(export_features(options.export, result))
    lines = _printed(result) if drawn else _exported(result)
    return "\n".join([*lines, "written: " + ", ".join(map(str, written))])


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


def _check_inputs(written: Sequence[Path], listed: str, queries: Sequence[Query], gallery: Gallery) -> None:
    """Raise UserError when a file that would be written is one that this search reads. listed: the file of queries."""
    sources = [("query", source) for query in queries for source in query.sources]
    sources += [("gallery", source) for source in gallery.sources]
    read = {source.value: what for what, source in sources if MODALITIES[source.modality].is_image} | {
        listed: "queries"
    }
    for path in filter(os.path.exists, written):
        what = next((what for name, what in read.items() if name and _same_file(name, path)), "")
        if what:
            raise UserError(f"{path} would be replaced, and this search reads it ({what}); choose another name")


def _same_file(name: str, path: Path) -> bool:
    try:
        return path.samefile(name)
    except OSError:
        return False


def _queries_and_gallery(
    options: SearchOptions, trained: TrainedModel, named: tuple[Query, ...], folder: Gallery | None
) -> tuple[tuple[Query, ...], Gallery]:
    """Return what is searched for and where; the data set's lists are read only when one of both comes from them."""
    config = trained.config
    check_encodable(named, config.model.modalities)
    if folder is not None and not options.task:
        return named, folder.read_as(choose_modality(options.gallery_modality, named, config.model.modalities))
    benchmark = load_test_benchmark(config, trained, whole=True)
    split = benchmark.splits[TEST_SPLIT]
    listed = find_list(split, options.task) if options.task else None
    queries = named if listed is None else (listed_query(split, listed, options.index or 0),)
    check_encodable(queries, config.model.modalities)
    if folder is None and (listed is not None or not queries):
        return queries, split_gallery(
            benchmark, split, Modality(options.gallery_modality) if options.gallery_modality else None, listed
        )
    modality = choose_modality(options.gallery_modality, queries, config.model.modalities, distinct_sources(split))
    return queries, folder.read_as(modality) if folder is not None else split_gallery(benchmark, split, modality)


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


def model_identity(trained: TrainedModel) -> dict[str, Any]:
    """Return what the features of an image depend on besides its file: weights, sizes and options of the model."""
    sizes = {key: value for key, value in experiment_to_dict(trained.config)["model"].items() if key != "init"}
    return {"family": trained.config.family.value, "weights": trained.fingerprint, "model": fingerprint([sizes])}


def _search(opened: Opened, queries: tuple[Query, ...], gallery: Gallery, top_k: int, cache: Path) -> SearchResult:
    """Encode queries and gallery and rank them. top_k: 0 = only the features are asked for."""
    trained, device, spec = opened.trained, opened.device, opened.spec
    reader = build_source_reader(trained.config.data, trained.config.model)
    said = text_notes((source for query in queries for source in query.sources), reader)
    # Loader processes take longer to start than a few queries to read.
    encoded = encode_queries(trained.model, queries, reader, dataclasses.replace(spec, workers=0), device)
    if queries and not encoded.queries:
        raise UserError(f"no query can be read, the first: {encoded.failures[0][1]}")
    encoder = GalleryEncoder(
        trained.model,
        reader,
        spec,
        device,
        identity=model_identity(trained),
        cache=cache,
        limits=(trained.config.data.cache_gb, trained.config.data.cache_days),
    )
    found = encoder.encode(gallery)
    result = SearchResult(
        trained=trained,
        encoded=encoded,
        gallery=found,
        ranked=tuple(search(encoded, found, top_k)) if top_k else (),
        requested=top_k,
        precision=spec.config.precision,
        device=str(device),
        said=tuple(said),
    )
    for note in result.notes():
        logger.warning("%s", note)
    return result


def result_document(result: SearchResult) -> dict[str, Any]:
    """Return everything that the JSON file holds, as plain values; ranks count from 1."""
    gallery, trained = result.gallery, result.trained
    return {
        "queries": [_query_document(row) for row in result.ranked],
        "top_k": {"requested": result.requested, "listed": result.listed},
        "gallery": {
            "name": gallery.gallery.name,
            "modalities": [modality.value for modality in gallery.gallery.modalities],
            "images": len(gallery.positions),
            "reused": gallery.reused,
            "unreadable": [
                {"path": gallery.gallery.sources[index].value, "reason": reason}
                for index, reason in gallery.failures.items()
            ],
        },
        "unreadable_queries": [{"name": query.name, "reason": reason} for query, reason in result.encoded.failures],
        "similarity": result.encoded.comparison.name,
        "protocol": gallery.gallery.protocol,
        "tie_rule": TIE_RULE,
        "precision": result.precision,
        "checkpoint": {
            "file": str(trained.checkpoint),
            "fingerprint": trained.fingerprint,
            "epoch": trained.epoch,
            "step": trained.step,
            "selected_on": trained.selected_on or "unknown",
        },
        "notes": list(result.notes()),
        "versions": library_versions(),
    }


def _query_document(row: RankedQuery) -> dict[str, Any]:
    return {
        "query": _described(row.query),
        "matches_in_gallery": row.matches,
        "first_match": row.first_match,
        "results": [
            {
                "rank": image.rank,
                "path": image.path,
                "similarity": round(image.similarity, 7),
                **({} if image.person_id is None else {"person_id": image.person_id}),
                **({} if image.match is None else {"match": image.match}),
                **({"own_image": True} if image.own_image else {}),
            }
            for image in row.results
        ],
    }


def _described(query: Query) -> dict[str, Any]:
    return {
        "name": query.name,
        "task": query.task,
        "person_id": query.person_id,
        **{source.modality.value: source.value for source in query.sources},
    }


def _write_files(output: Path, result: SearchResult) -> None:
    """Write picture, page and JSON; the JSON file last: when it is there, the others are too."""
    shown = [dataclasses.replace(row, results=row.results[:SHOWN_RESULTS]) for row in result.ranked[:SHOWN_QUERIES]]
    hidden = _hidden(result)
    gallery = f"{result.gallery.gallery.name} ({len(result.gallery.positions):,} images)"
    model = f"{result.trained.checkpoint} ({result.trained.fingerprint})"
    title = (
        f"Retrieval: {shown[0].query.task}" if len(result.ranked) == 1 else f"Retrieval: {len(result.ranked)} queries"
    )
    write_grid(
        output,
        shown,
        title,
        printable(" · ".join([f"gallery: {gallery}", f"weights: {result.trained.fingerprint}", *hidden])),
    )
    facts = {
        "Gallery": gallery,
        "Weights": model,
        "Protocol": f"{result.encoded.comparison.name}, {result.gallery.gallery.protocol}",
        "Ties": TIE_RULE,
        "Arithmetic": result.precision,
    }
    facts |= {f"Note {number}": note for number, note in enumerate((*result.notes(), *hidden), start=1)}
    write_page(output.with_suffix(".html"), title, facts, {"": shown})
    write_json(output.with_suffix(".json"), result_document(result))


def _hidden(result: SearchResult) -> list[str]:
    found = []
    if len(result.ranked) > SHOWN_QUERIES:
        found.append(f"the first {SHOWN_QUERIES} of {len(result.ranked)} queries are shown, all are in the JSON file")
    if result.listed > SHOWN_RESULTS:
        found.append(f"the first {SHOWN_RESULTS} of {result.listed} results are shown, all are in the JSON file")
    return found


def export_features(name: str, result: SearchResult) -> Path:
    """Write the features of queries and gallery as .npz without pickles; return the file.

    query_features (Q, D), gallery_features (N, D) float32, see `exported_features`; similarity, query_columns (Q, 2):
    how they are compared, and between which columns for each query;
    query_descriptions (Q,) JSON texts, query_person_ids (Q,) and gallery_person_ids (N,) with their flags
    query_person_known (Q,), gallery_person_known: int64 where the data set numbers its persons, else the user's names;
    gallery_paths (N,); weights: the fingerprint.
    """
    gallery, queries, comparison = result.gallery, result.encoded.queries, result.encoded.comparison
    kinds, width = [query.combination for query in queries], gallery.features.shape[1]
    arrays = {
        "query_features": exported_features(result.encoded.features, comparison, kinds),
        "query_columns": query_columns(comparison, kinds, width),
        "similarity": np.asarray(comparison.similarity),
        "query_descriptions": np.asarray(
            [json.dumps(_described(query), ensure_ascii=False) for query in queries], dtype=str
        ),
        "query_person_ids": person_array([query.person_id for query in queries]),
        "query_person_known": np.asarray([query.person_id is not None for query in queries], dtype=bool),
        "gallery_features": exported_features(gallery.features, comparison, kinds),
        "gallery_paths": np.asarray([gallery.gallery.sources[index].value for index in gallery.positions]),
        "gallery_person_ids": person_array([gallery.gallery.person(index) for index in gallery.positions]),
        "gallery_person_known": np.asarray(gallery.gallery.person_ids is not None),
        "weights": np.asarray(result.trained.fingerprint),
    }
    return write_arrays(export_path(name), arrays)


def _exported(result: SearchResult) -> list[str]:
    counts = f"{len(result.encoded.queries):,} queries and {len(result.gallery.positions):,} gallery images"
    return [f"features of {counts}", *result.notes()]


def _printed(result: SearchResult) -> list[str]:
    lines: list[str] = []
    for row in result.ranked[:SHOWN_QUERIES]:
        lines.append(describe_query(row))
        for image in row.results[:PRINTED_RESULTS]:
            lines.append(f"  {image.rank:>3}  {image.similarity:7.4f}  {word_of(image):<5}  {printable(image.path)}")
    return [*lines, *result.notes(), *_hidden(result)]
