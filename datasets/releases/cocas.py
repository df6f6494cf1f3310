"""COCAS+ Real2: a person image and a clothes template ask for the person in those clothes. Real1 exists as the authors'
datalists only.

Folders images/ and templates/, lists query.txt (`image template pid clothes_id camera`) and gallery.txt (`image pid
clothes_id camera`). The delimiter is not documented: comma, tab and spaces are told apart line by line. The clothes_id
of a query line is taken as that of the template, the outfit that is looked for (unconfirmed). The release has no
clothes crops and no descriptions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.vocabulary import BOX, AnnotationKind, Modality, Task
from datasets.dataset_entry import DatasetEntry
from datasets.formats.datalists import outfit_numbers, read_captions
from datasets.formats.image_folders import looks_like
from datasets.formats.listing import ImageTree, find_folder, read_lines, to_integer
from datasets.instructions import box_note
from datasets.loading.crops import BOX_TEXT
from datasets.protocols import Protocol, Search, image_source, plain_protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release, Source
from utils.errors import UserError
from utils.seeding import stream

NAME, TITLE = "cocas", "COCAS+ Real2"
FOLDERS = ("COCAS+_Real2", "COCAS_Real2", "COCAS-Real2", "Real2", "real2", "COCAS+", "COCAS-plus", "COCAS", "cocas")
QUERY_LIST, GALLERY_LIST = "query.txt", "gallery.txt"
MARKERS = ("images", "templates", QUERY_LIST, GALLERY_LIST)
DESCRIPTIONS = "runner_real2_v1_gpt.json"
TARGET, PERSON, LANGUAGE, LANGUAGE_TARGET = "cocas-target", "cocas-pid", "cocas-li", "cocas-li-target"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One line of a list. template: None in the gallery's."""

    image: str
    template: str | None
    person: int
    clothes: int
    camera: int
    where: str


def read(root: Path, options: ReadOptions) -> Release:
    """Read COCAS+ Real2: `query`, `gallery`, and with descriptions `query_li`, `gallery_li`. There is no training part.

    Persons, cameras and clothes have the numbers of the lists. A query's clothes id is that of the outfit it asks for.
    Raises UserError naming file and line.
    """
    folder = find_folder(root, FOLDERS, MARKERS, f"{TITLE} (Real1 exists as datalists only: data.dataset=omnireid)")
    tree = ImageTree(folder, options.check_files)
    lines = {"query": _read_list(folder / QUERY_LIST, 5), "gallery": _read_list(folder / GALLERY_LIST, 4)}
    outfits = outfit_numbers((line.person, line.clothes) for listed in lines.values() for line in listed)
    bases = {
        "images": _base(folder, "images", lines["gallery"][0].image),
        "templates": _base(folder, "templates", str(lines["query"][0].template)),
    }
    if options.crop != BOX:
        raise UserError(
            f"{folder}: {TITLE} ships no clothes images of its gallery; set instruction.crop=box to take the "
            f"{BOX_TEXT} of each image"
        )
    parts: dict[str, tuple[Record, ...]] = {
        part: tuple(_record(line, tree, bases, outfits) for line in listed) for part, listed in lines.items()
    }
    _refuse_repeated(parts["gallery"])
    notes = [
        _size_note(parts),
        box_note("gallery", len(parts["gallery"])),
        "no training part: Real1 exists as the authors' datalists only, which data.dataset=omnireid reads",
        "the clothes_id of a query line is taken as that of its template (unconfirmed)",
    ]
    if (folder / DESCRIPTIONS).is_file():
        parts |= _with_descriptions(
            parts, lines["gallery"], read_captions(folder / DESCRIPTIONS), folder / DESCRIPTIONS
        )
    else:
        notes.append(
            f"no descriptions: {LANGUAGE} needs {folder / DESCRIPTIONS}, a JSON object of gallery image -> description"
        )
    return Release(name=NAME, root=folder, parts=parts, notes=tuple(notes))


