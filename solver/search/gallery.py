"""Encoded galleries, kept on disk and used again only for the same weights, the same input and the same files.

Shapes: G gallery images, N of them readable, D embed_dim.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.vocabulary import BOX, Modality
from datasets.formats.manifest_rows import read_manifest
from datasets.loading.readers import Reader
from datasets.loading.suffixes import IMAGE_SUFFIXES, is_image_name, passed_over, unread_notes
from datasets.modalities import MODALITIES
from datasets.releases.manifest import Listed, row_image
from datasets.structures import WARNING, Benchmark, EvalSplit, Person, QueryList, Source
from model.interface import RetrievalModel
from solver.evaluation.encoding import SourceEncoder, encode_sources, inference
from solver.evaluation.plan import Integers, SourceTable, gallery_slots
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.token_cache import CacheBudget
from solver.search.gallery_index import FORMAT_VERSION, Signature, keep_index, read_index, sign
from solver.search.named import is_manifest, require_gallery
from solver.search.queries import Query
from utils.cache_folders import mark_used, tidy
from utils.errors import UserError
from utils.files import fingerprint, sha256_of
from utils.folder_names import FolderNames

logger = logging.getLogger(__name__)

UNLISTED = -1
"""Number of a person whom a gallery does not hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Images to search in."""

    name: str
    """For readers."""
    location: str
    """Folder or data set, for the cache's name."""
    sources: tuple[Source, ...]
    """The images."""
    person_ids: tuple[Person, ...] | None = None
    """One per image, as users know them; None = unknown."""
    protocol: str = "no exclusion"
    """How it is searched, in words, the similarity aside."""
    note: str = ""
    """What a reader of the result must know about it, empty = nothing."""
    listed: bool = False
    """The modality of each image is listed; otherwise whoever searches says what the images are."""
    instructions: tuple[Source | None, ...] = ()
    """What a model that follows instructions is told with each image; empty = nothing."""
    told: str = "none"
    """The same in one word, for readers: see solver.search.arguments.GALLERY_INSTRUCTIONS; `lists` = as a test list
    says."""
    items: tuple[int, ...] = ()
    """Of the gallery of a test split: the index of each image in it."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities of the images."""
        present = {source.modality for source in self.sources}
        return tuple(modality for modality in Modality if modality in present)

    def instructed(self, asked: str, queries: Sequence[Query] = ()) -> Gallery:
        """Return the gallery with other instructions: `none`; `same`, the one instruction of all queries; `crop`, each
        image's own upper body. Raises UserError for `same` where the queries are told nothing or different things.
        """
        if asked == "none":
            return replace(self, instructions=(), told=asked)
        if asked == "crop":
            own = [Source(modality=Modality.RGB, value=source.value, crop=BOX) for source in self.sources]
            return replace(self, instructions=tuple(own), told=asked)
        given = {query.instruction for query in queries}
        told = given.pop() if len(given) == 1 else None
        if told is None:
            what = "are told different things" if given else "are told nothing"
            raise UserError(
                f"--gallery-instruction same: the queries {what}; give all of them one instruction, or "
                "--gallery-instruction none or crop"
            )
        return replace(self, instructions=(told,) * len(self.sources), told=asked)

    def person(self, index: int) -> Person | None:
        """Return the person of an image, None = unknown."""
        return None if self.person_ids is None else self.person_ids[index]

    def read_as(self, modality: Modality) -> Gallery:
        """Return the gallery as images of that modality: those of it where modalities are listed, else all of them.

        Raises UserError when none is listed as such.
        """
        if not self.listed:
            return replace(self, sources=tuple(replace(source, modality=modality) for source in self.sources))
        kept = [index for index, source in enumerate(self.sources) if source.modality is modality]
        if not kept:
            listed = " and ".join(entry.name for entry in self.modalities)
            raise UserError(
                f"{self.name} lists {listed} images, and {modality.name} ones are searched; give --gallery-modality"
            )
        return replace(
            self,
            sources=tuple(self.sources[index] for index in kept),
            person_ids=None if self.person_ids is None else tuple(self.person_ids[index] for index in kept),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonCodes:
    """Persons as numbers, for comparisons of many at once."""

    numbers: Mapping[str, int]
    """Name of a person -> number."""
    codes: Integers
    """(N,): number of each row's person."""


@dataclass(frozen=True, kw_only=True)
class EncodedGallery:
    """A gallery and the features of its readable images."""

    gallery: Gallery
    features: Tensor
    """(N, D) float32, as the model gives them."""
    positions: Integers
    """(N,): index of each row in the gallery."""
    failures: Mapping[int, str]
    """Reason by gallery index of each unreadable image."""
    reused: bool
    """The features came from the disk."""

    @functools.cached_property
    def persons(self) -> PersonCodes | None:
        """Persons of the rows, None = unknown."""
        if self.gallery.person_ids is None:
            return None
        numbers: dict[str, int] = {}
        codes = [numbers.setdefault(str(person), len(numbers)) for person in self.gallery.person_ids]
        return PersonCodes(numbers=numbers, codes=np.asarray(codes, dtype=np.int64)[self.positions])


def split_gallery(
    benchmark: Benchmark, split: EvalSplit, modality: Modality | None = None, listed: QueryList | None = None
) -> Gallery:
    """Return the gallery of an evaluation split, identities known.

    modality: only its images of this modality, None = all. listed: only the part that this list is searched in, None =
    the galleries of all lists together. A split without gallery images of the modality offers its queries of it:
    SYSU-MM01's infrared test images are all queries. Raises UserError when it has none of these either.
    """
    title, location = f"{benchmark.name} {split.name}", f"{benchmark.name} {split.name} {benchmark.fingerprint}"
    protocol = _protocol(split, listed)
    items: Sequence[int] = range(len(split.gallery))
    if listed is not None and listed.gallery is not None:
        items, title, location = listed.gallery, f"{benchmark.name} {listed.name}", f"{location} {listed.name}"
    chosen = [item for item in items if modality in (None, split.gallery[item].modality)]
    kept = [(split.gallery[item], split.person(split.gallery_ids[item])) for item in chosen]
    note = ""
    if not kept and modality is not None:
        kept = _queries_of(split, modality)
        title = f"{title} queries"
        note = (
            f"{benchmark.name} has no gallery of {modality.name} images: its {len(kept)} {modality.name} test queries "
            "were searched; --gallery FOLDER searches others"
        )
    elif kept and len(kept) < len(items):
        title = f"{title}, {kept[0][0].modality.name} images"
    if not kept:
        wanted = "" if modality is None else f"{modality.name} "
        raise UserError(
            f"{benchmark.name} has no {wanted}test images to search; give --gallery FOLDER or another "
            "--gallery-modality"
        )
    return Gallery(
        name=title,
        location=location,
        sources=tuple(source for source, _ in kept),
        person_ids=tuple(person for _, person in kept),
        protocol=protocol,
        note=note,
        instructions=tuple(split.gallery_instructions[item] for item in chosen) if split.gallery_instructions else (),
        told="lists" if chosen and split.gallery_instructions else "none",
        items=tuple(chosen),
    )


def _protocol(split: EvalSplit, listed: QueryList | None) -> str:
    if all(queries.gallery is None and queries.exclusion_rule == "none" for queries in split.query_lists):
        return split.protocol
    if listed is None:
        return f"no exclusion, the galleries of all protocols together ({split.protocol})"
    rule = listed.exclusion_rule
    excluded = "" if rule == "none" else f"; an evaluation leaves images out by the rule {rule!r}, a search does not"
    return f"the gallery of {listed.name}{excluded}"


def _queries_of(split: EvalSplit, modality: Modality) -> list[tuple[Source, Person]]:
    """Every distinct single-image query of a modality with its person."""
    persons = {
        entry[0]: split.person(person)
        for queries in split.query_lists
        if queries.combination == (modality,)
        for entry, person in zip(queries.entries, queries.person_ids)
    }
    return list(persons.items())


SEARCHED_SPLITS = ("gallery", "test")


def own_gallery(place: str | Path) -> Gallery:
    """Return the gallery of a folder of images, or of a manifest (.csv, .jsonl), which says who they show.

    Raises UserError for neither, and for whatever is wrong in it.
    """
    return manifest_gallery(Path(place)) if is_manifest(place) else folder_gallery(place)


def manifest_gallery(path: Path) -> Gallery:
    """Return the images of a manifest, sorted by path, with their persons: those that a test searches (split gallery or
    test) where the manifest has any, else all. Raises UserError naming file and line.
    """
    rows = [row for row in read_manifest(path) if row.path]
    searched = [row for row in rows if row.split in SEARCHED_SPLITS] or rows
    listed, names = Listed(), FolderNames()
    images: dict[str, tuple[Source, Person]] = {}
    for row in searched:
        source = row_image(row, path.parent, names)
        listed.add(source.value, row)
        images.setdefault(source.value, (source, row.person))
    if not images:
        raise UserError(f"{path}: lists no image; give rows a path")
    kept = [images[value] for value in sorted(images)]
    return Gallery(
        name=f"manifest {path}",
        location=os.path.abspath(path),
        sources=tuple(source for source, _ in kept),
        person_ids=tuple(person for _, person in kept),
        listed=True,
    )


def folder_gallery(folder: str | Path) -> Gallery:
    """Return every image below `folder`, as RGB, sorted by path, in linked folders too; hidden files are left out, and
    a note says which images cannot be read. A folder that is reached twice is read once.

    Raises UserError when there is no such folder or no image in it.
    """
    require_gallery(folder)
    root = os.fspath(folder)
    images: list[str] = []
    left_out: list[str] = []
    visited: set[str] = set()
    for folder_path, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        # A link may lead back to a folder that holds it, or to one beside it.
        place = os.path.realpath(folder_path)
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        # Sorted, so that the same of two ways is gone every time.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images += [os.path.join(folder_path, name) for name in names if is_image_name(name)]
        left_out += [os.path.join(folder_path, name) for name in passed_over(sorted(names))]
    notes = [note.removeprefix(WARNING) for note in unread_notes(left_out)]
    if not images:
        raise UserError(
            f"gallery folder {root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of images"
            + "".join(f"; {note}" for note in notes[:1])
        )
    images.sort(key=lambda path: path.split(os.sep))
    return Gallery(
        name=f"folder {root}",
        location=os.path.abspath(root),
        sources=tuple(Source(modality=Modality.RGB, value=path, record="gallery folder") for path in images),
        note="; ".join(notes),
    )


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"cannot list the gallery folder {error.filename}: {error.strerror}") from error


