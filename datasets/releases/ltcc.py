"""LTCC: the name gives pid, the person's outfit and the camera; info/ lists who changes clothes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import FolderLayout, ImageFolders
from datasets.formats.listing import OUTFITS, outfit_id, read_lines, to_integer
from datasets.protocols import Protocol, Search, plain_protocol, protocol_table
from datasets.structures import Record, Release
from utils.errors import UserError

NAME, TITLE = "ltcc", "LTCC"
FOLDERS = ("LTCC_ReID", "ltcc/LTCC_ReID", "LTCC/LTCC_ReID", "ltcc", "LTCC")
PARTS = {"train": "train", "query": "query", "gallery": "test"}
CHANGING_LIST = "info/cloth-change_id_test.txt"
PATTERN = re.compile(r"(\d+)_(\d+)_c(\d{1,2})_(\d+)\.png", re.ASCII)
"""pid_clothes_c{camera}_{frame}.png; clothes count within a person, cameras have one or two digits."""
LAST_PERSON, CAMERAS = 151, 12


class _Rule(NamedTuple):
    name: str
    excluded: str
    rule: str


_RULES = (
    _Rule("ltcc", "the same person in the same camera does not count (standard)", "same_camera"),
    _Rule(
        "ltcc-cc",
        "the same person in the same camera or in the same clothes does not count (changed clothes)",
        "same_camera_or_clothes",
    ),
    _Rule(
        "ltcc-sc",
        "the same person in the same camera or in other clothes does not count (same clothes, CAL)",
        "same_camera_or_other_clothes",
    ),
)


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record:
    where = str(images.tree.root / path)
    person = to_integer(fields[1], where, "pid", low=0, high=LAST_PERSON)
    clothes = to_integer(fields[2], where, "clothes", low=0, high=OUTFITS - 1)
    return images.record(
        path,
        person_id=person,
        camera_id=to_integer(fields[3], where, "camera", low=1, high=CAMERAS),
        clothes_id=outfit_id(person, clothes),
    )


LAYOUT = FolderLayout(
    name=NAME, title=TITLE, task=Task.CC, folders=FOLDERS, places=PARTS, pattern=PATTERN, record_of=_record
)
"""Parts train, query, gallery (the folder `test`), cameras 1 to 12."""


def changing_persons(root: Path) -> frozenset[int]:
    """Return the test persons that change clothes, from info/. Raises UserError naming the file and the line."""
    path = root / CHANGING_LIST
    return frozenset(
        to_integer(line, f"{path} line {number}", "pid", low=0, high=LAST_PERSON)
        for number, line in read_lines(path, "test persons that change clothes; only the -changing protocols need it")
    )


def _changing(rule: _Rule) -> Protocol:
    name = f"{rule.name}-changing"

    def searches(release: Release) -> list[Search]:
        """Return the search among the persons who change clothes."""
        persons = changing_persons(release.root)
        sides = {
            part: tuple(record for record in release.parts[part] if record.person_id in persons)
            for part in ("query", "gallery")
        }
        for part, records in sides.items():
            if not records:
                raise UserError(
                    f"{release.root / CHANGING_LIST}: none of its persons is in {PARTS[part]}; restore the list"
                )
        return [
            Search(
                title=name,
                protocol=name,
                exclusion_rule=rule.rule,
                query=sides["query"],
                gallery=sides["gallery"],
            )
        ]

    return Protocol(
        name=name,
        searches=searches,
        summary=f"queries and gallery of the persons in {CHANGING_LIST} only; {rule.excluded}; rank-k per image",
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.CC,
    read=LAYOUT.read,
    name_pattern=PATTERN.pattern,
    recognise=LAYOUT.recognise,
    protocols=protocol_table(
        [
            *(
                plain_protocol(
                    rule.name,
                    f"all queries and all of test; {rule.excluded}; rank-k per image",
                    exclusion_rule=rule.rule,
                )
                for rule in _RULES
            ),
            *map(_changing, _RULES),
        ]
    ),
    default=("ltcc", "ltcc-cc"),
    published={
        "": {
            "train": Count(images=9576, persons=77),
            "query": Count(images=493, persons=75),
            "gallery": Count(images=7050, persons=75),
        }
    },
    access="Request form of the authors (naiq.github.io); non-commercial (terms unconfirmed).",
)
