"""Reading lists and names: sorted folders, lines with their numbers, fields of a file name; errors name file and
line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from configs.vocabulary import Modality
from datasets.loading.suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_image_name, passed_over, suffix_of
from datasets.structures import Source
from utils.errors import UserError
from utils.files import ordinary
from utils.folder_names import FolderNames

OUTFITS = 1000
"""Outfits of one person that `outfit_id` can tell apart."""


def _refuse_too_high(root: Path, candidates: Iterable[Path], markers: Sequence[str]) -> None:
    """Raise UserError naming the root to set when one of the folders holds all markers."""
    for below in candidates:
        if all((below / marker).exists() for marker in markers):
            raise UserError(
                f"data.root={root} is one level too high: {below.name}/ lies in {below.parent}; set "
                f"data.root={below.parent}"
            )


def find_folder(root: Path, names: Sequence[str], markers: Sequence[str], what: str) -> Path:
    """Return the folder of a data set: `root` itself when it holds all `markers`, else the first of `names` below it
    that does.

    names: what the folder may be called. markers: relative paths that must exist in it. Raises UserError that says what
    is missing and where the folder was found instead.
    """
    if not root.is_dir():
        raise UserError(f"no such data root: {root}; set data.root to the folder that contains {names[0]}/")
    whole = locate(root, names, markers)
    if whole is not None:
        return whole
    # An archive that was unpacked into a folder of its own name is no damaged one.
    _refuse_too_high(root, [root / name / name for name in names], markers)
    candidates = [root, *(root / name for name in names)]
    partial = next((folder for folder in candidates[1:] if folder.is_dir()), None)
    if partial is None and any((root / marker).exists() for marker in markers):
        partial = root
    if partial is not None:
        missing = [marker for marker in markers if not (partial / marker).exists()]
        raise UserError(
            f"{partial} is not a whole {what}: {', '.join(missing)} missing; restore it from the original release"
        )
    _refuse_too_high(root, sorted(entry for entry in root.glob("*/*") if entry.name in names), markers)
    for above in root.absolute().parents:
        if all((above / marker).exists() for marker in markers):
            levels = "one level" if above == root.absolute().parent else "some levels"
            raise UserError(
                f"data.root={root} is {levels} too low: it is a part of the {what} in {above}; set data.root={above}"
            )
    raise UserError(
        f"{root} holds no {what}: expected {names[0]}/ with {', '.join(markers)}; set data.root to the folder that "
        "contains it"
    )


def locate(root: Path, names: Sequence[str], markers: Sequence[str]) -> Path | None:
    """Return the first of `root` and the named folders below it that holds all markers, or None."""
    candidates = (root, *(root / name for name in names))
    return next((folder for folder in candidates if all((folder / marker).exists() for marker in markers)), None)


@dataclass
class ImageTree:
    """Image files below a data set's folder; each folder is listed once."""

    root: Path
    check: bool = True
    """Raise for a listed file that is absent."""
    _names: FolderNames = field(default_factory=FolderNames, repr=False)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names of the image files in a folder relative to the root (no hidden files, no Thumbs.db). Raises
        UserError.
        """
        return tuple(sorted(filter(is_image_name, self._names.of(self.root / folder))))

    def passed_over(self, folder: str) -> tuple[str, ...]:
        """Sorted paths, relative to the root, of the files in a folder that are no images to read, whatever they are.
        Raises UserError.
        """
        names = sorted(passed_over(self._names.of(self.root / folder)))
        return tuple(os.path.join(folder, name) for name in names if not os.path.isdir(self.root / folder / name))

    def folders(self, folder: str) -> tuple[str, ...]:
        """Sorted names of the folders in a folder relative to the root. Raises UserError when it cannot be listed."""
        try:
            with os.scandir(self.root / folder) as entries:
                return tuple(
                    sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
                )
        except OSError as error:
            raise UserError(f"cannot list {self.root / folder}: {error.strerror}; restore the folder") from error

    def source(self, modality: Modality, relative: str, record: str) -> Source:
        """Return the image source of a listed path relative to the root. Raises UserError naming the record."""
        path = PurePosixPath(relative)
        # Judged as both kinds of path: what is a plain name here may lead out of the root on Windows.
        windows = PureWindowsPath(relative)
        if (
            not relative
            or "\0" in relative
            or path.is_absolute()
            or windows.drive
            or ".." in (*path.parts, *windows.parts)
        ):
            raise UserError(f"{record}: {relative!r} is not a path inside {self.root}; correct it")
        require_image_suffix(relative, record)
        value = str(self.root / path)
        if self.check and not (is_image_name(path.name) and self._names.hold(value)):
            raise UserError(f"{record}: no such image: {value}; restore the file or set data.on_error=skip")
        return Source(modality=modality, value=value, record=record)


def require_image_suffix(path: str, record: str) -> None:
    """Raise UserError for a path that does not end like an image."""
    suffix = suffix_of(path.rstrip("/"))
    if suffix in UNREAD_SUFFIXES:
        raise UserError(f"{record}: {path!r} is of a form that is not read; convert it to .jpg or .png")
    if suffix not in IMAGE_SUFFIXES:
        raise UserError(
            f"{record}: {path!r} does not end like an image ({', '.join(sorted(IMAGE_SUFFIXES))}); correct it"
        )


def parse_name(pattern: re.Pattern[str], name: str, where: str) -> re.Match[str]:
    """Match a file NAME (never a path) entirely. Raises UserError naming folder, file and the expected form."""
    found = pattern.fullmatch(name)
    if found is None:
        raise UserError(f"{where}: file name {name!r} does not have the form {pattern.pattern}; rename it or remove it")
    return found


def read_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, stripped line) of the lines that are not empty. Raises UserError for a file that cannot be
    read.
    """
    try:
        text = ordinary(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path} ({what}); restore it from the original release") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({what}): {error}; copy it again") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{path} ({what}) is empty; restore it from the original release")
    yield from lines


def to_integer(text: str, where: str, what: str, *, low: int = -1, high: int = 2**31 - 1) -> int:
    """Return a whole number in low..high. Raises UserError naming the place and the field."""
    value = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text.strip()) else None
    if value is None:
        raise UserError(f"{where}: {what} = {text!r} is not a whole number; correct it")
    if not low <= value <= high:
        raise UserError(f"{where}: {what} = {value} is outside {low}..{high}; correct it")
    return value


def read_id_list(path: Path, what: str) -> list[int]:
    """Return the whole numbers of a file of comma-separated ids (SYSU-MM01's exp/, LLCM's test_id). Raises
    UserError.
    """
    return [
        to_integer(part, f"{path} line {number}", what, low=0)
        for number, line in read_lines(path, what)
        for part in line.split(",")
        if part.strip()
    ]


def outfit_id(person_id: int, clothes: int) -> int:
    """Return a clothes id that is unique over persons from one that counts within a person. Raises UserError for too
    many outfits.
    """
    if not 0 <= clothes < OUTFITS:
        raise UserError(
            f"person {person_id}: outfit {clothes} is outside 0..{OUTFITS - 1}, which can be told apart; correct the "
            "clothes labels"
        )
    return person_id * OUTFITS + clothes


def wearer(clothes_id: int) -> int:
    """Return the person whose outfit a clothes id (not -1) is."""
    return clothes_id // OUTFITS


def require_some(records: Iterable[object], where: Path, what: str) -> None:
    """Raise UserError when a part of a data set came out empty."""
    if not any(True for _ in records):
        raise UserError(f"{where}: no {what} found; restore the files of the original release")
