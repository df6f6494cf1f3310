"""VC-Clothes: rendered persons (GTA5) in four cameras; the name gives pid, camera and the person's outfit."""

from __future__ import annotations

import re

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import FolderLayout, ImageFolders
from datasets.formats.listing import OUTFITS, outfit_id, to_integer
from datasets.protocols import Protocol, Search, plain_protocol, protocol_table
from datasets.structures import Record, Release
from utils.errors import UserError

NAME, TITLE = "vc-clothes", "VC-Clothes"
FOLDERS = ("VC-Clothes", "VC_Clothes", "vc_clothes", "vc-clothes")
PARTS = {part: part for part in ("train", "query", "gallery")}
PATTERN = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)\.jpg", re.ASCII)
"""pid-camera-clothes-index.jpg; clothes count within a person."""
CAMERAS = 4


def _record(images: ImageFolders, path: str, fields: re.Match[str]) -> Record:
    where = str(images.tree.root / path)
    person = to_integer(fields[1], where, "pid", low=0)
    clothes = to_integer(fields[3], where, "clothes", low=0, high=OUTFITS - 1)
    return images.record(
        path,
        person_id=person,
        camera_id=to_integer(fields[2], where, "camera", low=1, high=CAMERAS),
        clothes_id=outfit_id(person, clothes),
    )


LAYOUT = FolderLayout(
    name=NAME, title=TITLE, task=Task.CC, folders=FOLDERS, places=PARTS, pattern=PATTERN, record_of=_record
)
"""Parts train, query, gallery, cameras 1 to 4."""


def _camera_pair(name: str, cameras: tuple[int, int], what: str) -> Protocol:
    def searches(release: Release) -> list[Search]:
        """Return the search in the images of the two cameras."""
        sides = {
            part: tuple(record for record in release.parts[part] if record.camera_id in cameras)
            for part in ("query", "gallery")
        }
        for part, records in sides.items():
            if not records:
                raise UserError(
                    f"{release.root / part}: no image of camera {cameras[0]} or {cameras[1]}, which {name} needs; "
                    "restore the files or choose another protocol"
                )
        return [
            Search(
                title=name,
                protocol=name,
                exclusion_rule="same_camera",
                query=sides["query"],
                gallery=sides["gallery"],
            )
        ]

    return Protocol(
        name=name,
        searches=searches,
        summary=(
            f"{what}: queries and gallery of cameras {cameras[0]} and {cameras[1]} only; the same person in the same "
            "camera does not count; rank-k per image"
        ),
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
            plain_protocol(
                NAME,
                "all four cameras; the same person in the same camera does not count; rank-k per image",
                exclusion_rule="same_camera",
            ),
            _camera_pair("vc-clothes-sc", (2, 3), "same clothes"),
            _camera_pair("vc-clothes-cc", (3, 4), "changed clothes"),
            plain_protocol(
                "vc-clothes-sc-all",
                "all four cameras; the same person in the same camera or in other clothes does not count; rank-k per "
                "image (CAL)",
                exclusion_rule="same_camera_or_other_clothes",
            ),
            plain_protocol(
                "vc-clothes-cc-all",
                "all four cameras; the same person in the same camera or in the same clothes does not count; rank-k "
                "per image (CAL)",
                exclusion_rule="same_camera_or_clothes",
            ),
        ]
    ),
    default=(NAME, "vc-clothes-sc", "vc-clothes-cc"),
    published={
        "": {
            "train": Count(images=9449, persons=256, confirmed=False),
            "query": Count(images=1020, confirmed=False),
            "gallery": Count(images=8591, confirmed=False),
        }
    },
    access="Page of the authors (wanfb.github.io/dataset.html); rendered persons, terms unconfirmed.",
)
