"""SYSU-MM01: visible cameras 1, 2, 4, 5 and infrared cameras 3, 6; 491 persons.

Parts: `train` = the images of exp/train_id (296 persons), `val` = those of exp/val_id (99 persons). Standard practice
trains on both together (395 persons): whoever builds a benchmark joins `train` and `val` unless validation is asked
for. `val_query` and `val_gallery` are the infrared and the visible images of `val`; with data.merge_val=false there are
only these two, so that nothing joins `train`. `query` = all images of exp/test_id in cameras 3 and 6, `gallery` = all
of them in cameras 1, 2, 4, 5; the protocols draw from the gallery.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.vocabulary import Modality, Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.image_folders import ImageFolders, looks_like, open_folders
from datasets.formats.listing import read_id_list, require_some
from datasets.formats.matlab_files import load_matlab
from datasets.formats.visible_infrared import (
    TRIALS,
    Sides,
    by_person_and_camera,
    drawn_protocol,
    seeded_draw,
    with_both_modalities,
)
from datasets.protocols import Protocol, image_source, protocol_table
from datasets.structures import WARNING, ReadOptions, Record, Release
from utils.errors import UserError

NAME, TITLE = "sysu", "SYSU-MM01"
FOLDERS = ("SYSU-MM01", "SYSU_MM01", "SYSU", "sysu-mm01", "sysu_mm01", "sysu")
INFRARED_CAMERAS = (3, 6)
GALLERY_CAMERAS: dict[str, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
"""Visible cameras of each search mode, in the order of the draws."""
CAMERAS = tuple(sorted((*INFRARED_CAMERAS, *GALLERY_CAMERAS["all"])))
SHOTS: dict[str, int] = {"single": 1, "multi": 10}
MARKERS = (*(f"cam{camera}" for camera in CAMERAS), "exp")
PERMUTATIONS = "rand_perm_cam"
NAME_PATTERN = re.compile(r"(\d{4})\.jpg")


def read(root: Path, options: ReadOptions) -> Release:
    """Read SYSU-MM01. Training persons with images of one modality only are left out and listed in the notes. Raises
    UserError.
    """
    images = open_folders(root, FOLDERS, MARKERS, options, dataset=NAME, title=TITLE, task=Task.VI)
    folder = images.tree.root
    ids = _split_ids(folder, ("train", "val", "test") if options.need_train else ("test",))
    present = {camera: frozenset(images.tree.folders(f"cam{camera}")) for camera in CAMERAS}
    read_parts = {split: _records(images, persons, present) for split, persons in ids.items()}
    notes = [
        *_foreign(present),
        *(note for split in ids for note in _absent(split, ids[split], read_parts[split], folder)),
    ]
    parts = _by_modality(read_parts["test"])
    for part, records in parts.items():
        require_some(records, folder, f"{part} image of an identity of exp/test_id")
    left_out = 0
    for split in [split for split in read_parts if split != "test"]:
        parts[split], count, found = with_both_modalities(read_parts[split], split, folder)
        left_out, notes = left_out + count, notes + found
    if "val" in parts:
        parts |= {f"val_{part}": records for part, records in _by_modality(parts["val"]).items()}
        if not options.data.merge_val:
            del parts["val"]
    dropped = {"images of training identities that lack one modality": left_out} if left_out else {}
    return Release(name=NAME, root=folder, parts=parts, dropped=dropped, notes=tuple(notes))


def _by_modality(records: Sequence[Record]) -> dict[str, tuple[Record, ...]]:
    return {
        part: tuple(record for record in records if modality in record.sources)
        for part, modality in (("query", Modality.NIR), ("gallery", Modality.RGB))
    }


def _foreign(present: Mapping[int, frozenset[str]]) -> list[str]:
    """A warning for each camera with folders that are no person's."""
    named = {
        camera: sorted(name for name in names if not re.fullmatch(r"\d{4}", name)) for camera, names in present.items()
    }
    return [
        f"{WARNING}cam{camera}: {len(names)} folders are no person number of four digits and are passed over: "
        f"{', '.join(names[:5])}"
        for camera, names in named.items()
        if names
    ]


