"""A user's own data, listed in a CSV or JSONL file; no code to write.

Columns: `path` (relative to the manifest's folder, or absolute), `person` (any text), and optionally `camera`,
`clothes` (any text), `modality` (rgb, nir, cp, sk, text; default rgb), `caption`, `split` (train, val, query, gallery,
test), `task` (trad, cc, ctcc, vi, li, t2i; default vi for nir, t2i with a caption, else trad) and `clothes_image`, the
picture of clothes of cc and ctcc. Under li the caption describes what is looked for, and is part of no search by
itself.

| row | becomes |
|---|---|
| train | a training record of the image, together with the caption where there is one; one row per caption |
| query | a query by the image; with modality text, the caption and no path: a query by the caption |
| gallery | an image that is searched; its caption becomes the annotation `description` |
| test, val | a query and a gallery image: leave-one-out, the evaluation drops a query's own image; text rows are
queries only |

Without a split column every image is trained on and tested leave-one-out, and a note says so. A person with one test
image is no leave-one-out query. Non-RGB images of `test` and `val` rows are queries only, for the gallery is of visible
images; where such rows hold no RGB image at all they are both. Persons, cameras and clothes are numbered in sorted
order of the texts over the whole file; clothes count within a person.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from configs.vocabulary import GROUP_NAMES, AnnotationKind, Modality, Task
from datasets.dataset_entry import DatasetEntry
from datasets.formats.listing import OUTFITS, outfit_id, require_image_suffix
from datasets.formats.manifest_rows import SUFFIXES, ManifestRow, read_manifest
from datasets.mixed_queries import drawn_searches, query_modalities
from datasets.protocols import Protocol, Search, protocol_table
from datasets.structures import ReadOptions, Record, Release, Source
from utils.errors import UserError
from utils.folder_names import FolderNames
from utils.retrieval.exclusion import get_rule

PARTS = ("train", "query", "gallery", "val_query", "val_gallery")
NO_SPLIT = (
    "no split is given: every image is trained on and searched, so the figures are not of unseen persons; make one "
    "with python -m datasets.split"
)


def read(root: Path, options: ReadOptions) -> Release:
    """Return the release of the manifest at `root`. Raises UserError naming file and line."""
    return release_of_rows("manifest", root, root.parent, read_manifest(root), options)


def release_of_rows(name: str, root: Path, folder: Path, rows: Sequence[ManifestRow], options: ReadOptions) -> Release:
    """Return the release of rows whose relative paths start at `folder`. root: named in messages.

    Raises UserError for an image that does not exist or that stands in two places that exclude each other.
    """
    numbers = _Numbers.of(rows)
    names = FolderNames()
    listed = Listed()
    parts: dict[str, list[Record]] = {part: [] for part in PARTS}
    for row in rows:
        source = row_image(row, folder, names, required=options.check_files) if row.path else None
        if source is not None:
            listed.add(source.value, row)
        shown = replace(row, path=row.clothes_image, modality=Modality.RGB)
        clothes = row_image(shown, folder, names, required=options.check_files) if shown.path else None
        for part in _parts_of(row):
            if part == "train" or source is None or listed.is_new(source.value, part, row):
                parts[part].append(_record(row, source, clothes, numbers, name, part))
    notes = _leave_one_out(rows, parts)
    if not any(row.split for row in rows):
        notes.insert(0, NO_SPLIT)
    if options.need_train and not parts["train"]:
        raise UserError(f"{root}: no training image; give rows the split train, or only evaluate with test.py")
    kept = {part: tuple(records) for part, records in parts.items() if records}
    return Release(
        name=name,
        root=folder,
        parts=kept,
        notes=(*notes, *_camera_notes(rows)),
        shared_persons=not any(row.split for row in rows),
        person_names={number: name for name, number in numbers.persons.items()},
    )


@dataclass(frozen=True)
class _Numbers:
    """Texts of a manifest -> integers, by sorted order."""

    persons: Mapping[str, int]
    cameras: Mapping[str, int]
    clothes: Mapping[tuple[str, str], int]

    @classmethod
    def of(cls, rows: Sequence[ManifestRow]) -> _Numbers:
        """Number persons, cameras, and the clothes of each person."""
        persons = {person: number for number, person in enumerate(sorted({row.person for row in rows}))}
        cameras = {camera: number for number, camera in enumerate(sorted({row.camera for row in rows if row.camera}))}
        clothes: dict[tuple[str, str], int] = {}
        worn: Counter[str] = Counter()
        for person, outfit in sorted({(row.person, row.clothes) for row in rows if row.clothes}):
            if worn[person] >= OUTFITS:
                raise UserError(
                    f"person {person!r} wears more than {OUTFITS} different clothes; correct the column clothes"
                )
            clothes[person, outfit] = outfit_id(persons[person], worn[person])
            worn[person] += 1
        return cls(persons, cameras, clothes)


def row_image(row: ManifestRow, folder: Path, names: FolderNames, *, required: bool = True) -> Source:
    """Return the image of a row, which may lie anywhere, as it is called there: see `FolderNames.find`.

    required: raise for a file that is absent; else it keeps the path of the row.
    """
    path = os.path.normpath(os.path.join(folder, row.path))
    require_image_suffix(row.path, row.where)
    found = names.find(path) if required or not path.isascii() else path
    if found is None and required:
        raise UserError(f"{row.where}: no such image: {path}; correct the path (it counts from the manifest's folder)")
    return Source(modality=row.modality, value=found or path, record=row.where)


@dataclass
class Listed:
    """Where each image was listed, to refuse what cannot be meant."""

    first: dict[str, ManifestRow] = field(default_factory=dict)
    told: set[tuple[str, Told]] = field(default_factory=set)
    taken: dict[str, set[tuple[str, Told]]] = field(default_factory=dict)

    def add(self, path: str, row: ManifestRow) -> None:
        """Note a row. Raises UserError for two persons, or train and test, in one image."""
        before = self.first.setdefault(path, row)
        if before.person != row.person:
            raise UserError(
                f"{row.where}: {row.path} shows {row.person!r}, but {before.where} says {before.person!r}; one image "
                "has one person"
            )
        if before.modality is not row.modality:
            raise UserError(
                f"{row.where}: {row.path} is {row.modality.value}, but {before.where} says {before.modality.value}; "
                "correct one of the rows"
            )
        if before.split != row.split and {before.split, row.split} != {"query", "gallery"}:
            raise UserError(
                f"{row.where}: {row.path} is in {row.split}, but {before.where} puts it in {before.split}; an image "
                "belongs to one split"
            )
        told = path, _told(row)
        repeated = told in self.told
        self.told.add(told)
        if repeated and before.split == row.split and not row.caption:
            raise UserError(f"{row.where}: {row.path} is listed again, first in {before.where}; remove one row")

    def is_new(self, path: str, part: str, row: ManifestRow) -> bool:
        """Return whether an image enters a part for the first time: with several captions it is searched once, and asks
        once for each thing that it is told.
        """
        taken = self.taken.setdefault(path, set())
        entry = part, _told(row) if part.endswith("query") else NOTHING_TOLD
        if entry in taken:
            return False
        taken.add(entry)
        return True


Told = tuple["Task | None", str, str]
NOTHING_TOLD: Told = (None, "", "")


def _told(row: ManifestRow) -> Told:
    """Return what tells two rows of one image apart as queries: task, picture of clothes, description."""
    return row.task, row.clothes_image, row.caption if row.task is Task.LI else ""


def _parts_of(row: ManifestRow) -> tuple[str, ...]:
    split, text = row.split, row.modality is Modality.TEXT
    if split == "":
        return ("query",) if text else ("train", "query", "gallery")
    if split in ("test", "val"):
        prefix = "val_" if split == "val" else ""
        return (f"{prefix}query",) if text else (f"{prefix}query", f"{prefix}gallery")
    return (split,)


def _task(row: ManifestRow) -> Task:
    if row.task is not None:
        return row.task
    if row.modality is Modality.NIR:
        return Task.VI
    return Task.T2I if row.caption else Task.TRAD


def _record(
    row: ManifestRow, source: Source | None, clothes: Source | None, numbers: _Numbers, name: str, part: str
) -> Record:
    caption = Source(modality=Modality.TEXT, value=row.caption, record=row.where) if row.caption else None
    sources = {} if source is None else {row.modality: source}
    if caption is not None and (source is None or (part == "train" and row.task is not Task.LI)):
        sources[Modality.TEXT] = caption
    annotations = {AnnotationKind.CLOTHES: clothes, AnnotationKind.DESCRIPTION: caption}
    return Record(
        person_id=numbers.persons[row.person],
        sources=sources,
        camera_id=numbers.cameras.get(row.camera, -1),
        clothes_id=numbers.clothes.get((row.person, row.clothes), -1),
        dataset=name,
        task=_task(row),
        name=row.where,
        annotations={kind: known for kind, known in annotations.items() if known is not None},
    )


def _leave_one_out(rows: Sequence[ManifestRow], parts: dict[str, list[Record]]) -> list[str]:
    """Take out of leave-one-out parts what cannot be meant; return notes."""
    notes = []
    by_name = {row.where: row for row in rows}
    for prefix, splits in (("", ("test", "")), ("val_", ("val",))):
        queries, gallery = parts[f"{prefix}query"], parts[f"{prefix}gallery"]
        if any(Modality.RGB in record.sources for record in gallery):
            # Infrared images and drawings look for visible images.
            gallery[:] = [
                record
                for record in gallery
                if Modality.RGB in record.sources or by_name[record.name].split not in splits
            ]
        places = Counter(record.person_id for record in gallery)
        searched = {image.value for record in gallery for image in record.sources.values()}
        alone = {
            record.name
            for record in queries
            if by_name[record.name].split in splits
            and places[record.person_id] == 1
            and any(image.value in searched for image in record.sources.values())
        }
        queries[:] = [record for record in queries if record.name not in alone]
        if alone:
            notes.append(
                f"{len(alone)} {prefix}test images are in the gallery only: they are their person's only one, so that "
                f"as queries they could find nothing ({', '.join(sorted(alone)[:3])})"
            )
    return notes


def _camera_notes(rows: Sequence[ManifestRow]) -> list[str]:
    images = [row for row in rows if row.path]
    known = sum(bool(row.camera) for row in images)
    if not known:
        return ["no cameras are given: no camera rule is applied, so images of one camera shot may find each other"]
    if known < len(images):
        return [f"{len(images) - known} of {len(images)} images have no camera: the camera rule never drops them"]
    return []


def has_cameras(records: Iterable[Record]) -> bool:
    """Return whether any record's camera is known."""
    return any(record.camera_id >= 0 for record in records)


