"""Market-1501: one folder of named images per part. Junk images (pid -1) are left out, distractors (pid 0) stay in the gallery."""

from __future__ import annotations

import re
from pathlib import Path

from configs.vocabulary import Task
from datasets.image_folders import ImageFolders, locate, names_agree, refuse_options
from datasets.listing import ImageTree, find_folder, require_some, to_integer
from datasets.protocols import plain_protocol
from datasets.release import Count, DatasetEntry, ReadOptions, Release, protocol_table
from datasets.structures import Record
from utils.errors import UserError

NAME = "market1501"
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
    refuse_options(options, NAME)
    parts = [part for part in PARTS if options.need_train or part != "train"]
    folder = find_folder(root, FOLDERS, [PARTS[part] for part in parts], "Market-1501")
    images = ImageFolders(tree=ImageTree(folder, options.check_files), dataset=NAME, task=Task.TRAD)
    found: dict[str, tuple[Record, ...]] = {"train": ()}
    junk = 0
    for part in parts:
        found[part], part_junk = _read_part(images, part)
        junk += part_junk
        require_some(found[part], folder / PARTS[part], f"{part} images")
    distractors = folder / DISTRACTOR_FOLDER
    notes = (f"{distractors}: the additional distractors are not used",) if distractors.is_dir() else ()
    return Release(name=NAME, root=folder, parts=found, dropped={"junk images, pid -1": junk}, notes=notes)


def _read_part(images: ImageFolders, part: str) -> tuple[tuple[Record, ...], int]:
    records, junk = [], 0
    for path, fields in images.named(PARTS[part], PATTERN):
        person = to_integer(fields[1], str(images.tree.root / path), "pid", low=JUNK, high=LAST_PERSON)
        if person == JUNK:
            junk += 1
        elif person == DISTRACTOR and part != "gallery":
            raise UserError(f"{images.tree.root / path}: a distractor (pid 0) belongs into {PARTS['gallery']} only; move it there")
        else:
            records.append(images.record(path, person_id=person, camera_id=int(fields[2])))
    return tuple(records), junk


def recognise(root: Path) -> bool:
    """Return whether the folder, or one of the usual names below it, has Market-1501's folders and image names."""
    folder = locate(root, FOLDERS, (PARTS["query"], PARTS["gallery"]))
    return folder is not None and names_agree(folder / PARTS["query"], PATTERN)


DATASET = DatasetEntry(
    name=NAME, title="Market-1501", task=Task.TRAD, read=read, recognise=recognise, name_pattern=PATTERN.pattern,
    protocols=protocol_table([plain_protocol(
        NAME, "query against bounding_box_test; the same person in the same camera does not count, pid 0 is never a match; "
        "rank-k per image", exclusion_rule="same_camera")]),
    default=(NAME,),
    published={"": {
        "train": Count(images=12936, persons=751), "query": Count(images=3368, persons=750), "gallery": Count(images=15913)}},
    access="Official page of the authors (zheng-lab.cecs.anu.edu.au); research only, no redistribution, no commercial use.",
)