def _absent(split: str, persons: Sequence[int], records: Sequence[Record], folder: Path) -> list[str]:
    """A note on listed persons without any image. Raises UserError when that is all of them."""
    require_some(records, folder, f"image of an identity of exp/{split}_id")
    absent = sorted(set(persons) - {record.person_id for record in records})
    return (
        [f"exp/{split}_id: {len(absent)} listed identities have no image: {', '.join(map(str, absent))}"]
        if absent
        else []
    )


def _records(images: ImageFolders, persons: Iterable[int], present: Mapping[int, frozenset[str]]) -> tuple[Record, ...]:
    """Records by person, camera and file name."""
    records = []
    for person in sorted(persons):
        for camera in CAMERAS:
            if f"{person:04d}" not in present[camera]:
                continue
            folder = f"cam{camera}/{person:04d}"
            modality = Modality.NIR if camera in INFRARED_CAMERAS else Modality.RGB
            for path, _ in images.named(folder, NAME_PATTERN):
                records.append(images.record(path, person_id=person, camera_id=camera, modality=modality))
    return tuple(records)


def _split_ids(folder: Path, splits: Sequence[str]) -> dict[str, list[int]]:
    """Persons of each split. Raises UserError for a person in two of them."""
    ids = {split: sorted(set(_read_ids(folder, split))) for split in splits}
    owner: dict[int, str] = {}
    for split, persons in ids.items():
        for person in persons:
            if owner.setdefault(person, split) != split:
                raise UserError(
                    f"{folder / 'exp'}: identity {person} stands in {owner[person]}_id and in {split}_id; restore the "
                    "lists from the original release"
                )
    return ids


def _read_ids(folder: Path, split: str) -> list[int]:
    text, matrix = (folder / "exp" / f"{split}_id{suffix}" for suffix in (".txt", ".mat"))
    if text.exists() or not matrix.exists():
        return read_id_list(text, f"the identities of {split}")
    arrays = [np.asarray(value) for value in load_matlab(matrix).values()]
    if len(arrays) != 1 or arrays[0].dtype.kind not in "iuf" or (arrays[0] < 1).any() or (arrays[0] % 1 != 0).any():
        raise UserError(
            f"{matrix}: must hold one array of identities, the numbers from 1; restore it from the original release"
        )
    return [int(person) for person in arrays[0].reshape(-1)]


def official_numbers(cells: Any, where: str, *, camera: int, person: int, trial: int, shots: int) -> list[int]:
    """Return the file numbers of a person in a camera in one trial (from 0): the first `shots` of its permutation, or
    all of it.

    cells: `rand_perm_cam`, 6 x 1 cells of one 10 x n matrix per identity. Raises UserError that names the file
    (`where`) for any other shape. Source: SYSU-MM01's rand_perm_cam.mat, read as users' public code does.
    """
    expected = (
        f"expected {PERMUTATIONS}, 6 x 1 cells with one {TRIALS} x n matrix per identity; copy it again from the "
        "original release"
    )
    if not isinstance(cells, np.ndarray) or cells.dtype != object or cells.shape != (len(CAMERAS), 1):
        raise UserError(
            f"{where}: shape {getattr(cells, 'shape', None)} and kind {getattr(cells, 'dtype', type(cells).__name__)}; "
            f"{expected}"
        )
    persons = np.asarray(cells[camera - 1][0])
    if persons.dtype != object or max(persons.shape, default=0) != persons.size:
        raise UserError(f"{where}: cell {camera} has shape {persons.shape} and kind {persons.dtype}; {expected}")
    if persons.size < person:
        raise UserError(
            f"{where}: cell {camera} has {persons.size} identities and identity {person} is in the test split; "
            f"{expected}"
        )
    matrix = np.asarray(persons.reshape(-1)[person - 1])
    if not matrix.size:
        return []
    if matrix.ndim != 2 or len(matrix) < TRIALS or matrix.dtype.kind not in "iuf":
        raise UserError(
            f"{where}: camera {camera}, identity {person}: shape {matrix.shape} and kind {matrix.dtype}; {expected}"
        )
    return [int(number) for number in matrix[trial][:shots]]


