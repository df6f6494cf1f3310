"""A trained model held in memory, and everything that is asked of it: queries of any mix, galleries, answers.

infer.py, the web page and the Python API stand on this. A session is not for two threads at once: whoever serves
several asks one after the other.

Shapes: Q queries, D embed_dim.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.vocabulary import COMBINATIONS, Combination, Modality, combination_name
from datasets.build import build_source_reader
from datasets.loading.readers import SourceReader
from datasets.loading.text_notes import text_notes
from datasets.modalities import MODALITIES
from datasets.structures import Benchmark, EvalSplit, QueryList, Source, distinct_sources
from model.interface import Fuses
from solver.calibration import Calibration, at_rate, read_calibration
from solver.commands.evaluate import TEST_SPLIT, load_test_benchmark
from solver.commands.opening import ModelChoice, Opened, Takes, open_trained
from solver.gallery.commands import check_told
from solver.gallery.encoding import features_depend_on, instruction_record
from solver.gallery.index import GalleryIndex, open_index
from solver.gallery.place import is_index
from solver.gallery.writing import check_same
from solver.reports.grid import parts_of
from solver.reports.search_files import SearchResult, Threshold
from solver.run_directory import GALLERY_CACHE_FOLDER
from solver.runs import TrainedModel, model_identity
from solver.search.arguments import GALLERY_INSTRUCTIONS
from solver.search.gallery import Gallery, own_gallery, split_gallery
from solver.search.gallery_cache import GalleryEncoder
from solver.search.pictures import Pictures, Texts, listed_items, picture_source, text_of
from solver.search.queries import (
    PART_KEYS,
    Query,
    check_encodable,
    check_mix,
    choose_modality,
    find_list,
    instructed,
    listed_query,
)
from solver.search.ranked import EncodedQueries, RankedQuery, encode_queries, search
from solver.search.searched import IndexedGallery, SearchedGallery
from utils.errors import UserError, nearest
from utils.progress import Watcher, watched
from utils.retrieval.options import Similarity


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """What a model takes, and how its features are compared."""

    modalities: tuple[Modality, ...]
    """What it encodes."""
    combinations: tuple[Combination, ...]
    """Everything that a query may consist of, from one part to all; RGB is in none but its own."""
    told: Takes
    """Whether queries and galleries may have instructions."""
    similarity: Similarity
    """cosine, or euclidean: minus the squared distance."""
    embed_dim: int

    @classmethod
    def of(cls, trained: TrainedModel) -> Abilities:
        """Return those of a model."""
        known = trained.config.model.modalities
        mixes = [mix for mix in COMBINATIONS if len(mix) > 1 and isinstance(trained.model, Fuses)]
        return cls(
            modalities=known,
            combinations=(*((one,) for one in known), *(mix for mix in mixes if set(mix) <= set(known))),
            told=Takes.of(trained.config),
            similarity=trained.model.similarity,
            embed_dim=trained.model.embed_dim,
        )

    def check(self, queries: Sequence[Query]) -> None:
        """Raise UserError for queries of what the model does not encode, or does not mix."""
        check_encodable(queries, self.modalities)
        for query in queries:
            if not any(set(query.combination) == set(mix) for mix in self.combinations):
                raise UserError(
                    f"{query.name}: this model has no fusion, so that it takes one of "
                    f"{', '.join(map(combination_name, self.combinations))} and not {query.task}; ask for them one "
                    "after the other, or use a model of a family that mixes"
                )


class SearchSession:
    """An opened model; see the module."""

    def __init__(self, opened: Opened, *, home: Path | None = None, cache: str | Path = "", name: str = "") -> None:
        """home: folder of the run, None = that of the checkpoint. cache: folder of encoded galleries, empty =
        gallery_cache in `home`. name: of the model in errors, empty = its checkpoint.
        """
        self.opened = opened
        self.trained = opened.trained
        self.abilities = Abilities.of(opened.trained)
        self.home = opened.trained.checkpoint.parent if home is None else home
        self.cache = Path(cache) if cache else self.home / GALLERY_CACHE_FOLDER
        self.name = name or str(opened.trained.checkpoint)

    @classmethod
    def open(cls, choice: ModelChoice, cache: str | Path = "") -> SearchSession:
        """Load a model. Raises UserError."""
        home = Path(choice.run) if choice.run else None
        return cls(open_trained(choice), home=home, cache=cache, name=choice.run)

    @functools.cached_property
    def reader(self) -> SourceReader:
        """What images and texts are read with. Raises UserError for a tokenizer that does not fit."""
        return build_source_reader(self.trained.config.data, self.trained.config.model)

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """The thresholds beside the checkpoint, None without any. Raises UserError for those of another model."""
        return read_calibration(self.trained)

    @functools.cached_property
    def features_depend(self) -> dict[str, Any]:
        """What features depend on besides the files: an index of anything else is refused."""
        return features_depend_on(model_identity(self.trained), self.opened.spec)

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """The lists of the test set, with those that the model cannot answer. Raises UserError where there are none."""
        return load_test_benchmark(self.trained.config, self.trained, whole=True)

    @property
    def test_split(self) -> EvalSplit:
        """The test set."""
        return self.benchmark.splits[TEST_SPLIT]

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the query lists of the test set that the model can answer."""
        known = [set(combination) for combination in self.abilities.combinations]
        return tuple(entry.name for entry in self.test_split.query_lists if set(entry.combination) in known)

    def listed(self, task: str, entries: Sequence[int]) -> tuple[Query, ...]:
        """Return entries, from 0, of a query list of the test set. Raises UserError with what there is."""
        found = find_list(self.test_split, task)
        told = self.abilities.told.queries
        queries = tuple(listed_query(self.test_split, found, entry, told) for entry in entries)
        check_encodable(queries, self.abilities.modalities)
        return queries

    def queries(
        self,
        parts: Mapping[str, Pictures | Texts],
        instruction: Texts | None = None,
        instruction_image: Pictures | None = None,
    ) -> tuple[Query, ...]:
        """Return the queries of which `parts` holds the parts: key of PART_KEYS -> one item, or a list of one for each.

        instruction, instruction_image: what the model is told with each query; a single item is told with all. Raises
        UserError for lists of different lengths, for what the model does not take, and as `picture_source` does.
        """
        unknown = [key for key in parts if key not in PART_KEYS]
        if unknown:
            raise UserError(f"unknown part of a query {unknown[0]!r}: {nearest(unknown[0], PART_KEYS)}")
        check_mix([PART_KEYS[key] for key in parts], "query")
        columns = {key: listed_items(items) for key, items in parts.items()}
        lengths = {key: len(items) for key, items in columns.items()}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{count} of {key}" for key, count in lengths.items())
            raise UserError(f"a query has one item of each part, and here are {given}; give lists of one length")
        count = max(lengths.values())
        told = self._told(instruction, instruction_image, count)
        found = []
        for row in range(count):
            sources = {PART_KEYS[key]: _part(key, items[row], row) for key, items in columns.items()}
            ordered = tuple(sources[modality] for modality in Modality if modality in sources)
            found.append(instructed(Query(name=f"query {row}", sources=ordered), told[row]))
        self.abilities.check(found)
        return tuple(found)

    def _told(self, text: Texts | None, picture: Pictures | None, count: int) -> list[Source | None]:
        if text is not None and picture is not None:
            raise UserError("a query is told a text or a picture: give instruction or instruction_image, not both")
        name = "instruction" if picture is None else "instruction_image"
        given = text if picture is None else picture
        if given is None:
            return [None] * count
        if not self.abilities.told.queries:
            raise UserError(f"{name}: this model follows no instructions; leave it out, or use one that does")
        items = listed_items(given)
        if len(items) not in (1, count):
            raise UserError(f"{name}: {len(items)} for {count} queries; give one for each, or one for all")
        found = [
            Source(modality=Modality.TEXT, value=text_of(item, f"{name}[{row}]"), record=f"{name}[{row}]")
            if picture is None
            else picture_source(item, Modality.RGB, f"{name}[{row}]")
            for row, item in enumerate(items)
        ]
        return [*found] if len(found) == count else [found[0]] * count

    def text_notes(self, queries: Iterable[Query]) -> list[str]:
        """Return what is to be known of the queries' texts: cut ones and empty ones."""
        return text_notes((source for query in queries for _, source in parts_of(query)), self.reader)

    def encode(self, queries: Sequence[Query], *, skip: bool | None = None) -> EncodedQueries:
        """Encode queries. skip: leave those with an unreadable image out, None = as data.on_error says.

        Raises UserError for an unreadable image that is not skipped, and where none of the queries can be read.
        """
        # Loader processes take longer to start than a few queries to read.
        spec = dataclasses.replace(self.opened.spec, workers=0)
        if skip is not None:
            spec = dataclasses.replace(spec, skip_unreadable=skip)
        encoded = encode_queries(self.trained.model, queries, self.reader, spec, self.opened.device)
        if queries and not encoded.queries:
            raise UserError(f"no query can be read, the first: {encoded.failures[0][1]}")
        return encoded

    def gallery(
        self,
        place: str | Path | None = None,
        *,
        modality: str = "",
        told: str = "none",
        queries: Sequence[Query] = (),
        nprobe: int = 0,
        progress: Watcher | None = None,
    ) -> SearchedGallery:
        """Return a gallery that is ready to be searched, encoded where it has to be.

        place: folder, manifest or index, None = the test gallery. modality: of its images, `rgb` or `nir`, empty = see
        `choose_modality` for the queries. told: one of GALLERY_INSTRUCTIONS. nprobe: see IndexedGallery. progress:
        called while images are encoded. Raises UserError for a place that is none of these, an index of another model,
        and a gallery without a readable image.
        """
        if told not in GALLERY_INSTRUCTIONS:
            raise UserError(f"a gallery is told {', '.join(GALLERY_INSTRUCTIONS)}, and not {told!r}; give one of these")
        if place is not None and is_index(place):
            said = "" if told == "none" else told
            return self.indexed(open_index(place), modality, queries, told=said, nprobe=nprobe)
        if nprobe:
            raise UserError("nprobe: only an index has codes; leave it out")
        if told != "none" and not self.abilities.told.gallery:
            raise UserError(f"told {told!r}: this model tells gallery images nothing; leave it out")
        images = self.images(own_gallery(place) if place is not None else None, modality, queries)
        return self.encode_gallery(images.instructed(told, queries), progress)

    def images(
        self, folder: Gallery | None, asked: str, queries: Sequence[Query], listed: QueryList | None = None
    ) -> Gallery:
        """Return the images to search. folder: the user's own, None = those of the test set. asked: their modality,
        empty = see `choose_modality`. listed: where the queries are entries of a list of the test set, this list.
        """
        known = self.abilities.modalities
        if folder is not None and listed is None:
            return folder.read_as(choose_modality(asked, queries, known))
        if folder is None and (listed is not None or not queries):
            return split_gallery(self.benchmark, self.test_split, Modality(asked) if asked else None, listed)
        modality = choose_modality(asked, queries, known, distinct_sources(self.test_split))
        return folder.read_as(modality) if folder else split_gallery(self.benchmark, self.test_split, modality)

    def encode_gallery(self, gallery: Gallery, progress: Watcher | None = None) -> SearchedGallery:
        """Encode images, or find them encoded in `cache`. Raises UserError when none is readable."""
        encoder = GalleryEncoder(
            self.trained.model,
            self.reader,
            self.opened.spec,
            self.opened.device,
            identity=model_identity(self.trained),
            cache=self.cache,
            limits=(self.trained.config.data.cache_gb, self.trained.config.data.cache_days),
        )
        with contextlib.nullcontext() if progress is None else watched(progress):
            return encoder.encode(gallery)

    def indexed(
        self, index: GalleryIndex, asked: str, queries: Sequence[Query], *, told: str = "", nprobe: int = 0
    ) -> IndexedGallery:
        """Return an index as it is searched for these queries. told: what its images must have been told, empty =
        anything. Raises UserError for an index of another model, of other images, or whose images were told something
        else.
        """
        check_same(index.state, self.features_depend, index.folder, self.name)
        if told:
            same = queries[0].instruction if told == "same" and queries else None
            check_told(index.state, instruction_record(same, told == "crop"), "", index.folder)
        return IndexedGallery(index, choose_modality(asked, queries, self.abilities.modalities), nprobe)

    def rates(self, combination: Combination, searched: Iterable[Modality]) -> tuple[float, ...]:
        """Return the error rates, ascending, that queries of these modalities have thresholds at in a gallery of those;
        empty = they are not calibrated.
        """
        return self.calibration.rates(combination, tuple(searched)) if self.calibration is not None else ()

    def search(
        self, encoded: EncodedQueries, gallery: SearchedGallery, top_k: int, *, error_rate: float | None = None
    ) -> list[RankedQuery]:
        """Rank a gallery for every query; see solver.search.ranked.search. error_rate: the false alarm rate that
        answers are given by, None = for each query the lowest that there is. Raises UserError where a query has no
        threshold at it.
        """
        calibration = self.calibration
        if error_rate is not None:
            calibration = self.calibration_at(error_rate, encoded.queries, gallery.modalities)
        return search(encoded, gallery, top_k, calibration=calibration)

    def result(
        self,
        encoded: EncodedQueries,
        gallery: SearchedGallery,
        ranked: Sequence[RankedQuery],
        top_k: int,
        *,
        calibration: Calibration | None,
        said: Sequence[str] = (),
        foreign: bool = False,
        threshold: Threshold | None = None,
    ) -> SearchResult:
        """Return everything that reports of a search are made of. top_k: as it was asked for. calibration: thresholds
        that answers were given by. said: see `text_notes`. foreign: the gallery is the user's own.
        """
        return SearchResult(
            trained=self.trained,
            encoded=encoded,
            gallery=gallery,
            ranked=tuple(ranked),
            requested=top_k,
            precision=self.opened.spec.config.precision,
            device=str(self.opened.device),
            said=tuple(said),
            calibration=calibration,
            foreign=foreign,
            threshold=threshold,
        )

    def calibration_at(self, rate: float, queries: Sequence[Query], searched: Iterable[Modality]) -> Calibration:
        """Return the thresholds that answer by a false alarm rate. Raises UserError where queries have none at it."""
        return at_rate(self.calibration, rate, [query.combination for query in queries], tuple(searched))


