"""NKUP: query images were taken on another day than the person's gallery images. No outfit labels; pid -1 is left
out.
"""

from __future__ import annotations

import re

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import FolderLayout, ImageFolders
from datasets.formats.listing import to_integer
from datasets.protocols import plain_protocol, protocol_table
from datasets.structures import Record

NAME, TITLE = "nkup", "NKUP"
FOLDERS = ("NKUP", "nkup", "NKUP-dataset")
PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PATTERN = re.compile(r"(-?\d+)_D(\d{4})_C(\d{2})S(\d{2})_(\d+)\.jpg", re.ASCII)
"""pid_D{month and day}_C{camera}S{sequence}_{frame}.jpg"""
NOBODY = -1


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record | None:
    person = to_integer(fields[1], str(images.tree.root / path), "pid", low=NOBODY)
    return images.record(path, person_id=person, camera_id=int(fields[3])) if person != NOBODY else None


LAYOUT = FolderLayout(
    name=NAME,
    title=TITLE,
    task=Task.CC,
    folders=FOLDERS,
    places=PARTS,
    pattern=PATTERN,
    record_of=_record,
    left_out="images of nobody, pid -1",
)
"""Parts train, query, gallery."""

DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.CC,
    read=LAYOUT.read,
    name_pattern=PATTERN.pattern,
    recognise=LAYOUT.recognise,
    protocols=protocol_table(
        [
            plain_protocol(
                NAME,
                "query against bounding_box_test, taken on other days; the same person in the same camera does not "
                "count; rank-k per image",
                exclusion_rule="same_camera",
            )
        ]
    ),
    default=(NAME,),
    published={
        "": {
            "train": Count(images=5336, persons=40),
            "query": Count(images=332),
            "gallery": Count(images=4070, persons=67),
        }
    },
    access="From the authors (repository nkicsl/NKUP-dataset); academic use only, copyright Nankai University.",
)