def _official_draw(release: Release, cameras: Sequence[int], shots: int) -> Callable[[int], Sides]:
    """Prepare the draws of rand_perm_cam.mat. Raises UserError when it or a file that it names is absent."""
    places = [release.root / "exp" / f"{PERMUTATIONS}.mat", release.root / f"{PERMUTATIONS}.mat"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"no such file: {places[0]}, nor {places[1]}; copy {PERMUTATIONS}.mat from the authors' evaluation code, "
            "or choose the seeded protocols"
        )
    content = load_matlab(path)
    if PERMUTATIONS not in content:
        raise UserError(
            f"{path}: holds {', '.join(sorted(content)) or 'nothing'}, not {PERMUTATIONS}; copy it again from the "
            "authors' evaluation code"
        )
    groups = by_person_and_camera(release.parts["gallery"])
    persons = sorted({record.person_id for part in ("query", "gallery") for record in release.parts[part]})

    def draw(number: int) -> Sides:
        """Return queries and the gallery that the permutation's row `number` gives."""
        drawn: list[Record] = []
        for person in persons:
            for camera in cameras:
                numbers = official_numbers(
                    content[PERMUTATIONS], str(path), camera=camera, person=person, trial=number - 1, shots=shots
                )
                drawn += _numbered(
                    groups.get((person, camera), ()), numbers, f"{path}: draw {number}, cam{camera}/{person:04d}"
                )
        return release.parts["query"], drawn

    return draw


def _numbered(images: Sequence[Record], numbers: Sequence[int], where: str) -> list[Record]:
    """The images with these file numbers, in this order."""
    if images and not numbers:
        raise UserError(
            f"{where}: no permutation, but the folder has {len(images)} images; copy the file again or choose the "
            "seeded protocols"
        )
    by_name = {Path(image_source(record).value).name: record for record in images}
    for number in numbers:
        if f"{number:04d}.jpg" not in by_name:
            raise UserError(
                f"{where}: {number:04d}.jpg does not exist; restore the image or choose the seeded protocols"
            )
    return [by_name[f"{number:04d}.jpg"] for number in numbers]


def _seeded_draw(release: Release, cameras: Sequence[int], shots: int) -> Callable[[int], Sides]:
    groups = by_person_and_camera(release.parts["gallery"])
    return lambda number: (release.parts["query"], seeded_draw(groups, cameras, number, shots))


def _protocols() -> list[Protocol]:
    found = []
    for rule, prepare, numbers, drawn in (
        (
            "seeded",
            _seeded_draw,
            range(TRIALS),
            "Python's generator seeded with the draw (AGW's rule; ten shots: ours)",
        ),
        ("official", _official_draw, range(1, TRIALS + 1), "rand_perm_cam.mat"),
    ):
        for mode, cameras in GALLERY_CAMERAS.items():
            for shots_name, shots in SHOTS.items():
                found.append(
                    drawn_protocol(
                        f"{NAME}-{mode}-{shots_name}-{rule}",
                        f"infrared to visible, {mode}-search: queries of cameras 3 and 6, gallery of cameras "
                        f"{', '.join(map(str, cameras))} with {shots} image{'s' if shots > 1 else ''} per person and "
                        f"camera; draws {numbers[0]} to {numbers[-1]} by {drawn}; queries of camera 3 skip camera 2; "
                        "CMC over identities",
                        functools.partial(prepare, cameras=cameras, shots=shots),
                        exclusion_rule="sysu",
                        numbers=numbers,
                    )
                )
    return found


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.VI,
    read=read,
    protocols=protocol_table(_protocols()),
    default=tuple(f"{NAME}-{mode}-{shots}-seeded" for mode in GALLERY_CAMERAS for shots in SHOTS),
    recognise=looks_like(FOLDERS, MARKERS),
    published={
        "": {
            "train": Count(images=30_213, persons=296),
            # From totals that a secondary source states, less the training images.
            "val": Count(images=3_954, persons=99, confirmed=False),
            "val_query": Count(images=1_980, persons=99, confirmed=False),
            "val_gallery": Count(images=1_974, persons=99, confirmed=False),
            "query": Count(images=3_803, persons=96),
            "gallery": Count(images=6_775, persons=96),
        }
    },
    name_pattern=NAME_PATTERN.pattern,
    options=frozenset({"merge_val"}),
    access="Signed agreement to wuanc@mail.sysu.edu.cn; no redistribution and no commercial use, every subject signed "
    "a privacy licence.",
)