def _size_note(parts: Mapping[str, Sequence[Record]]) -> str:
    records = [record for listed in parts.values() for record in listed]
    images, persons, cameras = (
        len(set(values))
        for values in zip(*((image_source(record).value, record.person_id, record.camera_id) for record in records))
    )
    return (
        f"{images:,} images of {persons} persons and {cameras} cameras are listed (published for Real2: 21,319 of 101 "
        "and 11; the sizes of query and gallery are not published)"
    )


def _read_list(path: Path, columns: int) -> list[_Line]:
    found = []
    for number, text in read_lines(path, f"{TITLE}'s list"):
        where = f"{path.name} line {number}"
        fields = _fields(text)
        if len(fields) != columns:
            names = f"image{', template' if columns == 5 else ''}, pid, clothes_id, camera_id"
            raise UserError(
                f"{path} line {number}: expected {columns} fields ({names}) separated by commas, tabs or spaces, found "
                f"{len(fields)}; restore the list"
            )
        person, clothes, camera = (
            to_integer(field, f"{path} line {number}", what, low=0, high=10**6)
            for field, what in zip(fields[-3:], ("pid", "clothes_id", "camera_id"))
        )
        found.append(
            _Line(
                image=fields[0],
                template=fields[1] if columns == 5 else None,
                person=person,
                clothes=clothes,
                camera=camera,
                where=where,
            )
        )
    return found


def _fields(line: str) -> list[str]:
    if "," in line:
        return [field.strip() for field in line.split(",")]
    return [field.strip() for field in line.split("\t")] if "\t" in line else re.split(r" +", line)


def _base(folder: Path, below: str, first: str) -> str:
    """Return what the paths of a list are relative to: the data set's folder or its sub-folder, whichever has the first
    one.
    """
    return "" if os.path.exists(folder / first) or not os.path.exists(folder / below / first) else f"{below}/"


def _record(line: _Line, tree: ImageTree, bases: Mapping[str, str], outfits: Mapping[tuple[int, int], int]) -> Record:
    image = tree.source(Modality.RGB, bases["images"] + line.image, line.where)
    clothes = (
        replace(image, crop=BOX)
        if line.template is None
        else tree.source(Modality.RGB, bases["templates"] + line.template, line.where)
    )
    return Record(
        person_id=line.person,
        sources={Modality.RGB: image},
        camera_id=line.camera,
        dataset=NAME,
        task=Task.CTCC,
        name=line.where,
        clothes_id=outfits[line.person, line.clothes],
        annotations={AnnotationKind.CLOTHES: clothes},
    )


def _refuse_repeated(gallery: Iterable[Record]) -> None:
    first: dict[str, Record] = {}
    for record in gallery:
        known = first.setdefault(image_source(record).value, record)
        if known is not record:
            raise UserError(
                f"{record.name}: {image_source(record).value} is listed in {known.name} too; remove one of the lines"
            )


def _with_descriptions(
    parts: Mapping[str, Sequence[Record]], lines: Sequence[_Line], captions: Mapping[str, str], file: Path
) -> dict[str, tuple[Record, ...]]:
    """Return the parts of LI. A gallery image has its own description, a query that of an image of the outfit it asks
    for.

    That image is drawn by a generator seeded with the query's image, out of those of other cameras where there are any.
    Queries whose outfit is not in the gallery ask for nothing and are left out.
    """
    gallery, wanted = [], dict[int, list[Record]]()
    for record, line in zip(parts["gallery"], lines, strict=True):
        if line.image not in captions:
            raise UserError(
                f"{line.where}: {file} has no description of {line.image!r}; add it (key: the path as listed)"
            )
        text = Source(modality=Modality.TEXT, value=captions[line.image], record=f"{file.name}: {line.image}")
        gallery.append(replace(record, task=Task.LI, annotations={AnnotationKind.DESCRIPTION: text}))
        wanted.setdefault(record.clothes_id, []).append(gallery[-1])
    query = []
    for record in parts["query"]:
        shown = wanted.get(record.clothes_id, [])
        shown = [other for other in shown if other.camera_id != record.camera_id] or shown
        if shown:
            target = stream(NAME, Path(image_source(record).value).name, record.clothes_id).choice(shown)
            query.append(replace(record, task=Task.LI, annotations=target.annotations))
    return {"query_li": tuple(query), "gallery_li": tuple(gallery)}


