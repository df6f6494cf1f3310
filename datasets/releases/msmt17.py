"""MSMT17, V1 and V2: four lists of image and pid. The pids of train and test are numbered separately.

V2 differs by masked faces. list_val joins train unless `merge_val` is false, as in most recent work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from configs.vocabulary import Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.listing import locate, parse_name, read_lines, to_integer
from datasets.protocols import plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "msmt17", "MSMT17"
PATTERN = re.compile(r"(\d{4})_(\d{3})_(\d{2})_(\d{4})(morning|noon|afternoon)_(\d+)_(\d+)(_ex)?\.jpg", re.ASCII)
"""pid_track_{camera}_{date}{time}_{frame}_{number}.jpg; the pid that counts is the list's."""
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
LAST_PERSON = {"train": 1040, "val": 1040, "query": 3059, "gallery": 3059}
CAMERAS = 15
UNMERGED = " without list_val"


@dataclass(frozen=True, slots=True)
class _Layout:
    names: tuple[str, ...]
    train: str
    test: str

    def folder(self, part: str) -> str:
        return self.train if part in ("train", "val") else self.test

    def markers(self, parts: Sequence[str]) -> list[str]:
        return [*dict.fromkeys(self.folder(part) for part in parts), *(LISTS[part] for part in parts)]


LAYOUTS = {
    "v1": _Layout(("MSMT17_V1", "msmt17/MSMT17_V1", "MSMT17/MSMT17_V1"), "train", "test"),
    "v2": _Layout(("MSMT17_V2", "msmt17/MSMT17_V2", "MSMT17/MSMT17_V2"), "mask_train_v2", "mask_test_v2"),
}


def read(root: Path, options: ReadOptions) -> Release:
    """Return parts train, query, gallery, cameras 1 to 15. Raises UserError naming the list and its line."""
    variant, notes = _variant(root, options.data.variant)
    train_lists = ["train", "val"] if options.data.merge_val else ["train"]
    parts = [*(train_lists if options.need_train else []), "query", "gallery"]
    layout = LAYOUTS[variant]
    images = open_folders(
        root,
        layout.names,
        layout.markers(parts),
        options,
        dataset=NAME,
        title=f"{TITLE} {variant.upper()}",
        task=Task.TRAD,
    )
    listed: dict[PurePosixPath, str] = {}
    train = tuple(
        record for part in parts if part in train_lists for record in _read_list(images, layout, part, listed)
    )
    found = {"train": train} | {part: tuple(_read_list(images, layout, part, {})) for part in ("query", "gallery")}
    if options.need_train:
        notes.append(
            "train = list_train and list_val (data.merge_val=false: list_train only)"
            if options.data.merge_val
            else "train = list_train only, without list_val (data.merge_val=true joins it)"
        )
    published = variant + ("" if options.data.merge_val else UNMERGED)
    return Release(name=NAME, root=images.tree.root, parts=found, notes=tuple(notes), variant=published)


def _variant(root: Path, wanted: str) -> tuple[str, list[str]]:
    if wanted:
        return wanted, []
    present = [variant for variant, layout in LAYOUTS.items() if locate(root, layout.names, [layout.test])]
    if len(present) > 1:
        return "v1", [f"{root} holds V1 and V2: V1 is taken (data.variant=v2: the other, with masked faces)"]
    if present:
        return present[0], []
    # Nothing here: the error is about the version that lies nearby, if one does.
    near = [
        variant
        for variant, layout in LAYOUTS.items()
        if any(root.glob(f"*/{layout.names[0]}")) or (root.absolute().parent / layout.test).is_dir()
    ]
    return (near or ["v1"])[0], []


def _read_list(images: ImageFolders, layout: _Layout, part: str, listed: dict[PurePosixPath, str]) -> list[Record]:
    """Records of one list in listed order. listed: images met so far and where, of all lists of one part."""
    records = []
    for number, line in read_lines(images.tree.root / LISTS[part], "list of image and pid"):
        where = f"{LISTS[part]} line {number}"
        place = f"{images.tree.root / LISTS[part]} line {number}"
        columns = line.split()
        if len(columns) != 2:
            raise UserError(
                f"{place}: {len(columns)} columns instead of 2 (image and pid): {line[:80]!r}; restore the list"
            )
        path = PurePosixPath(columns[0])
        person = to_integer(columns[1], place, "pid", low=0, high=LAST_PERSON[part])
        camera = to_integer(parse_name(PATTERN, path.name, place)[3], place, "camera", low=1, high=CAMERAS)
        if path in listed:
            raise UserError(f"{place}: {columns[0]} was already listed in {listed[path]}; keep one of the two lines")
        listed[path] = where
        records.append(
            images.record(f"{layout.folder(part)}/{columns[0]}", person_id=person, camera_id=camera, where=where)
        )
    return records


def recognise(root: Path) -> bool:
    """Return whether the folder, or one of the usual names below it, has MSMT17's test folder and its query list."""
    return any(looks_like(layout.names, layout.markers(["query"]))(root) for layout in LAYOUTS.values())


_TEST = {"query": Count(images=11659, persons=3060), "gallery": Count(images=82161, persons=3060)}
_MERGED = {"train": Count(images=32621, persons=1041), **_TEST}
_UNMERGED = {"train": Count(images=30248, persons=1041, confirmed=False), **_TEST}

DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    read=read,
    recognise=recognise,
    name_pattern=PATTERN.pattern,
    separate_ids=True,
    protocols=protocol_table(
        [
            plain_protocol(
                NAME,
                "list_query against list_gallery; the same person in the same camera does not count; rank-k per image",
                exclusion_rule="same_camera",
            )
        ]
    ),
    default=(NAME,),
    published={"v1": _MERGED, "v2": _MERGED, "v1" + UNMERGED: _UNMERGED, "v2" + UNMERGED: _UNMERGED},
    options=frozenset({"variant", "merge_val"}),
    variants=tuple(LAYOUTS),
    access="By e-mail request to the authors at PKU, the official page is closed; no redistribution.",
)