class GalleryEncoder:
    """Encodes galleries with one model, or reads them from the folder `cache`.

    identity: everything besides the files and the precision that the features depend on (weights, sizes). limits: GB
    and days without use that the folder keeps, 0 = no limit.
    """

    def __init__(
        self,
        model: RetrievalModel,
        reader: Reader,
        spec: EvaluationSpec,
        device: torch.device,
        *,
        identity: Mapping[str, Any],
        cache: Path,
        limits: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.model = model
        self.reader = reader
        self.spec = spec
        self.device = device
        self.identity = {"format": FORMAT_VERSION, "precision": spec.config.precision, **identity}
        self.cache = cache
        self.limits = limits

    def encode(self, gallery: Gallery) -> EncodedGallery:
        """Return the encoded gallery. Raises UserError for an unreadable image (unless skipped) or when none is
        readable.
        """
        path = self.path(gallery)
        stored = read_index(path, self.key(gallery), gallery.sources, allow_failures=self.spec.skip_unreadable)
        if stored is not None:
            features, failures = stored
            logger.info("gallery %s: %d encoded images reused from %s", gallery.name, len(features), path)
        else:
            # Signatures before the images are read: a file that changes meanwhile is encoded again next time.
            signatures = [sign(source.value) for source in gallery.sources]
            features, failures = self._encode(gallery)
            self._write(path, gallery, features, failures, signatures)
        self._tidy(path)
        positions = np.setdiff1d(np.arange(len(gallery.sources)), list(failures))
        return EncodedGallery(
            gallery=gallery,
            features=torch.from_numpy(features).to(self.device),
            positions=positions,
            failures=failures,
            reused=stored is not None,
        )

    def _tidy(self, path: Path) -> None:
        """Keep the folder within its limits; a search does not need it, so that one that cannot be read stays."""
        mark_used(path)
        try:
            tidy(self.cache, gigabytes=self.limits[0], days=self.limits[1], keep=[path.stem])
        except UserError as error:
            logger.warning("the encoded galleries are not looked through: %s", error)

    def key(self, gallery: Gallery) -> dict[str, Any]:
        """Return what the features depend on besides the files: one image read as another modality has another
        feature.
        """
        instructions = self._told(gallery)
        return {
            **self.identity,
            "modalities": [modality.value for modality in gallery.modalities],
            **({"instructions": _digest(instructions, gallery.sources)} if any(instructions) else {}),
        }

    def _told(self, gallery: Gallery) -> tuple[Source | None, ...]:
        return gallery.instructions if self.model.follows_instructions else ()

    def path(self, gallery: Gallery) -> Path:
        """Return the file of a gallery: one per key and location, so that changed images replace it."""
        return self.cache / f"{fingerprint([self.key(gallery), gallery.location])}.npz"

    def _encode(self, gallery: Gallery) -> tuple[np.ndarray, dict[int, str]]:
        table = SourceTable()
        slots = gallery_slots(table, gallery.sources, self._told(gallery))
        encoder = SourceEncoder(self.model, self.reader, self.spec, self.device)
        with inference(self.model, self.device, self.spec.config.precision):
            encoded = encode_sources(
                encoder, table, np.zeros(len(table), dtype=bool), CacheBudget(device_bytes=0, host_bytes=0)
            )
        failures = {
            index: encoded.failures[int(slot)] for index, slot in enumerate(slots) if int(slot) in encoded.failures
        }
        if len(failures) == len(slots):
            raise UserError(f"no image of the gallery {gallery.name} can be read, the first: {failures[0]}")
        for reason in failures.values():
            logger.warning("skipped: %s", reason)
        readable = torch.from_numpy(np.delete(slots, list(failures))).to(encoded.pooled.device)
        return encoded.pooled[readable].cpu().numpy(), failures

    def _write(
        self,
        path: Path,
        gallery: Gallery,
        features: np.ndarray,
        failures: Mapping[int, str],
        signatures: list[Signature],
    ) -> None:
        if not np.isfinite(features).all():
            raise UserError(
                f"the model gives features that are not finite for the gallery {gallery.name}; its weights are "
                "damaged, or eval.precision=fp32 is needed"
            )
        if keep_index(path, self.key(gallery), features, failures, signatures):
            logger.info("gallery %s: %d images encoded, kept in %s", gallery.name, len(features), path)


def _digest(instructions: Sequence[Source | None], sources: Sequence[Source]) -> str:
    """What images are told, as one text: a text itself; of a picture its content, since another file of that name is
    another instruction; of the image itself nothing, since its content is looked at anyway.
    """
    known: dict[Source, list[str]] = {}
    rows: list[list[str]] = []
    for told, source in zip(instructions, sources, strict=True):
        if told is None:
            rows.append([])
        elif told.value == source.value and MODALITIES[told.modality].is_image:
            rows.append(["itself", told.crop])
        else:
            if told not in known:
                known[told] = [told.modality.value, _content(told), told.crop]
            rows.append(known[told])
    return fingerprint(rows)


def _content(instruction: Source) -> str:
    if not MODALITIES[instruction.modality].is_image:
        return instruction.value
    try:
        return sha256_of(instruction.value)
    except OSError as error:
        raise UserError(
            f"{instruction.value}: the gallery's instruction cannot be read ({error.strerror}); correct the path"
        ) from error
