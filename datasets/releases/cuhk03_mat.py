"""The .mat originals of CUHK03: images out of cuhk-03.mat (HDF5), the new protocol's split out of its configuration."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.formats.matlab_files import load_matlab
from utils.errors import UserError
from utils.files import atomic_path, ordinary

OFFICIAL = "cuhk03-np"
"""Folder of the market format, which this module writes and the reader reads."""
VARIANTS = ("labeled", "detected")
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
LAST_PERSON = 1467

MAT = "cuhk-03.mat"
MAT_FOLDERS = ("", "cuhk03_release", "cuhk03/cuhk03_release", "CUHK03/cuhk03_release", "cuhk03", "CUHK03")
PAIRS, IMAGES = 5, 10
ENTRY = re.compile(r"([1-5])_(\d{3})_([12])_(\d{2})\.png", re.ASCII)
"""pair_person_view_image.png; the person restarts with each pair of cameras, the image counts from 1 to 10."""
SPLITS = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """folder: where the variant's images are. counts: images per part. reused: they were there already."""

    folder: Path
    counts: dict[str, int]
    reused: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One image of the split: where it is in the .mat (from 0) and where it goes."""

    pair: int
    person: int
    image: int
    target: str
    place: str


def find_mat(root: Path) -> Path | None:
    """Return cuhk-03.mat in the folder or at its usual places below, or None."""
    return next((root / folder / MAT for folder in MAT_FOLDERS if (root / folder / MAT).is_file()), None)


def extract(mat_root: Path, output: Path, variant: str) -> Extraction:
    """Write cuhk03-np/{variant} below `output`, PNG, in sorted order. Raises UserError naming the file and what is
    wrong in it.

    The variant's folder appears when all its images are written; an interrupted extraction goes on where it stopped.
    """
    folder = output / OFFICIAL / variant
    if folder.exists():
        return Extraction(folder=folder, counts={}, reused=True)
    mat = find_mat(mat_root)
    if mat is None:
        raise UserError(
            f"{mat_root} holds no cuhk03_release/{MAT}; set --mat to the folder that contains cuhk03_release/"
        )
    entries = _read_config(_find_config(mat, mat_root, variant))
    unfinished = folder.with_name(f".{variant}.unfinished")
    with _open_cells(mat, variant) as cells:
        for part in FOLDERS.values():
            (unfinished / part).mkdir(parents=True, exist_ok=True)
        for entry in entries:
            if not (unfinished / entry.target).exists():
                pixels = cells.pixels(entry)
                with atomic_path(unfinished / entry.target) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG")
    unfinished.replace(folder)
    counts = {part: sum(entry.target.startswith(f"{place}/") for entry in entries) for part, place in FOLDERS.items()}
    return Extraction(folder=folder, counts=counts)


def _find_config(mat: Path, mat_root: Path, variant: str) -> Path:
    name = f"cuhk03_new_protocol_config_{variant}.mat"
    for folder in (mat_root, mat.parent, mat.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"no {name} in {mat_root} or {mat.parent}; take it from the release of the new protocol (CUHK03-NP)"
    )


def _read_config(path: Path) -> list[_Entry]:
    """Return the images of the split, sorted by target. Raises UserError."""
    fields = _load_config(path)
    names, persons, cameras = fields["filelist"], fields["labels"], fields["camId"]
    if not len(names) == len(persons) == len(cameras) > 0:
        raise UserError(
            f"{path}: filelist, labels and camId have {len(names)}, {len(persons)} and {len(cameras)} entries; copy "
            "the file again"
        )
    entries, seen = [], set()
    for part, field in SPLITS.items():
        for position in fields[field]:
            where = f"{path}: {field} {position}"
            if not 1 <= position <= len(names) or position in seen:
                problem = "is listed twice" if position in seen else f"is outside 1..{len(names)}"
                raise UserError(f"{where} {problem}; copy the file again")
            seen.add(position)
            name, person, camera = names[position - 1], persons[position - 1], cameras[position - 1]
            found = ENTRY.fullmatch(name)
            if (
                found is None
                or int(found[3]) != camera
                or not 1 <= int(found[4]) <= IMAGES
                or not 1 <= person <= LAST_PERSON
            ):
                raise UserError(
                    f"{where}: {name!r} with label {person} and camera {camera} is no entry of the new protocol "
                    f"(pair_person_view_image.png, labels 1..{LAST_PERSON}); copy the file again"
                )
            target = f"{FOLDERS[part]}/{person:04d}_c{found[3]}_{found[1]}_{found[2]}_{found[4]}.png"
            entries.append(
                _Entry(
                    pair=int(found[1]) - 1,
                    person=int(found[2]) - 1,
                    image=int(found[4]) - 1,
                    target=target,
                    place=f"{name} ({where})",
                )
            )
    return sorted(entries, key=lambda entry: entry.target)


def _load_config(path: Path) -> dict[str, list[Any]]:
    """The six fields as flat lists. Raises UserError naming the file and the field."""
    document = load_matlab(path)
    missing = [field for field in ("filelist", "labels", "camId", *SPLITS.values()) if field not in document]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; it is not a configuration of the new protocol")
    numbers = {}
    for field in ("labels", "camId", *SPLITS.values()):
        values = np.asarray(document[field]).reshape(-1)
        if values.dtype.kind not in "iuf" or not np.array_equal(values, np.rint(values)):
            raise UserError(f"{path}: {field} does not hold whole numbers; copy the file again")
        numbers[field] = [int(value) for value in values]
    names = [np.asarray(cell).reshape(-1) for cell in np.asarray(document["filelist"]).reshape(-1)]
    if any(cell.size != 1 or not isinstance(cell[0], str) for cell in names):
        raise UserError(f"{path}: filelist is not a list of names; copy the file again")
    return numbers | {"filelist": [str(cell[0]) for cell in names]}


@dataclass(frozen=True, slots=True)
class _Cells:
    """References to the images of each pair of cameras: persons x 10, as MATLAB shows them."""

    path: Path
    file: Any
    pairs: list[np.ndarray]

    def pixels(self, entry: _Entry) -> np.ndarray:
        """(H, W, 3) uint8 of one image. Raises UserError."""
        cells = self.pairs[entry.pair]
        if entry.person >= cells.shape[0] or entry.image >= cells.shape[1]:
            raise UserError(
                f"{self.path} has no cell for {entry.place}: pair {entry.pair + 1} is {cells.shape[0]} x "
                f"{cells.shape[1]}; both files must be of the same release"
            )
        try:
            # HDF5 keeps MATLAB's columns as rows: (3, W, H).
            pixels = np.asarray(self.file[cells[entry.person, entry.image]]).T
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: the cell of {entry.place} cannot be read ({error}); copy the file again"
            ) from error
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise UserError(
                f"{self.path}: the cell of {entry.place} holds no picture (shape {pixels.shape}); both files must be "
                "of the same release"
            )
        return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def _open_cells(path: Path, variant: str) -> Iterator[_Cells]:
    """Open cuhk-03.mat and follow the references of a variant. Raises UserError."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading it needs h5py; pip install h5py") from error
    try:
        file = h5py.File(ordinary(path), "r")
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error}; it must be the MATLAB 7.3 (HDF5) file of the release, copy it again"
        ) from error

    def is_cell(value: Any) -> bool:
        return isinstance(value, h5py.Dataset) and h5py.check_ref_dtype(value.dtype) is not None

    with file:
        outer: Any = file.get(variant)
        if not is_cell(outer) or outer.size != PAIRS:
            raise UserError(
                f"{path}: {variant!r} is not a cell of {PAIRS} pairs of cameras; it is not the {MAT} of the release"
            )
        pairs: list[Any] = [file[reference] if reference else None for reference in outer[()].reshape(-1)]
        for number, pair in enumerate(pairs, 1):
            if not is_cell(pair) or pair.ndim != 2:
                raise UserError(
                    f"{path}: pair {number} of {variant!r} is not a cell of persons x {IMAGES} images; it is not the "
                    f"{MAT} of the release"
                )
        yield _Cells(path, file, [pair[()].T for pair in pairs])
