"""PRCC: the gallery is room A; queries are room B (same clothes) and C (changed clothes).

Two galleries are in use and give different mAP: all images of A (`multi`) and one image of A per person (`single`, the
paper's).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.listing import outfit_id, parse_name, require_some, to_integer
from datasets.protocols import Protocol, Search, image_source, plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release

NAME, TITLE = "prcc", "PRCC"
FOLDERS = ("prcc", "PRCC")
TRAIN_PARTS = {"train": "rgb/train", "val": "rgb/val"}
TEST_PARTS = {"query_same": "B", "query_changed": "C", "gallery": "A"}
CAMERAS = {"A": 0, "B": 1, "C": 2}
OUTFIT_OF = {"A": 0, "B": 0, "C": 1}
"""A and B are one outfit in two rooms, C is another one."""
TRAIN_PATTERN = re.compile(r"([ABC]).*\.jpg", re.ASCII)
LAST_FOLDER = 999
DRAWS = 10


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, val, query_same (B), query_changed (C), gallery (A). Raises UserError naming folder and file.

    val shares its persons with train: it is no test set. It may be absent.
    """
    markers = [f"rgb/test/{room}" for room in CAMERAS] + ([TRAIN_PARTS["train"]] if options.need_train else [])
    images = open_folders(root, FOLDERS, markers, options, dataset=NAME, title=TITLE, task=Task.CC)
    folder = images.tree.root
    found: dict[str, tuple[Record, ...]] = {"train": ()}
    notes = []
    for part, place in TRAIN_PARTS.items() if options.need_train else ():
        if (folder / place).is_dir():
            found[part] = _read_persons(images, place, lambda name, where: parse_name(TRAIN_PATTERN, name, where)[1])
        else:
            notes.append(f"{folder / place} is not there: no part {part}")
    for part, room in TEST_PARTS.items():
        found[part] = _read_persons(images, f"rgb/test/{room}", _room_is(room))
    return Release(name=NAME, root=folder, parts=found, notes=tuple(notes))


def _room_is(room: str) -> Callable[[str, str], str]:
    return lambda name, where: room


def _read_persons(images: ImageFolders, place: str, room_of: Callable[[str, str], str]) -> tuple[Record, ...]:
    """Records of the folders of persons in `place`; room_of: file name, place -> A, B or C."""
    records = []
    for person_folder in images.tree.folders(place):
        person = to_integer(
            person_folder, str(images.tree.root / place), "the name of a person's folder", low=0, high=LAST_FOLDER
        )
        for name in images.tree.names(f"{place}/{person_folder}"):
            room = room_of(name, str(images.tree.root / place / person_folder))
            records.append(
                images.record(
                    f"{place}/{person_folder}/{name}",
                    person_id=person,
                    camera_id=CAMERAS[room],
                    clothes_id=outfit_id(person, OUTFIT_OF[room]),
                )
            )
    require_some(records, images.tree.root / place, "images in folders of persons")
    return tuple(records)


def draw_gallery(gallery: tuple[Record, ...], draw: int) -> tuple[Record, ...]:
    """Return one record per person: `random.Random(draw)` chooses for ascending person ids out of the files sorted by
    path.

    Source: the paper's single-shot setting (ten random galleries). The draws of public code depend on the order in
    which a folder is listed and cannot be repeated.
    """
    by_person: dict[int, list[Record]] = {}
    for record in sorted(gallery, key=lambda record: image_source(record).value):
        by_person.setdefault(record.person_id, []).append(record)
    generator = random.Random(draw)
    return tuple(generator.choice(by_person[person]) for person in sorted(by_person))


def _single_shot(name: str, query: str, what: str) -> Protocol:
    def searches(release: Release) -> list[Search]:
        """Return a search for each draw of the gallery."""
        return [
            Search(
                title=f"{name} draw {draw}",
                protocol=name,
                query=release.parts[query],
                group=name,
                gallery=draw_gallery(release.parts["gallery"], draw),
            )
            for draw in range(DRAWS)
        ]

    return Protocol(
        name=name,
        searches=searches,
        summary=(
            f"{what} against one random image of A per person; nothing is excluded; rank-k per image; mean and "
            f"deviation of {DRAWS} draws, random.Random(0) to random.Random({DRAWS - 1}) over ascending ids and sorted "
            "files"
        ),
    )


def _multi_shot(name: str, query: str, what: str) -> Protocol:
    return plain_protocol(name, f"{what} against all images of A; nothing is excluded; rank-k per image", query=query)


_PROTOCOLS = protocol_table(
    [
        _multi_shot("prcc-cc-multi", "query_changed", "queries C (changed clothes)"),
        _multi_shot("prcc-sc-multi", "query_same", "queries B (same clothes)"),
        _single_shot("prcc-cc-single", "query_changed", "queries C (changed clothes)"),
        _single_shot("prcc-sc-single", "query_same", "queries B (same clothes)"),
    ]
)

DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.CC,
    read=read,
    protocols=_PROTOCOLS,
    default=tuple(_PROTOCOLS),
    recognise=looks_like(FOLDERS, [f"rgb/test/{room}" for room in CAMERAS]),
    published={
        "": {
            "train": Count(images=17896, persons=150),
            "val": Count(images=5002, persons=150),
            "query_same": Count(images=3873, persons=71),
            "query_changed": Count(images=3543, persons=71),
            "gallery": Count(images=3384, persons=71),
        }
    },
    access="Page of the authors (isee-ai.cn/~yangqize/clothing.html); research only (terms unconfirmed).",
)
