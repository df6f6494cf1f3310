"""Which images are to be added: files, folders, and manifests that say whom they show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.vocabulary import Modality
from datasets.formats.manifest_rows import ManifestRow, read_manifest
from datasets.loading.suffixes import is_image_name
from datasets.releases.manifest import Listed, row_image
from datasets.structures import Source
from solver.gallery.layout import IndexRow
from solver.gallery.signatures import Signature
from solver.search.gallery import SEARCHED_SPLITS, folder_gallery
from solver.search.named import is_manifest
from utils.errors import UserError
from utils.folder_names import FolderNames


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An image that is to be added."""

    source: Source
    person: str = ""
    """Empty = unknown."""
    camera: str = ""
    clothes: str = ""

    @property
    def path(self) -> str:
        """Its absolute path."""
        return os.path.abspath(self.source.value)

    def row(self, file: Signature) -> IndexRow:
        """Return it as a row of an index. file: what it is encoded from."""
        return IndexRow(
            path=self.path,
            modality=self.source.modality,
            person=self.person or None,
            camera=self.camera,
            clothes=self.clothes,
            file=file,
        )


def listed_images(places: Sequence[str], manifest: str, modality: Modality) -> list[ListedImage]:
    """Return the images of files, folders and manifests, in order; one that is listed twice counts once.

    modality: of images of files and folders. Raises UserError for a place that is none of these.
    """
    found: dict[str, ListedImage] = {}
    for place in [*places, *([manifest] if manifest else [])]:
        for image in _of_place(place, modality):
            found.setdefault(image.path, image)
    return list(found.values())


def _of_place(place: str, modality: Modality) -> Iterable[ListedImage]:
    if is_manifest(place):
        return manifest_images(Path(place))
    if os.path.isfile(place):
        if not is_image_name(os.path.basename(place)):
            raise UserError(f"{place} is no image that is read, by its name; give images, folders or a manifest")
        return [ListedImage(source=Source(modality=modality, value=place, record="command line"))]
    if not os.path.isdir(place):
        raise UserError(f"no such image, folder or manifest: {place}; correct the path")
    return [ListedImage(source=replace(source, modality=modality)) for source in folder_gallery(place).sources]


def manifest_images(path: Path) -> list[ListedImage]:
    """Return the images of a manifest in its order: those that a test searches (split gallery or test) where it has
    any, else all. Persons may be left out. Raises UserError naming file and line.
    """
    rows = [row for row in read_manifest(path, persons=False) if row.path]
    searched = [row for row in rows if row.split in SEARCHED_SPLITS] or rows
    listed, names = Listed(), FolderNames()
    found: dict[str, ListedImage] = {}
    for row in searched:
        source = row_image(row, path.parent, names)
        listed.add(source.value, row)
        found.setdefault(source.value, _listed(source, row))
    if not found:
        raise UserError(f"{path}: lists no image; give rows a path")
    return list(found.values())


def _listed(source: Source, row: ManifestRow) -> ListedImage:
    return ListedImage(source=source, person=row.person, camera=row.camera, clothes=row.clothes)
