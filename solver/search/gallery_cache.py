"""Galleries that are encoded for a search, each kept in an index of its own and used again only for the same weights,
the same input and the same files.

Shapes: G gallery images, N of them readable, D embed_dim.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.loading.readers import Reader
from datasets.modalities import MODALITIES
from datasets.structures import Source
from model.interface import RetrievalModel
from solver.evaluation.spec import EvaluationSpec
from solver.gallery.encoding import NOTHING_TOLD, content_of, encode_images, features_depend_on, statistics_of
from solver.gallery.index import GalleryIndex, open_index
from solver.gallery.layout import FORMAT, IndexRow, IndexState
from solver.gallery.place import is_index
from solver.gallery.signatures import Signature, refreshed, sign
from solver.gallery.writing import ShardContent, writing
from solver.search.gallery import Gallery
from solver.search.searched import EncodedGallery
from utils.cache_folders import INDEX_SUFFIX, mark_used, tidy
from utils.errors import UserError
from utils.files import fingerprint

logger = logging.getLogger(__name__)


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
        self.identity = features_depend_on(identity, spec)
        self.cache = cache
        self.limits = limits

    def encode(self, gallery: Gallery) -> EncodedGallery:
        """Return the encoded gallery. Raises UserError for an unreadable image (unless skipped) or when none is
        readable.
        """
        place = self.path(gallery)
        kept = self._kept(place, gallery)
        if kept is not None:
            features, failures = kept
            logger.info("gallery %s: %d encoded images reused from %s", gallery.name, len(features), place)
        else:
            # Signatures before the images are read: a file that changes meanwhile is encoded again next time.
            signatures = [sign(source.value) for source in gallery.sources]
            features, failures = encode_images(
                self.model, self.reader, self.spec, self.device, gallery.sources, self._told(gallery)
            )
            self._check(gallery, features, failures)
            if self.keep(gallery, features, signatures, failures):
                logger.info("gallery %s: %d images encoded, kept in %s", gallery.name, len(features), place)
        self._tidy(place)
        return EncodedGallery(
            gallery=gallery,
            features=torch.from_numpy(features),
            positions=np.setdiff1d(np.arange(len(gallery.sources)), list(failures)),
            failures=failures,
            reused=kept is not None,
        )

    def keep(
        self, gallery: Gallery, features: np.ndarray, signatures: Sequence[Signature], failures: Mapping[int, str]
    ) -> bool:
        """Keep features (N, D) of a gallery's readable images for the next search; return whether that could be done.
        signatures: of all its files.
        """
        rows = [self._row(gallery, index, file) for index, file in enumerate(signatures)]
        return self._write(self.path(gallery), gallery, features, rows, failures)

    def _tidy(self, place: Path) -> None:
        """Keep the folder within its limits; a search does not need it, so that one that cannot be read stays."""
        mark_used(place)
        try:
            tidy(self.cache, gigabytes=self.limits[0], days=self.limits[1], keep=[place.stem])
        except UserError as error:
            logger.warning("the encoded galleries are not looked through: %s", error)

    def key(self, gallery: Gallery) -> dict[str, Any]:
        """Return what the features depend on besides the files: one image read as another modality has another
        feature.
        """
        return {
            "format": FORMAT,
            **self.identity,
            "modalities": [modality.value for modality in gallery.modalities],
            "told": self._record(gallery),
        }

    def _told(self, gallery: Gallery) -> tuple[Source | None, ...]:
        return gallery.instructions if self.model.follows_instructions else ()

    def _record(self, gallery: Gallery) -> dict[str, Any]:
        told = self._told(gallery)
        if not any(told):
            return dict(NOTHING_TOLD)
        return {"told": gallery.told, "images": _digest(told, gallery.sources)}

    def path(self, gallery: Gallery) -> Path:
        """Return the index of a gallery: one per key and location, so that changed images replace it."""
        return self.cache / f"{fingerprint([self.key(gallery), gallery.location])}{INDEX_SUFFIX}"

    def _row(self, gallery: Gallery, index: int, file: list[Any]) -> IndexRow:
        source = gallery.sources[index]
        path, person = os.path.abspath(source.value), gallery.person(index)
        return IndexRow(path=path, modality=source.modality, person=person, file=file)

    def _kept(self, place: Path, gallery: Gallery) -> tuple[np.ndarray, dict[int, str]] | None:
        """Return (features (N, D), failures) of an index that fits this gallery, else None, saying why in the log.

        A file of another version counts as the same when its content's digest is; what is new of it is written back.
        """
        if not is_index(place):
            return None
        try:
            index = open_index(place, verify=True)
            stored = {**dict(index.images()), **dict(index.unreadable())}
            failures = {identity: row.reason for identity, row in index.unreadable()}
        except UserError as error:
            logger.warning("%s; the gallery is encoded again", error)
            shutil.rmtree(place, ignore_errors=True)
            return None
        if not self._fits(index, gallery, stored):
            logger.info("other images than those kept in %s; the gallery is encoded again", place)
            return None
        if failures and not self.spec.skip_unreadable:
            return None
        current: list[IndexRow] = []
        for number, source in enumerate(gallery.sources):
            file = refreshed(stored[number].file, source.value)
            if file is None:
                logger.info("%s has changed; the gallery is encoded again", source.value)
                return None
            current.append(self._row(gallery, number, file))
        features = index.shards[0].features
        if any(replace(stored[number], number=-1, reason="") != row for number, row in enumerate(current)):
            self._write(place, gallery, features, current, failures)
        return features, failures

    def _fits(self, index: GalleryIndex, gallery: Gallery, stored: Mapping[int, IndexRow]) -> bool:
        state = index.state
        wanted = json.loads(json.dumps([self.identity, self._record(gallery), gallery.location]))
        if [state.model, state.instruction, state.location] != wanted or state.removed or len(state.shards) != 1:
            return False
        paths = [(os.path.abspath(source.value), source.modality) for source in gallery.sources]
        return [(stored[number].path, stored[number].modality) for number in sorted(stored)] == paths and sorted(
            stored
        ) == [*range(len(paths))]

    def _write(
        self,
        place: Path,
        gallery: Gallery,
        features: np.ndarray,
        rows: Sequence[IndexRow],
        failures: Mapping[int, str],
    ) -> bool:
        """Keep an encoded gallery; return whether that could be done. A search does not need it."""
        readable = [number for number in range(len(rows)) if number not in failures]
        content = ShardContent(
            features=features,
            rows=[rows[number] for number in readable],
            numbers=readable,
            bad=[replace(rows[number], number=number, reason=reason) for number, reason in sorted(failures.items())],
        )
        state = IndexState(
            model=self.identity,
            statistics=statistics_of(self.model),
            dimension=features.shape[1],
            dtype="float32",
            instruction=self._record(gallery),
            location=gallery.location,
        )
        try:
            with writing(place, state) as writer:
                writer.replace(content, len(rows), state)
        except UserError as error:
            logger.warning("the encoded gallery is not kept: %s; --gallery-cache DIR names another folder", error)
            return False
        return True

    def _check(self, gallery: Gallery, features: np.ndarray, failures: Mapping[int, str]) -> None:
        if len(failures) == len(gallery.sources):
            raise UserError(f"no image of the gallery {gallery.name} can be read, the first: {failures[0]}")
        for reason in failures.values():
            logger.warning("skipped: %s", reason)
        if not np.isfinite(features).all():
            raise UserError(
                f"the model gives features that are not finite for the gallery {gallery.name}; its weights are "
                "damaged, or eval.precision=fp32 is needed"
            )


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
                known[told] = [told.modality.value, content_of(told), told.crop]
            rows.append(known[told])
    return fingerprint(rows)
