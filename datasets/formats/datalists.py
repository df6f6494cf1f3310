"""The lists of OmniReID's authors: `image instruction pid clothes_id [camera]`, single spaces, and captions in a JSON
object.

One reader for all tasks. The second field is ignored for Trad and VI, the path of a clothes image for CC and CTCC, and
a key of the captions for LI and T2I. Source: the released code; the lists themselves were not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from configs.vocabulary import BOX, AnnotationKind, Modality, Task
from datasets.formats.listing import OUTFITS, ImageTree, outfit_id, read_lines, to_integer
from datasets.loading.crops import BOX_TEXT
from datasets.modalities import MODALITIES
from datasets.structures import Record, Release, Source
from utils.errors import UserError, nearest
from utils.files import read_json, write_json, write_text

Role = Literal["train", "query", "gallery"]

GALLERY_KEY = "001_1_c5_015874.png"
"""Key in every T2I gallery line; the released evaluator takes a line with it for a gallery line and looks it up in the
captions.
"""

PLACEHOLDER = "-"
"""Second field of the tasks that have none."""

CAPTIONS_FILE = "captions.json"

AUTHORS_NAMES: dict[str, dict[str, str]] = {
    "ltcc": {"query": "query_general", "gallery": "gallery_general"},
    "prcc": {"query_changed": "query"},
    "llcm": {"test_infrared": "query", "test_visible": "gallery"},
    "cocas": {"query_li": "query_attr", "gallery_li": "gallery_attr", CAPTIONS_FILE: "runner_real2_v1_gpt.json"},
    "cuhk-pedes": {
        **{part: f"{part}_t2i_v2" for part in ("train", "query", "gallery")},
        CAPTIONS_FILE: "caption_t2i_v2.json",
    },
}
"""Data set -> part or captions -> name of the file in the authors' folder, where it is another."""

_INFRARED_NAME = re.compile(r".*_(nir|vis)\.[^.]+", re.IGNORECASE)
_INFRARED_FOLDERS = {
    "nir": Modality.NIR,
    "test_nir": Modality.NIR,
    "Thermal": Modality.NIR,
    "cam3": Modality.NIR,
    "cam6": Modality.NIR,
    "vis": Modality.RGB,
    "test_vis": Modality.RGB,
    "Visible": Modality.RGB,
    "cam1": Modality.RGB,
    "cam2": Modality.RGB,
    "cam4": Modality.RGB,
    "cam5": Modality.RGB,
}
"""Folders of LLCM, RegDB and SYSU-MM01 that tell infrared images from visible ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataList:
    """One list: its file, task and role, the part it becomes, and the JSON file of its captions (LI and T2I only)."""

    path: Path
    task: Task
    role: Role
    captions: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line. image, second: as written. clothes: the list's number. camera: -1 unknown. where: file and line."""

    image: str
    second: str
    person: int
    clothes: int
    camera: int
    where: str


def read_rows(path: Path, root: Path) -> Iterator[Row]:
    """Yield the lines of a list. root: what messages name the file relative to. Raises UserError naming file and line.

    A missing camera, and a negative one, is -1: unknown. The released code writes -1 for queries and -2 for the
    gallery, by which nothing is ever dropped; unknown on both sides is the same.
    """
    name = os.path.relpath(path, root.parent)
    for number, line in read_lines(path, "a datalist"):
        where, fields = f"{name} line {number}", line.split(" ")
        if len(fields) not in (4, 5):
            raise UserError(
                f"{where}: expected `image instruction pid clothes_id [camera]` with single spaces, found "
                f"{len(fields)} fields; correct the line (paths cannot hold spaces)"
            )
        camera = to_integer(fields[4], where, "camera", low=-2, high=10**6) if len(fields) == 5 else -1
        yield Row(
            image=fields[0],
            second=fields[1],
            person=to_integer(fields[2], where, "pid", low=0),
            where=where,
            clothes=to_integer(fields[3], where, "clothes_id"),
            camera=max(camera, -1),
        )


