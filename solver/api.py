"""What anyreid.py offers to programs: load, embed, search, evaluate.

Shapes: N queries, D embed_dim.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from configs.vocabulary import Combination, Modality, combination_name, parse_combination
from datasets.structures import Person, Source
from solver.calibration import Calibration, at_rate
from solver.commands.evaluate import evaluate_test, write_test
from solver.commands.opening import ModelChoice
from solver.evaluation.comparison import Comparison
from solver.gallery.commands import check_told
from solver.gallery.encoding import instruction_record
from solver.gallery.index import GalleryIndex, open_index
from solver.gallery.place import is_index
from solver.gallery.writing import check_same
from solver.reports.features_file import exported_features
from solver.run_directory import CONFIG_FILE
from solver.run_names import find_run
from solver.search.pictures import Pictures, Texts
from solver.search.queries import Query, choose_modality
from solver.search.ranked import Answer, EncodedQueries, RankedQuery, search
from solver.search.searched import IndexedGallery, SearchedGallery
from solver.search.session import SearchSession, mean_feature
from utils.errors import UserError
from utils.progress import Watcher

logger = logging.getLogger(__name__)

OFFICIAL_CONFIG = "configs.yaml"
"""What lies beside a released checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where features come from, as far as a search has to know."""

    model: dict[str, Any]
    """What they depend on besides the queries; a gallery of anything else is refused."""
    name: str
    """The model, for readers."""
    modalities: tuple[Modality, ...]
    """That it encodes."""
    combination: Combination
    """What each of the queries consists of."""
    comparison: Comparison
    calibration: Callable[[], Calibration | None]
    """Returns the thresholds of the model. Raises UserError for those of another one."""


class Features(np.ndarray):
    """(N, D) float32, a row for each query, which remember the model that they come from. Rows that are chosen from
    them remember it too; what is computed from them is a plain array.
    """

    origin: Origin | None

    def __array_finalize__(self, obj: Any) -> None:
        """Keep the origin for views."""
        self.origin = getattr(obj, "origin", None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return what was computed as it is."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain

    @classmethod
    def of(cls, values: NDArray[np.float32], origin: Origin) -> Features:
        """Return features (N, D) with their origin."""
        features = values.view(cls)
        features.origin = origin
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An image that was found."""

    rank: int
    """From 1."""
    similarity: float
    """The cosine, or what else the model compares by; see Model.similarity."""
    path: str
    person: Person | None
    """None = unknown."""
    camera: str
    """Empty = unknown."""
    answer: str
    """above or below the threshold, or not calibrated."""
    outdated: str
    """changed or missing: the file is no longer what an index encoded; empty = it is, or nobody looked."""

    @property
    def above(self) -> bool | None:
        """Whether it is taken for the person; None = not calibrated."""
        return None if self.answer == Answer.NOT_CALIBRATED.value else self.answer == Answer.ABOVE.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits(Sequence[Hit]):
    """What was found for one query, from best to worst."""

    hits: tuple[Hit, ...]
    above: int | None
    """Images of the whole gallery at or above the threshold; None = not calibrated."""
    threshold: float | None
    """Similarity from which an image is above."""
    error_rate: float | None
    """Share of searches for a person who is not there that find somebody at this threshold."""

    @property
    def nobody(self) -> bool | None:
        """Whether no image is above the threshold; None = not calibrated."""
        return None if self.above is None else self.above == 0

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, place: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[place]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @classmethod
    def of(cls, row: RankedQuery) -> Hits:
        """Return a ranked query for programs."""
        hits = tuple(
            Hit(
                rank=image.rank,
                similarity=image.similarity,
                path=image.path,
                person=image.person_id,
                camera=image.camera,
                answer=(image.answer or Answer.NOT_CALIBRATED).value,
                outdated=image.outdated,
            )
            for image in row.results
        )
        cutoff = row.cutoff
        return cls(
            hits=hits,
            above=row.above,
            threshold=None if cutoff is None else cutoff.threshold,
            error_rate=None if cutoff is None else cutoff.rate,
        )