_RULES: dict[str, tuple[str, str]] = {
    "own-data/same-camera": ("same_camera", "the same person in the same camera is dropped"),
    "own-data/no-camera-rule": ("none", "nothing is dropped"),
    "own-data/other-clothes": (
        "same_camera_or_clothes",
        "the same person in the same camera or the same clothes is dropped",
    ),
    "own-data/other-clothes-no-camera-rule": ("same_clothes", "the same person in the same clothes is dropped"),
}
"""Protocol -> rule, and the rule in words."""
MIXED = "own-data/mixed"
MIXED_SEED = 20250611
"""Fixed, so that every run is tested by the same queries."""
_NEEDS = {"cameras": ("camera", "camera_id"), "clothes": ("clothes", "clothes_id")}


def _searches(name: str, release: Release) -> list[Search]:
    query, gallery = (release.parts.get(part, ()) for part in ("query", "gallery"))
    if not query or not gallery:
        raise UserError(
            f"{release.root}: no {'gallery' if query else 'query'} images for {name}; give rows the splits query and "
            "gallery, or test"
        )
    rule = _RULES[name][0]
    for need in get_rule(rule).needs:
        column, label = _NEEDS[need]
        if not any(getattr(record, label) >= 0 for record in query):
            raise UserError(f"{release.root}: {name} needs the column {column}; add it or choose own-data")
    return [Search(title=name, protocol=name, query=query, gallery=gallery, exclusion_rule=rule)]


