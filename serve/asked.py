"""What one request asks for, checked: the parts of the query, where to search and how the answer shall look.

Everything that comes in is text or bytes of a file; no name of a file and no path is ever opened.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from utils.errors import UserError, nearest

IMAGE_PARTS = ("rgb", "nir", "cp", "sk")
TEXT = "text"
INSTRUCTION, INSTRUCTION_IMAGE = "instruction", "instruction_image"
FORMATS = ("json", "list", "html", "png")
"""json: the answer as the page shows it; list: the file that infer.py writes; html and png: its page and picture."""
QUERY_FIELDS = (*IMAGE_PARTS, TEXT, INSTRUCTION, INSTRUCTION_IMAGE, "like", "example")
FIELDS = (*QUERY_FIELDS, "top_k", "rate", "camera", "folder", "known", "fold", "format")
MOST_FIELDS = 64
TOP_K, MOST_RESULTS = 20, 200
MOST_PICTURES = 8
"""Of one part."""
MOST_LETTERS = 2000
"""Of a text."""
LEAST_FOLD = 0.5
SHOWN_NAME = 60


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent."""

    name: str
    """As the sender calls it, for readers only."""
    content: bytes = field(repr=False)

    @property
    def label(self) -> str:
        """A name that no other content has: the last part of the sender's, and the content's digest."""
        last = PurePosixPath(self.name.replace("\\", "/")).name
        shown = "".join(letter for letter in last if letter.isprintable() and letter not in "<>")[-SHOWN_NAME:]
        return f"{shown.strip() or 'picture'} {hashlib.sha256(self.content).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """Which images are searched."""

    camera: str = ""
    """Empty = all."""
    folder: str = ""
    """Only images in it or below, relative to the gallery's common folder; empty = all."""
    known: bool | None = None
    """Only images whose person is known, or is not; None = all."""

    @property
    def words(self) -> str:
        """What is searched, for readers; empty = everything."""
        found = [f"camera {self.camera}"] if self.camera else []
        found += [f"folder {self.folder}"] if self.folder else []
        found += [] if self.known is None else ["persons known" if self.known else "persons not known"]
        return ", ".join(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One search. Exactly one of parts, like and example is given."""

    texts: Mapping[str, str] = field(default_factory=dict)
    """TEXT and INSTRUCTION."""
    pictures: Mapping[str, tuple[Upload, ...]] = field(default_factory=dict)
    """By part; several of one part show one person."""
    like: int | None = None
    """Number of the gallery image that is the query."""
    example: tuple[int, int] | None = None
    """(list, entry) of the test set."""
    top_k: int = TOP_K
    rate: float | None = None
    """False alarm rate of the answers, None = the lowest that there is."""
    filters: Filters = field(default_factory=Filters)
    fold: float | None = None
    """Images of at least this cosine with a better one are shown with it, None = each is shown."""
    format: str = "json"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the query."""
        return tuple(part for part in (*IMAGE_PARTS, TEXT) if part in self.pictures or part in self.texts)


def read_asked(fields: Iterable[tuple[str, str | Upload]]) -> Asked:
    """Return what the fields of a form ask for. Raises UserError naming the field."""
    texts: dict[str, str] = {}
    pictures: dict[str, tuple[Upload, ...]] = {}
    single: dict[str, str] = {}
    for name, value in fields:
        if name not in FIELDS:
            raise UserError(f"unknown field {name[:40]!r}: {nearest(name[:40], FIELDS)}")
        if name in IMAGE_PARTS or name == INSTRUCTION_IMAGE:
            pictures[name] = (*pictures.get(name, ()), _upload(name, value))
        elif isinstance(value, Upload):
            raise UserError(f"{name} is a file; give a text")
        elif name in texts or name in single:
            raise UserError(f"{name} is given twice; give it once")
        elif name in (TEXT, INSTRUCTION):
            if value.strip():
                texts[name] = _text(name, value)
        elif value.strip():
            single[name] = value.strip()
    _check_pictures(pictures)
    asked = Asked(
        texts=texts,
        pictures=pictures,
        like=_whole("like", single, 0),
        example=_example(single.get("example", "")),
        top_k=_whole("top_k", single, 1, MOST_RESULTS) or TOP_K,
        rate=_between("rate", single, 0, 1),
        filters=Filters(camera=single.get("camera", ""), folder=single.get("folder", ""), known=_known(single)),
        fold=_between("fold", single, LEAST_FOLD, 1),
        format=single.get("format", "json"),
    )
    if asked.format not in FORMATS:
        raise UserError(f"format {asked.format[:20]!r}: {nearest(asked.format[:20], FORMATS)}")
    _check_one_query(asked)
    return asked


def _upload(name: str, value: str | Upload) -> Upload:
    if isinstance(value, str):
        raise UserError(f"{name} is a text; send a file, for instance -F {name}=@picture.png with curl")
    if not value.content:
        raise UserError(f"{name}: {value.label} is empty; send an image file")
    return value


def _text(name: str, value: str) -> str:
    if len(value) > MOST_LETTERS:
        raise UserError(f"{name} has {len(value):,} letters, more than {MOST_LETTERS:,}; shorten it")
    # A browser sends line ends of its own.
    return re.sub(r"\s+", " ", value).strip()


def _check_pictures(pictures: Mapping[str, tuple[Upload, ...]]) -> None:
    for name, given in pictures.items():
        most = 1 if name == INSTRUCTION_IMAGE else MOST_PICTURES
        if len(given) > most:
            raise UserError(f"{name}: {len(given)} pictures, and at most {most} are taken; leave some out")


def _check_one_query(asked: Asked) -> None:
    kinds = [bool(asked.parts), asked.like is not None, asked.example is not None]
    if sum(kinds) > 1:
        raise UserError("parts of a query, like and example are three kinds of query; give one of them")
    if not any(kinds):
        raise UserError(f"nothing to search for; give any of {', '.join((*IMAGE_PARTS, TEXT))}, or like, or example")
    told = [name for name in (INSTRUCTION, INSTRUCTION_IMAGE) if name in asked.texts or name in asked.pictures]
    if told and not asked.parts:
        raise UserError(f"{told[0]} is told with pictures that are sent; leave it out")
    if len(told) > 1:
        raise UserError("a query is told a text or a picture: give instruction or instruction_image, not both")


def _whole(name: str, single: Mapping[str, str], least: int, most: int | None = None) -> int | None:
    if name not in single:
        return None
    value = int(single[name]) if re.fullmatch(r"[0-9]{1,12}", single[name]) else -1
    if value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise UserError(f"{name} {single[name][:20]!r}: must be a whole number {limits}")
    return value


def _between(name: str, single: Mapping[str, str], least: float, most: float) -> float | None:
    if name not in single:
        return None
    try:
        value = float(single[name])
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise UserError(f"{name} {single[name][:20]!r}: must be a number from {least:g} to {most:g}")
    return value


def _known(single: Mapping[str, str]) -> bool | None:
    value = single.get("known", "")
    if value not in ("", "yes", "no"):
        raise UserError(f"known {value[:20]!r}: must be yes or no")
    return {"yes": True, "no": False}.get(value)


def _example(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,9})", text)
    if match is None:
        raise UserError(f"example {text[:20]!r}: must be LIST.ENTRY, two numbers as /api/examples gives them")
    return int(match[1]), int(match[2])