class Model:
    """A trained model in memory. Not for two threads at once."""

    def __init__(self, session: SearchSession) -> None:
        self.session = session

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it encodes: rgb, nir, cp, sk, text."""
        return tuple(modality.value for modality in self.session.abilities.modalities)

    @property
    def combinations(self) -> tuple[str, ...]:
        """Everything that a query may consist of: RGB, NIR, ..., NIR+TEXT, ..."""
        return tuple(map(combination_name, self.session.abilities.combinations))

    @property
    def follows_instructions(self) -> bool:
        """Whether queries may have an instruction."""
        return self.session.abilities.told.queries

    @property
    def similarity(self) -> str:
        """cosine, or euclidean: minus the squared distance."""
        return self.session.abilities.similarity

    @property
    def dim(self) -> int:
        """D."""
        return self.session.abilities.embed_dim

    def error_rates(self, combination: str, gallery: Sequence[str] = ("rgb",)) -> tuple[float, ...]:
        """Return the error rates that queries have thresholds at, ascending; empty = not calibrated. gallery:
        modalities of its images. Raises UserError for names that are none.
        """
        known = [modality.value for modality in Modality]
        other = [name for name in gallery if name not in known]
        if other:
            raise UserError(f"gallery {other[0]!r}: is no modality; give a list of some of {', '.join(known)}")
        return self.session.rates(_combination(combination), [Modality(name) for name in gallery])

    def embed(
        self,
        *,
        rgb: Pictures | None = None,
        nir: Pictures | None = None,
        cp: Pictures | None = None,
        sk: Pictures | None = None,
        text: Texts | None = None,
        instruction: Texts | None = None,
        instruction_image: Pictures | None = None,
    ) -> Features:
        """Return the features (N, D) of queries, row i of the i-th item of every list that is given.

        A picture is a path, the bytes of an image file, a PIL image or an array (H, W, 3) uint8; a single item is a
        list of one. instruction, instruction_image: what the model is told, one for each query or one for all. The
        features have length 1 where cosines of whole features are compared; see `Model.similarity`. Raises UserError
        for a mix that the model does not take, lists of different lengths and pictures that cannot be read.
        """
        given = {"rgb": rgb, "nir": nir, "cp": cp, "sk": sk, "text": text}
        parts = {key: items for key, items in given.items() if items is not None}
        queries = self.session.queries(parts, instruction, instruction_image)
        for note in self.session.text_notes(queries):
            logger.warning("%s", note)
        encoded = self.session.encode(queries, skip=False)
        combination = tuple(modality for modality in Modality if modality.value in parts)
        values = exported_features(encoded.features, encoded.comparison, [combination])
        return Features.of(values, self._origin(combination))

    def as_features(self, values: ArrayLike, combination: str) -> Features:
        """Return an array (N, D) that this model made (a saved one) as features again. combination: what each query
        consists of, `NIR+TEXT`. Raises UserError for another shape, numbers that are none, and for what the model does
        not take.
        """
        try:
            array = np.ascontiguousarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"features are an array (N, {self.dim}) of numbers: {error}") from error
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise UserError(f"features of this model are (N, {self.dim}), and these are {array.shape}; give its own")
        if not np.isfinite(array).all():
            raise UserError("features are finite numbers, and some of these are not; give what the model made")
        parts = _combination(combination)
        if set(parts) not in map(set, self.session.abilities.combinations):
            raise UserError(f"{combination}: this model takes {', '.join(self.combinations)}; give one of these")
        return Features.of(array.copy(), self._origin(parts))

    def _origin(self, combination: Combination) -> Origin:
        session = self.session
        return Origin(
            model=session.features_depend,
            name=session.name,
            modalities=session.abilities.modalities,
            combination=combination,
            comparison=Comparison.of(session.trained.model),
            calibration=lambda: session.calibration,
        )


def _combination(name: str) -> Combination:
    try:
        _check_kind("a combination", name, str)
        return parse_combination(name)
    except ValueError as error:
        raise UserError(f"{error}; give for instance RGB, TEXT or NIR+TEXT") from error


def _check_kind(name: str, value: object, *kinds: type) -> None:
    """Raise UserError for a value of another type; no bool is a number."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{name} {value!r}: is of type {type(value).__name__}; give {wanted}")