def _own_data(release: Release) -> list[Search]:
    known = all(has_cameras(release.parts.get(part, ())) for part in ("query", "gallery"))
    chosen = _searches("own-data/same-camera" if known else "own-data/no-camera-rule", release)
    return [*chosen, *_mixed(release)]


def _mixed(release: Release) -> list[Search]:
    """Queries of two and more modalities, drawn from the test's queries as ORBench's are; empty where there are no two.

    No camera rule: the sources of one query come from several cameras.
    """
    queries = [record for record in release.parts["query"] if Modality.RGB not in record.sources]
    if len(query_modalities(queries)) < 2:
        return []
    gallery = [record for record in release.parts["gallery"] if Modality.RGB in record.sources]
    # The records themselves are searched, so that an image is one item under both protocols.
    return [
        replace(search, gallery=gallery)
        for search in drawn_searches([*queries, *gallery], MIXED, MIXED_SEED, smallest=2)
    ]


def _mixed_alone(release: Release) -> list[Search]:
    # Raises where there are no queries or no gallery.
    _searches("own-data/no-camera-rule", release)
    found = _mixed(release)
    if not found:
        raise UserError(
            f"{release.root}: {MIXED} needs queries of two modalities of one person that are not rgb; add such rows or "
            "choose own-data"
        )
    return found


def own_protocols() -> dict[str, Protocol]:
    """Return the protocols of a user's own data by name; `own-data` is stamped as the one of the others that it
    chooses.
    """
    chosen = Protocol(
        name="own-data",
        searches=_own_data,
        summary="own-data/same-camera where cameras are known, else own-data/no-camera-rule; with queries of several "
        f"modalities {MIXED} as well",
    )
    mixed = Protocol(
        name=MIXED,
        searches=_mixed_alone,
        summary="queries of two and more modalities of one person, partners drawn as ORBench's with a fixed seed, "
        "against the visible gallery; nothing is dropped; CMC by image",
        groups=tuple(GROUP_NAMES.values()),
    )
    others = [
        Protocol(
            name=name, summary=f"queries against the gallery, {words}; CMC by image", searches=partial(_searches, name)
        )
        for name, (_, words) in _RULES.items()
    ]
    return protocol_table([chosen, *others, mixed])


def _recognise(root: Path) -> bool:
    if root.suffix.lower() not in SUFFIXES or not root.is_file():
        return False
    with root.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline(1 << 16)
    if root.suffix.lower() == ".csv":
        names = {cell.strip().lower() for cell in next(csv.reader(io.StringIO(first)), [])}
    else:
        try:
            entry = json.loads(first)
        except ValueError:
            return False
        names = set(entry) if isinstance(entry, dict) else set()
    return {"path", "person"} <= names


DATASET = DatasetEntry(
    name="manifest",
    title="Own data (manifest)",
    task=Task.TRAD,
    read=read,
    protocols=own_protocols(),
    default=("own-data",),
    recognise=_recognise,
    own=True,
    access="Your own images; their licence is yours to know.",
)