def in_target_outfit(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return the records with the person in this outfit as identity.

    So a gallery image of the right person in other clothes is a wrong result: it stays in the ranking and counts
    against the query. The rule same_camera then drops only images of the right person in the right outfit in the
    query's camera. Raises UserError for a record whose clothes are unknown.
    """
    records = tuple(records)
    unknown = next((record for record in records if record.clothes_id < 0), None)
    if unknown is not None:
        raise UserError(
            f"{unknown.name}: its clothes id is unknown, and only the outfit that is asked for counts here; add it to "
            "the list, or choose another protocol with data.protocols"
        )
    return tuple(replace(record, person_id=record.clothes_id) for record in records)


def _target_searches(release: Release) -> list[Search]:
    return [
        Search(
            title=TARGET,
            protocol=TARGET,
            query=in_target_outfit(release.parts["query"]),
            gallery=in_target_outfit(release.parts["gallery"]),
            exclusion_rule="same_camera",
        )
    ]


def _language_searches(release: Release) -> list[Search]:
    return [_language_search(release, LANGUAGE)]


def _language_target_searches(release: Release) -> list[Search]:
    search = _language_search(release, LANGUAGE_TARGET)
    return [replace(search, query=in_target_outfit(search.query), gallery=in_target_outfit(search.gallery))]


def _language_search(release: Release, protocol: str) -> Search:
    if "query_li" not in release.parts:
        raise UserError(
            f"{protocol} needs descriptions, which {TITLE} does not ship: put {DESCRIPTIONS} (a JSON object: gallery "
            f"image as listed -> description) into {release.root}"
        )
    return Search(
        title=protocol,
        protocol=protocol,
        query=release.parts["query_li"],
        gallery=release.parts["gallery_li"],
        exclusion_rule="same_camera",
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.CTCC,
    read=read,
    protocols=protocol_table(
        (
            Protocol(
                name=TARGET,
                searches=_target_searches,
                summary=(
                    "image and clothes template against all gallery images; right is the person in the outfit of the "
                    "template, the same person in other clothes is a wrong result; images of the right person in the "
                    "right outfit in the query's camera are dropped; CMC over images"
                ),
            ),
            plain_protocol(
                PERSON,
                "image and clothes template against all gallery images; right is the person in any clothes, as in the "
                "released code; the same person in the same camera is dropped; CMC over images",
                exclusion_rule="same_camera",
            ),
            Protocol(
                name=LANGUAGE,
                searches=_language_searches,
                summary=(
                    "image and description of a gallery image in the wanted outfit, drawn once per query, against all "
                    "gallery images; right is the person in any clothes; the same person in the same camera is "
                    "dropped; CMC over images"
                ),
            ),
            Protocol(
                name=LANGUAGE_TARGET,
                searches=_language_target_searches,
                summary=(
                    "image and description of a gallery image in the wanted outfit, drawn once per query, against all "
                    "gallery images; right is the person in that outfit, the same person in other clothes is a wrong "
                    "result; images of the right person in the right outfit in the query's camera are dropped; CMC "
                    "over images"
                ),
            ),
        )
    ),
    default=(TARGET, PERSON),
    recognise=looks_like(FOLDERS, MARKERS),
    descriptions=DESCRIPTIONS,
    access="Page of the authors (COCAS-plus); licence terms unconfirmed. Real1 has no public download, Real2's faces "
    "are blurred (unconfirmed).",
)
