"""Market-1501: one folder of named images per part. Junk images (pid -1) are left out, distractors (pid 0) stay in the
gallery.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import FolderLayout, ImageFolders
from datasets.formats.listing import to_integer
from datasets.protocols import plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "market1501", "Market-1501"
OFFICIAL = "Market-1501-v15.09.15"
RENAMED = ("market1501", "Market-1501", "Market1501", "market-1501")
FOLDERS = (OFFICIAL, *RENAMED, *(f"{name}/{OFFICIAL}" for name in RENAMED))
PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DISTRACTOR_FOLDER = "images"
PATTERN = re.compile(r"(-?\d+)_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg", re.ASCII)
"""pid_c{camera}s{sequence}_{frame}_{box}.jpg"""
JUNK, DISTRACTOR, LAST_PERSON = -1, 0, 1501


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery, cameras 1 to 6. Raises UserError naming the folder and the file."""
    release = LAYOUT.read(root, options)
    distractors = release.root / DISTRACTOR_FOLDER
    notes = (f"{distractors}: the additional distractors are not used",) if distractors.is_dir() else ()
    return replace(release, notes=notes)


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record | None:
    person = to_integer(fields[1], str(images.tree.root / path), "pid", low=JUNK, high=LAST_PERSON)
    if person == DISTRACTOR and path.partition("/")[0] != PARTS["gallery"]:
        raise UserError(
            f"{images.tree.root / path}: a distractor (pid 0) belongs into {PARTS['gallery']} only; move it there"
        )
    return images.record(path, person_id=person, camera_id=int(fields[2])) if person != JUNK else None


LAYOUT = FolderLayout(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    folders=FOLDERS,
    places=PARTS,
    pattern=PATTERN,
    record_of=_record,
    left_out="junk images, pid -1",
)

DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    read=read,
    name_pattern=PATTERN.pattern,
    recognise=LAYOUT.recognise,
    protocols=protocol_table(
        [
            plain_protocol(
                NAME,
                "query against bounding_box_test; the same person in the same camera does not count, pid 0 is never a "
                "match; rank-k per image",
                exclusion_rule="same_camera",
            )
        ]
    ),
    default=(NAME,),
    published={
        "": {
            "train": Count(images=12936, persons=751),
            "query": Count(images=3368, persons=750),
            "gallery": Count(images=15913),
        }
    },
    access="Official page of the authors (zheng-lab.cecs.anu.edu.au); research only, no redistribution, no commercial "
    "use.",
)
