"""LaST: persons of films. No cameras; outfits are labelled in train only.

Its task here is cloth-changing: its persons change clothes, and OmniReID++ counts it there. With no labels of cameras
or outfits in the test parts nothing is excluded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.listing import OUTFITS, outfit_id, require_some, to_integer
from datasets.protocols import plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "last", "LaST"
FOLDERS = ("last", "LaST", "LAST")
PATTERN = re.compile(r"(\d+)_(?:.*_)?([^_.]+)\.jpg", re.ASCII)
"""pid_..._clothes.jpg; the last field is the outfit in train only."""


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery, val_query, val_gallery, without cameras. Raises UserError naming folder and
    file.

    The outfits of a person in train are numbered in the sorted order of their names. val may be absent.
    """
    markers = ["test/query", "test/gallery", *(["train"] if options.need_train else [])]
    images = open_folders(root, FOLDERS, markers, options, dataset=NAME, title=TITLE, task=Task.CC)
    folder = images.tree.root
    notes = []
    found = {"train": _read_train(images) if options.need_train else (), **_read_test(images, "test")}
    if options.need_train and (folder / "val").is_dir():
        found |= {f"val_{part}": records for part, records in _read_test(images, "val").items()}
    elif options.need_train:
        notes.append(f"{folder / 'val'} is not there: no parts val_query and val_gallery")
    return Release(name=NAME, root=folder, parts=found, notes=tuple(notes))


def _named(images: ImageFolders, place: str, folders: Sequence[str]) -> list[tuple[str, int, str]]:
    """(path, person, last field) of the images in the folders, which are `place` or lie in it."""
    found = [
        (path, to_integer(fields[1], str(images.tree.root / path), "pid", low=0), fields[2])
        for folder in folders
        for path, fields in images.named(folder, PATTERN)
    ]
    require_some(found, images.tree.root / place, "images")
    return found


def _below(images: ImageFolders, place: str) -> list[str]:
    return [f"{place}/{name}" for name in images.tree.folders(place)]


def _read_test(images: ImageFolders, split: str) -> dict[str, tuple[Record, ...]]:
    """Query and gallery of `test` or `val`: queries lie flat, gallery images in folders whose names say nothing."""
    query = _named(images, f"{split}/query", [f"{split}/query"])
    gallery = _named(images, f"{split}/gallery", _below(images, f"{split}/gallery"))
    return {
        part: tuple(images.record(path, person_id=person) for path, person, _ in named)
        for part, named in (("query", query), ("gallery", gallery))
    }


def _read_train(images: ImageFolders) -> tuple[Record, ...]:
    named = _named(images, "train", _below(images, "train"))
    outfits: dict[int, set[str]] = {}
    for _, person, clothes in named:
        outfits.setdefault(person, set()).add(clothes)
    numbers: dict[tuple[int, str], int] = {}
    for person, names in outfits.items():
        if len(names) > OUTFITS:
            raise UserError(
                f"{images.tree.root / 'train'}: person {person} has {len(names)} outfits by the last field of the "
                "names; these are not the names of the release"
            )
        numbers |= {(person, name): outfit_id(person, number) for number, name in enumerate(sorted(names))}
    return tuple(
        images.record(path, person_id=person, clothes_id=numbers[person, clothes]) for path, person, clothes in named
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.CC,
    read=read,
    name_pattern=PATTERN.pattern,
    recognise=looks_like(FOLDERS, ("test/query", "test/gallery"), PATTERN, sample="test/query"),
    protocols=protocol_table(
        [
            plain_protocol(
                NAME, "test/query against test/gallery; nothing is excluded, no cameras are known; rank-k per image"
            ),
        ]
    ),
    default=(NAME,),
    published={
        "": {
            "train": Count(images=71248, persons=5000),
            "val_query": Count(images=100, persons=56),
            "val_gallery": Count(images=21279, persons=56),
            "query": Count(images=10176, persons=5805),
            "gallery": Count(images=125353, persons=5806),
        }
    },
    access="From the authors (repository shuxjweb/last); academic research only, the images are film frames.",
)
