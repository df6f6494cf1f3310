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
from datasets.formats.listing import ImageTree, find_folder, is_image_name, parse_name, require_some
from datasets.structures import ReadOptions, Record

SAMPLED_NAMES = 8
"""Names that must agree before a folder is taken for a data set's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolders:
    """Image files of one data set; dataset and task are those of every record."""

    tree: ImageTree
    dataset: str
    task: Task

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
        found: dict[str, tuple[Record, ...]] = {"train": ()}
        left_out = 0
        for part, place in places.items():
            read = [record_of(self, path, fields) for path, fields in self.named(place, pattern)]
            found[part] = tuple(record for record in read if record is not None)
            left_out += len(read) - len(found[part])
            require_some(found[part], self.tree.root / place, f"{part} images")
        return found, left_out


RecordOf = Callable[[ImageFolders, str, re.Match[str]], Record | None]
"""Path and parsed file name of an image -> its record, None = left out."""


def needed_places(places: Mapping[str, str], options: ReadOptions) -> dict[str, str]:
    """Return part -> folder, without the training part where only a test is asked for."""
    return {part: place for part, place in places.items() if options.need_train or part != "train"}


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


def locate(root: Path, names: Sequence[str], markers: Sequence[str]) -> Path | None:
    """Return the first of `root` and the named folders below it that holds all markers, or None."""
    candidates = (root, *(root / name for name in names))
    return next((folder for folder in candidates if all((folder / marker).exists() for marker in markers)), None)


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
