"""VC-Clothes: rendered persons (GTA5) in four cameras; the name gives pid, camera and the person's outfit."""

from __future__ import annotations

import re
from pathlib import Path

from configs.vocabulary import Task
from datasets.image_folders import ImageFolders, locate, names_agree, refuse_options
from datasets.listing import OUTFITS, ImageTree, find_folder, outfit_id, require_some, to_integer
from datasets.protocols import Protocol, Search, plain_protocol
from datasets.release import Count, DatasetEntry, ReadOptions, Release, protocol_table
from datasets.structures import Record
from utils.errors import UserError

NAME = "vc-clothes"
FOLDERS = ("VC-Clothes", "VC_Clothes", "vc_clothes", "vc-clothes")
PARTS = ("train", "query", "gallery")
PATTERN = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.jpg", re.ASCII)
"""pid-camera-clothes-index.jpg; clothes count within a person."""
CAMERAS = 4


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery, cameras 1 to 4. Raises UserError naming the folder and the file."""
    refuse_options(options, NAME)
    parts = [part for part in PARTS if options.need_train or part != "train"]
    folder = find_folder(root, FOLDERS, parts, "VC-Clothes")
    images = ImageFolders(tree=ImageTree(folder, options.check_files), dataset=NAME, task=Task.CC)
    found: dict[str, tuple[Record, ...]] = {"train": ()}
    for part in parts:
        found[part] = tuple(_record(images, path, fields) for path, fields in images.named(part, PATTERN))
        require_some(found[part], folder / part, f"{part} images")
    return Release(name=NAME, root=folder, parts=found)


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record:
    where = str(images.tree.root / path)
    person = to_integer(fields[1], where, "pid", low=0)
    clothes = to_integer(fields[3], where, "clothes", low=0, high=OUTFITS - 1)
    return images.record(path, person_id=person, camera_id=to_integer(fields[2], where, "camera", low=1, high=CAMERAS),
                         clothes_id=outfit_id(person, clothes))


def _camera_pair(name: str, cameras: tuple[int, int], what: str) -> Protocol:
    def searches(release: Release) -> list[Search]:
        sides = {part: tuple(record for record in release.parts[part] if record.camera_id in cameras)
                 for part in ("query", "gallery")}
        for part, records in sides.items():
            if not records:
                raise UserError(f"{release.root / part}: no image of camera {cameras[0]} or {cameras[1]}, which {name} needs; "
                                "restore the files or choose another protocol")
        return [Search(title=name, protocol=name, exclusion_rule="same_camera", **sides)]

    return Protocol(name=name, searches=searches, summary=(
        f"{what}: queries and gallery of cameras {cameras[0]} and {cameras[1]} only; the same person in the same camera does not "
        "count; rank-k per image"))


def recognise(root: Path) -> bool:
    """Return whether the folder, or one of the usual names below it, has VC-Clothes' folders and image names."""
    folder = locate(root, FOLDERS, ("query", "gallery"))
    return folder is not None and names_agree(folder / "query", PATTERN)


DATASET = DatasetEntry(
    name=NAME, title="VC-Clothes", task=Task.CC, read=read, recognise=recognise, name_pattern=PATTERN.pattern,
    protocols=protocol_table([
        plain_protocol(NAME, "all four cameras; the same person in the same camera does not count; rank-k per image",
                       exclusion_rule="same_camera"),
        _camera_pair("vc-clothes-sc", (2, 3), "same clothes"),
        _camera_pair("vc-clothes-cc", (3, 4), "changed clothes"),
        plain_protocol("vc-clothes-sc-all", "all four cameras; the same person in the same camera or in other clothes does not "
                       "count; rank-k per image (CAL)", exclusion_rule="same_camera_or_other_clothes"),
        plain_protocol("vc-clothes-cc-all", "all four cameras; the same person in the same camera or in the same clothes does not "
                       "count; rank-k per image (CAL)", exclusion_rule="same_camera_or_clothes"),
    ]),
    default=(NAME, "vc-clothes-sc", "vc-clothes-cc"),
    published={"": {
        "train": Count(images=9449, persons=256, confirmed=False), "query": Count(images=1020, confirmed=False),
        "gallery": Count(images=8591, confirmed=False)}},
    access="Page of the authors (wanfb.github.io/dataset.html); rendered persons, terms unconfirmed.",
)
