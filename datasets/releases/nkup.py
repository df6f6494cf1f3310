"""NKUP: query images were taken on another day than the person's gallery images. No outfit labels; pid -1 is left out."""

from __future__ import annotations

import re
from pathlib import Path

from configs.vocabulary import Task
from datasets.image_folders import ImageFolders, locate, names_agree, refuse_options
from datasets.listing import ImageTree, find_folder, require_some, to_integer
from datasets.protocols import plain_protocol
from datasets.release import Count, DatasetEntry, ReadOptions, Release, protocol_table
from datasets.structures import Record

NAME = "nkup"
FOLDERS = ("NKUP", "nkup", "NKUP-dataset")
PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PATTERN = re.compile(r"(-?\d+)_D(\d{4})_C(\d{2})S(\d{2})_(\d+)\.jpg", re.ASCII)
"""pid_D{month and day}_C{camera}S{sequence}_{frame}.jpg"""
NOBODY = -1


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery. Raises UserError naming the folder and the file."""
    refuse_options(options, NAME)
    parts = [part for part in PARTS if options.need_train or part != "train"]
    folder = find_folder(root, FOLDERS, [PARTS[part] for part in parts], "NKUP")
    images = ImageFolders(tree=ImageTree(folder, options.check_files), dataset=NAME, task=Task.CC)
    found: dict[str, tuple[Record, ...]] = {"train": ()}
    dropped = 0
    for part in parts:
        named = [(path, to_integer(fields[1], str(folder / path), "pid", low=NOBODY), int(fields[3]))
                 for path, fields in images.named(PARTS[part], PATTERN)]
        found[part] = tuple(images.record(path, person_id=person, camera_id=camera)
                            for path, person, camera in named if person != NOBODY)
        dropped += len(named) - len(found[part])
        require_some(found[part], folder / PARTS[part], f"{part} images")
    return Release(name=NAME, root=folder, parts=found, dropped={"images of nobody, pid -1": dropped})


def recognise(root: Path) -> bool:
    """Return whether the folder, or one of the usual names below it, has NKUP's folders and image names."""
    folder = locate(root, FOLDERS, (PARTS["query"], PARTS["gallery"]))
    return folder is not None and names_agree(folder / PARTS["query"], PATTERN)


DATASET = DatasetEntry(
    name=NAME, title="NKUP", task=Task.CC, read=read, recognise=recognise, name_pattern=PATTERN.pattern,
    protocols=protocol_table([plain_protocol(
        NAME, "query against bounding_box_test, taken on other days; the same person in the same camera does not count; "
        "rank-k per image", exclusion_rule="same_camera")]),
    default=(NAME,),
    published={"": {
        "train": Count(images=5336, persons=40), "query": Count(images=332), "gallery": Count(images=4070, persons=67)}},
    access="From the authors (repository nkicsl/NKUP-dataset); academic use only, copyright Nankai University.",
)