def _part(key: str, item: Any, row: int) -> Source:
    modality, name = PART_KEYS[key], f"{key}[{row}]"
    if MODALITIES[modality].is_image:
        return picture_source(item, modality, name)
    return Source(modality=modality, value=text_of(item, name), record=name)


def averaged(encoded: EncodedQueries, groups: Sequence[Sequence[int]]) -> EncodedQueries:
    """Return one query for each group of queries: several pictures of one person, each a query by itself.

    Its feature is the mean of theirs, each of length 1 before, and of length 1 again; where distances are compared, the
    plain mean. groups: rows of the queries, those of a group of one combination. Raises UserError for a group of none
    or of several combinations.
    """
    found, rows = [], []
    for group in groups:
        members = [encoded.queries[row] for row in group]
        kinds = {query.combination for query in members}
        if len(kinds) != 1:
            what = f"of {' and '.join(sorted(map(combination_name, kinds)))}" if kinds else "of none"
            raise UserError(f"a mean {what}: give queries of one combination, at least one")
        columns = slice(*encoded.comparison.columns(members[0].combination, encoded.features.shape[1]))
        rows.append(mean_feature(encoded.features[list(group)], columns, encoded.comparison.similarity))
        persons = {query.person_id for query in members}
        sources = dict.fromkeys(source for query in members for source in query.sources)
        also = tuple(source for source in sources if source not in members[0].sources)
        person = persons.pop() if len(persons) == 1 else None
        found.append(dataclasses.replace(members[0], also=also, person_id=person))
    features = torch.stack(rows) if rows else encoded.features[:0]
    return dataclasses.replace(encoded, queries=tuple(found), features=features)


def mean_feature(features: torch.Tensor, columns: slice, similarity: Similarity) -> torch.Tensor:
    """Return the mean (D,) of features (n, D) of one person; see `averaged`. columns: the compared ones."""
    values = features.double()
    if similarity != "cosine":
        return values.mean(0).float()
    lengths = values[:, columns].norm(dim=1, keepdim=True)
    mean = (values / lengths.clamp_min(torch.finfo(torch.float64).tiny)).mean(0)
    return (mean / mean[columns].norm().clamp_min(torch.finfo(torch.float64).tiny)).float()