def outfit_numbers(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return (person, clothes as listed) -> clothes id.

    Clothes below OUTFITS are taken as they are. When any is larger, the lists count clothes over all persons: each
    person's are then numbered in ascending order. Negative clothes are unknown. Raises UserError for a person with more
    than OUTFITS.
    """
    known = sorted({(person, clothes) for person, clothes in pairs if clothes >= 0})
    if all(clothes < OUTFITS for _, clothes in known):
        return {(person, clothes): outfit_id(person, clothes) for person, clothes in known}
    numbers: dict[tuple[int, int], int] = {}
    counts: dict[int, int] = {}
    for person, clothes in known:
        numbers[person, clothes] = outfit_id(person, counts.get(person, 0))
        counts[person] = counts.get(person, 0) + 1
    return numbers


def read_captions(path: Path) -> Mapping[str, str]:
    """Return the captions of a JSON object: key -> one text. Raises UserError naming file and key."""
    content = read_json(path, "the captions")
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path}: must be an object of keys with one caption each, found {type(content).__name__}; restore it"
        )
    for key, caption in content.items():
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{path}: the caption of {key!r} is not one text; restore the file")
    return content


@dataclass(frozen=True, kw_only=True)
class ListReader:
    """Reads lists whose paths are relative to `tree.root`.

    dataset: name in every record. crop: what a clothes image that is the line's own image stands for in CTCC, `box` or
    `none`.
    """

    tree: ImageTree
    dataset: str
    crop: str = BOX

    def read(self, lists: Mapping[str, DataList]) -> dict[str, tuple[Record, ...]]:
        """Return the records of each list, in listed order; clothes are numbered over all of them. Raises UserError."""
        rows = {part: list(read_rows(datalist.path, self.tree.root)) for part, datalist in lists.items()}
        outfits = outfit_numbers((row.person, row.clothes) for listed in rows.values() for row in listed)
        captions = {
            path: read_captions(path)
            for path in dict.fromkeys(datalist.captions for datalist in lists.values())
            if path is not None
        }
        return {
            part: tuple(self._record(row, datalist, outfits, captions) for row in rows[part])
            for part, datalist in lists.items()
        }

    def _record(
        self,
        row: Row,
        datalist: DataList,
        outfits: Mapping[tuple[int, int], int],
        captions: Mapping[Path, Mapping[str, str]],
    ) -> Record:
        task = datalist.task
        image = self.tree.source(_modality(row) if task is Task.VI else Modality.RGB, row.image, row.where)
        caption = None
        if task in (Task.LI, Task.T2I) and not (
            task is Task.T2I and datalist.role == "gallery" and row.second == GALLERY_KEY
        ):
            assert datalist.captions is not None
            caption = _caption(row, datalist.captions, captions[datalist.captions])
        record = Record(
            person_id=row.person,
            sources={image.modality: image},
            camera_id=row.camera,
            dataset=self.dataset,
            task=task,
            clothes_id=outfits.get((row.person, row.clothes), -1),
            name=row.where,
        )
        if caption is not None:
            return _with_caption(record, image, caption, datalist.role)
        if task in (Task.CC, Task.CTCC):
            clothes = self._clothes(row, task, image, datalist.role)
            return record if clothes is None else replace(record, annotations={AnnotationKind.CLOTHES: clothes})
        return record

    def _clothes(self, row: Row, task: Task, image: Source, role: Role) -> Source | None:
        """The clothes image; a line that names its own image has none, so that CTCC takes the box."""
        if row.second != row.image:
            return self.tree.source(Modality.RGB, row.second, row.where)
        if task is Task.CC:
            return None
        if role == "query":
            raise UserError(
                f"{row.where}: a query needs the picture of the clothes that are looked for, but names its own image; "
                "correct the line"
            )
        if self.crop != BOX:
            raise UserError(f"{row.where}: no clothes image; set instruction.crop=box to take the {BOX_TEXT}")
        return replace(image, crop=BOX)


def _caption(row: Row, file: Path, captions: Mapping[str, str]) -> Source:
    if row.second not in captions:
        close = nearest(row.second, captions) if len(captions) < 10_000 else ""
        hint = f" ({close})" if close.startswith("did you mean") else ""
        raise UserError(f"{row.where}: no caption {row.second!r} in {file}{hint}; add it or correct the line")
    return Source(modality=Modality.TEXT, value=captions[row.second], record=row.where)


def _with_caption(record: Record, image: Source, caption: Source, role: Role) -> Record:
    described = replace(record, annotations={AnnotationKind.DESCRIPTION: caption})
    if record.task is Task.LI or role == "gallery":
        return described
    if role == "train":
        return replace(described, sources={Modality.RGB: image, Modality.TEXT: caption})
    # The described image is no part of the query; the writer needs it.
    return replace(described, sources={Modality.TEXT: caption}, partners={Modality.RGB: (image,)})


def _modality(row: Row) -> Modality:
    """Return whether an image is infrared: by the end of its file name, as LLCM's, else by the name of one of its
    folders.
    """
    path = PurePosixPath(row.image)
    named = _INFRARED_NAME.fullmatch(path.name)
    if named is not None:
        return Modality.NIR if named[1].lower() == "nir" else Modality.RGB
    folders = [_INFRARED_FOLDERS[part] for part in path.parts[:-1] if part in _INFRARED_FOLDERS]
    if not folders:
        raise UserError(
            f"{row.where}: {row.image!r} does not say whether it is infrared: its name should end in _nir or _vis, or "
            "it should lie in a folder nir or vis"
        )
    return folders[0]


def describe_gallery(query: Iterable[Record], gallery: Iterable[Record]) -> tuple[Record, ...]:
    """Return T2I gallery records with the first caption that the queries give their image, as annotation; others as
    they are.
    """
    first: dict[str, Source] = {}
    for record in query:
        for image in record.partners.get(Modality.RGB, ()):
            first.setdefault(image.value, record.annotations[AnnotationKind.DESCRIPTION])
    return tuple(
        replace(record, annotations={AnnotationKind.DESCRIPTION: first[record.sources[Modality.RGB].value]})
        if not record.annotations and record.sources[Modality.RGB].value in first
        else record
        for record in gallery
    )


def write_datalists(release: Release, folder: Path) -> list[Path]:
    """Write one list per part, `<part>.txt`, and captions.json where a part has texts; return the files written.

    The files have the authors' names where these have others (AUTHORS_NAMES). Paths are relative to the release's root:
    in the authors' folder the lists belong into its `datalist`. What the format cannot say: descriptions of T2I gallery
    images, and which crop of an image shows the clothes (the image itself is named then). A caption query names the
    image that it describes: the one listed at the same place, or else the first image of its person. Raises UserError
    for a path with spaces or outside the root, and for a caption query of a person without images.
    """
    captions: dict[str, str] = {}
    written = []
    names = AUTHORS_NAMES.get(release.name, {})
    whole = any(part.endswith("/train") for part in release.parts)
    for part, records in release.parts.items():
        if records and not (part == "train" and whole):
            lines = _Lines(release, part, captions)
            file = folder / f"{names.get(part, part)}.txt"
            write_text(file, "".join(f"{lines.line(record)}\n" for record in records))
            written.append(file)
    if captions:
        file = folder / names.get(CAPTIONS_FILE, CAPTIONS_FILE)
        write_json(file, captions)
        written.append(file)
    return written


class _Lines:
    """Lines of one part; captions collects the texts under keys of their own."""

    def __init__(self, release: Release, part: str, captions: dict[str, str]) -> None:
        self.part, self.captions = part, captions
        self._prefix = f"{release.root}{os.sep}"
        self._is_gallery = "gallery" in part.rpartition("/")[2].split("_")
        self._release = release
        self._images: dict[int | str, Source] | None = None

    def line(self, record: Record) -> str:
        """Return the line of a record."""
        image = self._path(self._image(record), record)
        clothes = record.clothes_id % OUTFITS if record.clothes_id >= 0 else -1
        fields = [image, self._second(record, image), str(record.person_id), str(clothes)]
        return " ".join(fields + ([str(record.camera_id)] if record.camera_id >= 0 else []))

    def _second(self, record: Record, image: str) -> str:
        clothes = record.annotations.get(AnnotationKind.CLOTHES)
        if record.task in (Task.CC, Task.CTCC):
            return image if clothes is None or clothes.crop else self._path(clothes, record)
        if record.task is Task.T2I and self._is_gallery:
            self.captions.setdefault(GALLERY_KEY, "gallery")
            return GALLERY_KEY
        text = record.sources.get(Modality.TEXT, record.annotations.get(AnnotationKind.DESCRIPTION))
        if record.task in (Task.LI, Task.T2I):
            if text is None:
                raise UserError(
                    f"{record.name}: no caption, which a list of task {record.task.value} needs; the lists cannot be "
                    "written"
                )
            return self._key(image, text.value)
        return PLACEHOLDER

    def _key(self, image: str, caption: str) -> str:
        key, number = image, 1
        while self.captions.setdefault(key, caption) != caption:
            number += 1
            key = f"{image}#{number}"
        return key

    def _image(self, record: Record) -> Source:
        images = [source for modality, source in record.sources.items() if MODALITIES[modality].is_image]
        if images:
            return images[0]
        described = record.partners.get(Modality.RGB, ())
        if described:
            return described[0]
        if self._images is None:
            self._images = _first_images(self._release.parts.values())
        found = self._images.get(record.name) or self._images.get(record.person_id)
        if found is None:
            raise UserError(
                f"{record.name}: person {record.person_id} has a caption but no image, so no line of a list can be "
                "written for it"
            )
        return found

    def _path(self, source: Source, record: Record) -> str:
        if not source.value.startswith(self._prefix):
            raise UserError(
                f"{record.name}: {source.value} does not lie in {self._prefix}; lists hold paths relative to it"
            )
        path = source.value[len(self._prefix) :].replace(os.sep, "/")
        if re.search(r"\s", path):
            raise UserError(
                f"{record.name}: the path {path!r} holds a space, which the lists cannot write; rename the file or "
                "folder"
            )
        return path


def _first_images(parts: Iterable[Sequence[Record]]) -> dict[int | str, Source]:
    """Return the first image by place in a list and by person."""
    found: dict[int | str, Source] = {}
    for records in parts:
        for record in records:
            for modality, source in record.sources.items():
                if MODALITIES[modality].is_image:
                    found.setdefault(record.name, source)
                    found.setdefault(record.person_id, source)
    return found