class Gallery:
    """Images to search in."""

    def __init__(
        self,
        place: str | os.PathLike[str] | None = None,
        model: Model | None = None,
        *,
        modality: str = "",
        told: str = "none",
        nprobe: int = 0,
        progress: Watcher | None = None,
    ) -> None:
        """Open an index, or encode a folder of images or a manifest (.csv, .jsonl); None = the test gallery of the
        model's data set.

        model: what images are encoded with; an index does without. modality: of the images, `rgb` or `nir`, empty = as
        infer.py chooses. told: what a model that follows instructions is told with each image: none, or crop, its own
        upper body. nprobe: of an index with codes, how many of their lists are looked through, 0 = the search is exact.
        progress: called with (what, done, of how many) while images are encoded. Raises UserError.
        """
        if modality not in ("", "rgb", "nir"):
            raise UserError(f"modality {modality!r}: images of a gallery are rgb or nir")
        if told not in ("none", "crop"):
            raise UserError(f"told {told!r}: images of a gallery are told none or crop; give one of these")
        if place is not None:
            _check_kind("gallery", place, str, os.PathLike)
        if model is not None:
            _check_kind("model", model, Model)
        _check_kind("nprobe", nprobe, int)
        if nprobe < 0:
            raise UserError(f"nprobe {nprobe}: must be at least 1, or 0 for an exact search")
        self._modality, self._nprobe = modality, nprobe
        self._index = open_index(os.fspath(place)) if place is not None and is_index(place) else None
        self._encoded: SearchedGallery | None = None
        self._model: dict[str, Any] = {}
        if self._index is not None:
            _check_index(self._index, model, told)
            return
        if place is not None and not os.path.exists(place):
            raise UserError(f"no such gallery: {os.fspath(place)}; give an index, a folder of images or a manifest")
        if model is None:
            what = "the test gallery" if place is None else os.fspath(place)
            raise UserError(
                f"{what} is no gallery index, so that its images have to be encoded: give model=anyreid.load(...), or "
                "the folder of an index that python -m solver.gallery add has made"
            )
        folder = None if place is None else os.fspath(place)
        self._encoded = model.session.gallery(folder, modality=modality, told=told, nprobe=nprobe, progress=progress)
        self._model = model.session.features_depend

    def __len__(self) -> int:
        """Return how many images can be found."""
        return self._index.count if self._index is not None else self._searched().count

    def _searched(self, combination: Combination = (), known: Sequence[Modality] = ()) -> SearchedGallery:
        if self._encoded is not None:
            return self._encoded
        assert self._index is not None, "a gallery is an index or encoded"
        asked = [_placeholder(0, combination)] if combination else []
        return IndexedGallery(self._index, choose_modality(self._modality, asked, known), self._nprobe)

    def search(self, features: np.ndarray, top_k: int = 10, *, error_rate: float | None = None) -> list[Hits]:
        """Return what is found for each of the queries (N, D), equal similarities in the gallery's order.

        features: what `Model.embed` returned, or rows of it. error_rate: the rate of false alarms that answers are
        given at, None = the lowest that the model is calibrated for. Raises UserError for features of another model,
        and for an error rate without a threshold.
        """
        origin = getattr(features, "origin", None)
        if origin is None:
            raise UserError(
                "these features do not say which model they are of, so that nobody knows whether they fit the gallery; "
                "give what model.embed returned, or model.as_features(array, 'NIR+TEXT')"
            )
        self._check_same(origin)
        _check_kind("top_k", top_k, int, np.integer)
        if top_k < 1:
            raise UserError(f"top_k {top_k}: must be at least 1")
        values = np.atleast_2d(np.asarray(features))
        gallery = self._searched(origin.combination, origin.modalities)
        width = gallery.rows.parts[0].shape[1] if gallery.rows.parts else values.shape[1]
        if values.ndim != 2 or values.shape[1] != width or values.dtype != np.float32:
            raise UserError(
                f"features are (N, {width}) float32, and these are {values.shape} {values.dtype}; give whole rows"
            )
        calibration = origin.calibration()
        if error_rate is not None:
            _check_kind("error_rate", error_rate, float, int, np.floating)
            calibration = at_rate(calibration, error_rate, [origin.combination], gallery.modalities)
        encoded = EncodedQueries(
            queries=tuple(_placeholder(row, origin.combination) for row in range(len(values))),
            features=torch.from_numpy(values.copy()),
            failures=(),
            comparison=origin.comparison,
        )
        return [Hits.of(row) for row in search(encoded, gallery, top_k, calibration=calibration)]

    def _check_same(self, origin: Origin) -> None:
        if self._index is not None:
            check_same(self._index.state, origin.model, self._index.folder, origin.name)
        elif self._model != origin.model:
            raise UserError(
                f"the gallery was encoded by another model than {origin.name}, so that its features cannot be compared "
                "with these; encode it with this model"
            )


