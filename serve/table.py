"""What the page knows of every image of a gallery: its number, folder, camera, and whether its person is known.

Shapes: N images.
"""

from __future__ import annotations

import os
import posixpath
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.asked import Filters
from solver.evaluation.plan import Integers
from solver.search.searched import GalleryImage, SearchedGallery, part_of
from utils.errors import UserError, nearest

BLOCK = 20_000
"""Images that are asked for at once."""
SHOWN_NAMES = 500
"""Folders and cameras that are offered."""
KEPT_FILTERS = 4


@dataclass(frozen=True, kw_only=True)
class Table:
    """A gallery as it is served: images are known by number only."""

    gallery: SearchedGallery
    rows: Integers
    """(N,), ascending."""
    numbers: Integers
    """(N,): index of each row in the gallery."""
    root: str
    """Deepest folder that holds all images."""
    folders: tuple[str, ...]
    """Of the images, relative to `root`, sorted."""
    cameras: tuple[str, ...]
    known: int
    """Images whose person is known."""
    filtered: OrderedDict[Filters, SearchedGallery]

    @classmethod
    def of(cls, gallery: SearchedGallery) -> Table:
        """Look at every image once."""
        rows = gallery.every
        folders: set[str] = set()
        cameras: set[str] = set()
        numbers, known = [np.zeros(0, dtype=np.int64)], 0
        for start in range(0, len(rows), BLOCK):
            images = gallery.images(rows[start : start + BLOCK])
            numbers.append(np.array([image.index for image in images], dtype=np.int64))
            folders |= {os.path.split(os.path.abspath(image.path))[0] for image in images}
            cameras |= {image.camera for image in images if image.camera}
            known += sum(image.person_id is not None for image in images)
        root = _common(folders)
        below = sorted(os.path.relpath(folder, root).replace(os.sep, "/") for folder in folders)
        return cls(
            gallery=gallery,
            rows=rows,
            numbers=np.concatenate(numbers),
            root=root,
            folders=tuple(folder for folder in below if folder != "."),
            cameras=tuple(sorted(cameras)),
            known=known,
            filtered=OrderedDict(),
        )

    def row(self, number: int) -> int | None:
        """Return the row of an image, None = there is no such image."""
        # In an index and in a folder alike, numbers ascend with the rows.
        place = int(np.searchsorted(self.numbers, number))
        return int(self.rows[place]) if place < len(self.numbers) and self.numbers[place] == number else None

    def image(self, number: int) -> GalleryImage | None:
        """Return an image, None = there is no such image."""
        row = self.row(number)
        return None if row is None else self.gallery.images(np.array([row], dtype=np.int64))[0]

    def name(self, path: str) -> str:
        """Return the name of an image's file, relative to the common folder."""
        return os.path.relpath(os.path.abspath(path), self.root).replace(os.sep, "/")

    def passing(self, filters: Filters) -> SearchedGallery:
        """Return the part of the gallery that filters leave. Raises UserError for a camera or a folder that no image
        has, and when nothing is left.
        """
        if not filters.words:
            return self.gallery
        _check(filters.camera, self.cameras, "camera")
        if filters.folder and not any(_inside(folder, filters.folder) for folder in self.folders):
            raise UserError(
                f"folder {filters.folder[:80]!r}: no image is in it, {nearest(filters.folder, self.folders)}"
            )
        if filters not in self.filtered:
            self.filtered[filters] = part_of(self.gallery, lambda image: self._passes(image, filters))
        self.filtered.move_to_end(filters)
        while len(self.filtered) > KEPT_FILTERS:
            self.filtered.popitem(last=False)
        return self.filtered[filters]

    def _passes(self, image: GalleryImage, filters: Filters) -> bool:
        if filters.camera and image.camera != filters.camera:
            return False
        if filters.known is not None and (image.person_id is not None) != filters.known:
            return False
        return not filters.folder or _inside(posixpath.split(self.name(image.path))[0], filters.folder)


def _common(folders: set[str]) -> str:
    try:
        return os.path.commonpath(folders) if folders else os.sep
    except ValueError:
        # Several drives have nothing in common.
        return os.sep


def _inside(folder: str, wanted: str) -> bool:
    wanted = wanted.strip("/")
    return folder == wanted or folder.startswith(f"{wanted}/")


def _check(name: str, present: Sequence[str], what: str) -> None:
    if name and name not in present:
        raise UserError(
            f"{what} {name[:80]!r}: no image has it, {nearest(name, present) if present else 'none is known'}"
        )
