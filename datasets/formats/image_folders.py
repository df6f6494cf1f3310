"""Releases whose images lie in named folders: where they are found, one walk over the names, one way to build a
record.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.vocabulary import Modality, Task
from datasets.formats.listing import ImageTree, find_folder, locate, parse_name, require_some
from datasets.loading.suffixes import is_image_name
from datasets.structures import ReadOptions, Record, Release

SAMPLED_NAMES = 8
"""Names that must agree before a folder is taken for a data set's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolders:
    """Image files of one data set."""

    tree: ImageTree
    dataset: str
    """The data set of every record."""
    task: Task
    """The task of every record."""

    def record(
        self,
        relative: str,
        *,
        person_id: int,
        camera_id: int = -1,
        clothes_id: int = -1,
        modality: Modality = Modality.RGB,
        where: str = "",
    ) -> Record:
        """Return the record of one image. where: place in a list; empty = the file itself. Raises UserError."""
        source = self.tree.source(modality, relative, where or relative)
        return Record(
            person_id=person_id,
            sources={modality: source},
            camera_id=camera_id,
            clothes_id=clothes_id,
            dataset=self.dataset,
            task=self.task,
            name=where or relative,
        )

    def named(self, folder: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield (path relative to the root, parsed file name) of a folder's images, sorted. Raises UserError for a bad
        name.
        """
        for name in self.tree.names(folder):
            yield f"{folder}/{name}", parse_name(pattern, name, str(self.tree.root / folder))

    def parts(
        self, places: Mapping[str, str], pattern: re.Pattern[str], record_of: RecordOf
    ) -> tuple[dict[str, tuple[Record, ...]], int]:
        """Return the records of each part, whose images lie in one folder, and how many images `record_of` left out.

        places: part -> folder; `train` is empty where it is not among them. Raises UserError for a part without
        records.
        """
        parts: dict[str, tuple[Record, ...]] = {"train": ()}
        left_out = 0
        for part, folder in places.items():
            read = [record_of(self, path, fields) for path, fields in self.named(folder, pattern)]
            parts[part] = tuple(record for record in read if record is not None)
            left_out += len(read) - len(parts[part])
            require_some(parts[part], self.tree.root / folder, f"{part} images")
        return parts, left_out


RecordOf = Callable[[ImageFolders, str, re.Match[str]], Record | None]
"""Path and parsed file name of an image -> its record, None = left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderLayout:
    """A release whose parts are one folder each, with images that are told by their names alone."""

    name: str
    """The data set's."""
    title: str
    task: Task
    folders: Sequence[str]
    """What the folder of the data set may be called."""
    places: Mapping[str, str]
    """Part -> folder."""
    pattern: re.Pattern[str]
    """Matches the image names entirely."""
    record_of: RecordOf
    left_out: str = ""
    """What `record_of` leaves out, in words; empty = nothing."""

    def read(self, root: Path, options: ReadOptions) -> Release:
        """Return the parts, `train` empty where only a test is asked for. Raises UserError naming folder and file."""
        places = {part: place for part, place in self.places.items() if options.need_train or part != "train"}
        images = open_folders(
            root, self.folders, [*places.values()], options, dataset=self.name, title=self.title, task=self.task
        )
        parts, count = images.parts(places, self.pattern, self.record_of)
        dropped = {self.left_out: count} if self.left_out else {}
        return Release(name=self.name, root=images.tree.root, parts=parts, dropped=dropped)

    def recognise(self, root: Path) -> bool:
        """Return whether a folder looks like this release: its test folders, and image names in that of the queries."""
        markers = (self.places["query"], self.places["gallery"])
        return looks_like(self.folders, markers, self.pattern, sample=self.places["query"])(root)


def open_folders(
    root: Path,
    names: Sequence[str],
    markers: Sequence[str],
    options: ReadOptions,
    *,
    dataset: str,
    title: str,
    task: Task,
) -> ImageFolders:
    """Return the image folders of a release, found by `datasets.formats.listing.find_folder`. Raises UserError."""
    folder = find_folder(root, names, markers, title)
    return ImageFolders(tree=ImageTree(folder, options.check_files), dataset=dataset, task=task)


def names_agree(folder: Path, pattern: re.Pattern[str]) -> bool:
    """Return whether a folder holds images and the first ones that the system lists match the pattern entirely."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        names = list(itertools.islice((entry.name for entry in entries if is_image_name(entry.name)), SAMPLED_NAMES))
    return bool(names) and all(pattern.fullmatch(name) for name in names)


def looks_like(
    names: Sequence[str], markers: Sequence[str], pattern: re.Pattern[str] | None = None, *, sample: str = ""
) -> Callable[[Path], bool]:
    """Return what recognises a data set: a folder, or one of `names` below it, with all markers and, in `sample`,
    images named by the pattern.
    """

    def recognise(root: Path) -> bool:
        folder = locate(root, names, markers)
        return folder is not None and (pattern is None or names_agree(folder / sample, pattern))

    return recognise