def _check_index(index: GalleryIndex, model: Model | None, told: str) -> None:
    """Raise UserError for an index of another model, or of images that were told something else. told: as `Gallery`."""
    if model is not None:
        check_same(index.state, model.session.features_depend, index.folder, model.session.name)
    if told != "none":
        check_told(index.state, instruction_record(None, told == "crop"), "", index.folder)


def _placeholder(row: int, combination: Combination) -> Query:
    # A picture in memory is no file, so that none of the gallery is taken for it.
    sources = tuple(Source(modality=modality, value="", picture=b"") for modality in combination)
    return Query(name=f"row {row}", sources=sources)


def average(features: np.ndarray) -> Features:
    """Return the mean (1, D) of features of one person, for a query of several pictures: each of length 1 before, and
    of length 1 again; where distances are compared, the plain mean. Raises UserError for none.
    """
    origin = getattr(features, "origin", None)
    if origin is None or features.ndim != 2 or not len(features):
        raise UserError("a mean is taken of features that model.embed returned, at least one row; give these")
    columns = slice(*origin.comparison.columns(origin.combination, features.shape[1]))
    rows = torch.from_numpy(np.array(features))
    return Features.of(mean_feature(rows, columns, origin.comparison.similarity)[None].numpy(), origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation on the test set measured."""

    table: str
    """As test.py prints it."""
    document: dict[str, Any]
    """As results.json holds it: rows, averages, and under what conditions."""
    files: tuple[str, ...] = ()
    """That were written."""

    def __str__(self) -> str:
        return self.table

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row of plain numbers, in percent, for each query list."""
        return list(self.document["rows"])

    @property
    def averages(self) -> list[dict[str, Any]]:
        """The rows of averages."""
        return list(self.document["averages"])


def _choice(
    model: str | os.PathLike[str], config: str, checkpoint: str, device: str, overrides: Sequence[str]
) -> ModelChoice:
    """Return which model is meant by a run, a checkpoint in one, or a checkpoint file with its configuration."""
    _check_kind("model", model, str, os.PathLike)
    if not os.fspath(model):
        raise UserError("no model is named; give a run directory, or the file of a checkpoint")
    run, found = find_run(os.fspath(model), checkpoint)
    if config or (os.path.isfile(run) and not os.path.isdir(run)):
        beside = [Path(run).with_name(name) for name in (CONFIG_FILE, OFFICIAL_CONFIG)]
        file = config or next((str(path) for path in beside if path.is_file()), "")
        for path, what in ((file, "configuration"), (run, "checkpoint")):
            if not os.path.isfile(path):
                raise UserError(f"no such {what}: {path or beside[0]}; give config=FILE with a checkpoint file")
        return ModelChoice(config=file, checkpoint=run, device=device, overrides=overrides)
    return ModelChoice(run=run, checkpoint=found, device=device, overrides=overrides)


def load(
    model: str | os.PathLike[str],
    *,
    config: str = "",
    checkpoint: str = "",
    device: str = "auto",
    overrides: Sequence[str] = (),
    gallery_cache: str = "",
) -> Model:
    """Return a trained model.

    model: a run directory, or the file of a checkpoint, an official one for instance. config: with a file, its
    configuration; empty = config.yaml or configs.yaml beside it. checkpoint: of a run, best, last or a file; empty =
    best, else last. device: auto, cpu, cuda, cuda:N or mps. overrides: options as on the command line. gallery_cache:
    folder of encoded galleries, empty = gallery_cache/ beside the checkpoint. Sets torch's threads and float32
    precision, as infer.py does. Raises UserError.
    """
    session = SearchSession.open(_choice(model, config, checkpoint, device, overrides), gallery_cache)
    for note in session.trained.notes:
        logger.warning("%s", note)
    return Model(session)


def evaluate(
    model: str | os.PathLike[str],
    *,
    config: str = "",
    checkpoint: str = "",
    device: str = "auto",
    overrides: Sequence[str] = (),
    output: str = "",
) -> Evaluation:
    """Measure a trained model on the test set of its data, as test.py does. output: folder of the result files, empty =
    none are written. The other arguments are those of `load`. Raises UserError.
    """
    tested = evaluate_test(_choice(model, config, checkpoint, device, overrides))
    files = write_test(Path(output), tested) if output else []
    return Evaluation(table=tested.table(), document=tested.document(), files=tuple(map(str, files)))
