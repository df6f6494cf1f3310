"""NKUP+: one set of queries against three galleries, by how much the appearance changed.

A person's folder holds one folder per appearance, which serves as the outfit. The outer folder's name differs between
copies, so the parts are searched for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders
from datasets.formats.listing import OUTFITS, ImageTree, find_folder, outfit_id, require_some, to_integer
from datasets.protocols import Protocol, Search, plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME = "nkup-plus"
FOLDERS = ("NKUP2_0126/NKUP2", "NKUP2", "NKUP+", "nkup_plus")
TRAIN = "bounding_box_train"
TEST_PARTS = {
    "query": "bounding_box_test/query",
    "gallery_same": "bounding_box_test/gallery_sameapp",
    "gallery_moderate": "bounding_box_test/gallery_crossapp_moderate",
    "gallery_dramatic": "bounding_box_test/gallery_crossapp_dramatic",
}
PATTERN = re.compile(r".{12}(\d{2}).*\.jpg", re.ASCII)
"""Characters 13 and 14 are the camera, as in NKUP's names; nothing else is read from the name."""
SEARCH_DEPTH = 2


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery_same, gallery_moderate, gallery_dramatic. Raises UserError naming folder and
    file.

    The appearances of a person are numbered in the sorted order of their folders, over all test parts at once.
    """
    markers = [*TEST_PARTS.values(), *([TRAIN] if options.need_train else [])]
    folder = _search(root, markers) or find_folder(root, FOLDERS, markers, "NKUP+")
    images = ImageFolders(tree=ImageTree(folder, options.check_files), dataset=NAME, task=Task.CC)
    train = _read_parts(images, {"train": TRAIN}) if options.need_train else {"train": ()}
    return Release(name=NAME, root=folder, parts=train | _read_parts(images, TEST_PARTS))


def _search(root: Path, markers: Sequence[str]) -> Path | None:
    """The first folder with all markers, from the root downwards."""
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        for folder in level:
            if all((folder / marker).is_dir() for marker in markers):
                return folder
        level = [below for folder in level for below in _folders(folder)]
    return None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _read_parts(images: ImageFolders, places: dict[str, str]) -> dict[str, tuple[Record, ...]]:
    listed = {part: _appearances(images, place) for part, place in places.items()}
    names: dict[int, set[str]] = {}
    for person, appearance, _ in (entry for entries in listed.values() for entry in entries):
        names.setdefault(person, set()).add(appearance)
    if crowded := next((person for person in names if len(names[person]) > OUTFITS), None):
        raise UserError(
            f"{images.tree.root}: person {crowded} has {len(names[crowded])} folders of appearances; at most {OUTFITS} "
            "can be told apart"
        )
    numbers = {
        (person, name): outfit_id(person, number)
        for person in names
        for number, name in enumerate(sorted(names[person]))
    }
    found = {}
    for part, entries in listed.items():
        found[part] = tuple(
            images.record(path, person_id=person, camera_id=int(fields[1]), clothes_id=numbers[person, appearance])
            for person, appearance, folder in entries
            for path, fields in images.named(folder, PATTERN)
        )
        require_some(found[part], images.tree.root / places[part], "images in folders person/appearance")
    return found


def _appearances(images: ImageFolders, place: str) -> list[tuple[int, str, str]]:
    """(person, appearance, folder) of a part, sorted by folder."""
    found = []
    for person_folder in images.tree.folders(place):
        person = to_integer(person_folder, str(images.tree.root / place), "the name of a person's folder", low=0)
        found += [
            (person, appearance, f"{place}/{person_folder}/{appearance}")
            for appearance in images.tree.folders(f"{place}/{person_folder}")
        ]
    return found


def _cross() -> Protocol:
    name = "nkup-plus-cross"

    def searches(release: Release) -> list[Search]:
        """Return the search of all queries in both galleries."""
        gallery = (*release.parts["gallery_moderate"], *release.parts["gallery_dramatic"])
        return [
            Search(
                title=name, protocol=name, query=release.parts["query"], gallery=gallery, exclusion_rule="same_camera"
            )
        ]

    return Protocol(
        name=name,
        searches=searches,
        summary=(
            "query against the union of both cross-appearance galleries; the same person in the same camera does not "
            "count; rank-k per image"
        ),
    )


def _one_gallery(change: str) -> Protocol:
    return plain_protocol(
        f"{NAME}-{change}",
        f"query against {TEST_PARTS[f'gallery_{change}'].rpartition('/')[2]}; the same person in the same camera does "
        "not count; rank-k per image",
        gallery=f"gallery_{change}",
        exclusion_rule="same_camera",
    )


def recognise(root: Path) -> bool:
    """Return whether NKUP+'s four test folders lie in the folder or up to two levels below it."""
    return _search(root, list(TEST_PARTS.values())) is not None


_PROTOCOLS = protocol_table([*map(_one_gallery, ("same", "moderate", "dramatic")), _cross()])

DATASET = DatasetEntry(
    name=NAME,
    title="NKUP+",
    task=Task.CC,
    read=read,
    recognise=recognise,
    protocols=_PROTOCOLS,
    default=("nkup-plus-same", "nkup-plus-moderate", "nkup-plus-dramatic"),
    published={"": {"train": Count(images=22590, persons=181)}},
    access="By e-mail to aics@nankai.edu.cn; academic use only.",
)
