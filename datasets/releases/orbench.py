"""Reader of the official ORBench layout. Annotations only: no pixels, no tensors, no randomness of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from configs.vocabulary import GROUP_NAMES, ORBENCH_KEYS, AnnotationKind, Combination, Modality, Task, combination_name
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.listing import ImageTree, find_folder
from datasets.mixed_queries import mixed_search, query_record
from datasets.modalities import MODALITIES
from datasets.overlap import image_values
from datasets.protocols import Protocol, Search, protocol_table
from datasets.structures import ReadOptions, Record, Release, Source
from datasets.validation import mixed_validation
from utils.errors import UserError
from utils.files import read_json

NAME = "orbench"
TITLE = FOLDER = "ORBench"
TRAIN_FILE = "train_annos.json"
TEST_FILE = "test_gallery_and_queries.json"
CAPTIONS_FILE = "gallery_captions.json"
TRAIN, GALLERY = "train", "gallery"
GALLERY_KEY = "RGB_GALLERY"
SHOWN = 120
PARTNERS = (Modality.NIR, Modality.CP, Modality.SK)
LISTS: dict[str, Combination] = {combination_name(key): key for key in ORBENCH_KEYS}
"""Name of each query list -> its modalities, in the order of the reference's table."""


@dataclass
class _Tree:
    """Files below ORBench/. A path that many query lists share is one Source, whose record is the first place it stands
    at."""

    images: ImageTree
    known: dict[tuple[Modality, str], Source] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder ORBench/."""
        return self.images.root

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names of the image files in a folder relative to ORBench/; empty when there is no such folder."""
        return self.images.names(folder) if (self.root / folder).is_dir() else ()

    def source(self, modality: Modality, relative: Any, record: str) -> Source:
        """Return the image source of a path relative to ORBench/. Raises UserError naming the record."""
        if not isinstance(relative, str) or not relative or "\0" in relative:
            raise UserError(f"{record}: {_shown(relative)} is not an image path; correct it")
        if (modality, relative) in self.known:
            return self.known[modality, relative]
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 3:
            raise UserError(
                f"{record}: image path {_shown(relative)} must have the form <modality>/<folder>/<name> inside "
                f"{FOLDER}/; correct it"
            )
        if path.parts[0] != MODALITIES[modality].folder:
            raise UserError(
                f"{record}: image path {_shown(relative)} must lie in {MODALITIES[modality].folder}/, it is a "
                f"{modality.name} item; correct it"
            )
        return self.known.setdefault((modality, relative), self.images.source(modality, relative, record))


@dataclass(frozen=True, kw_only=True)
class _Annotation:
    person: int
    folder: str
    image: Source
    caption: Source


def read(root: Path, options: ReadOptions) -> Release:
    """Read ORBench/ below `root`: parts `train`, `gallery`, and one for each query list, named as the list.

    Records of a query list hold the sources of one mixed query, in the order of the list's name; training records hold
    image and caption, and the NIR, CP and SK images of their identity's folder as partners. Without need_train,
    train_annos.json is only compared with the test lists, and may be absent. Raises UserError naming file, entry or
    key for everything that does not fit the layout.
    """
    folder = find_folder(root, (FOLDER,), (TEST_FILE,), TITLE)
    tree = _Tree(ImageTree(folder, options.check_files))
    notes: list[str] = []
    annotations: list[_Annotation] = []
    if options.need_train or (folder / TRAIN_FILE).is_file():
        annotations = _read_train(tree if options.need_train else _Tree(ImageTree(folder, check=False)))
    else:
        notes.append(f"{TRAIN_FILE} is absent: whether test identities were trained on cannot be checked")
    parts, missing = _read_test(tree, notes)
    owners = _owners(folder, parts)
    _check_overlap(annotations, owners)
    train = _records(tree, annotations) if options.need_train else ()
    return Release(
        name=NAME, root=folder, parts={TRAIN: train, **parts} if train else parts, notes=tuple(notes), missing=missing
    )


def _shown(value: Any) -> str:
    """Return a value from a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _read_train(tree: _Tree) -> list[_Annotation]:
    path = tree.root / TRAIN_FILE
    content = read_json(path, "the training annotations of ORBench")
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: must be a list of annotations, found {_kind(content)}; restore the original file")
    annotations = [_annotation(tree, listed, f"{TRAIN_FILE} entry {index}") for index, listed in enumerate(content)]
    owner: dict[str, int] = {}
    for index, annotation in enumerate(annotations):
        if owner.setdefault(annotation.folder, annotation.person) != annotation.person:
            raise UserError(
                f"{TRAIN_FILE} entry {index}: folder {annotation.folder} belongs to id {owner[annotation.folder]} and "
                f"to id {annotation.person}; one folder holds one identity, correct one of the entries"
            )
    if len({entry.person for entry in annotations}) < 2:
        raise UserError(
            f"{path}: one training identity only (id {annotations[0].person}); at least two are needed, restore the "
            "original file"
        )
    return annotations


def _annotation(tree: _Tree, annotation: Any, record: str) -> _Annotation:
    if not isinstance(annotation, dict):
        raise UserError(
            f"{record}: must be an object with id, file_path and caption, found {_kind(annotation)}; correct it"
        )
    for key in ("id", "file_path", "caption"):
        if key not in annotation:
            raise UserError(f"{record}: key {key!r} is missing; restore the original file")
    person = _integer(annotation["id"])
    if person is None:
        raise UserError(f"{record}: id = {_shown(annotation['id'])} is not a whole number; correct it")
    if not isinstance(annotation["caption"], str):
        raise UserError(f"{record}: caption must be a text, found {_kind(annotation['caption'])}; correct it")
    image = tree.source(Modality.RGB, annotation["file_path"], record)
    return _Annotation(
        person=person,
        folder=PurePosixPath(annotation["file_path"]).parts[1],
        image=image,
        caption=Source(modality=Modality.TEXT, value=annotation["caption"], record=record),
    )


def _partners(tree: _Tree, folder: str, record: str) -> dict[Modality, tuple[Source, ...]]:
    partners = {}
    for modality in PARTNERS:
        below = f"{MODALITIES[modality].folder}/{folder}"
        names = tree.names(below)
        if not names:
            raise UserError(
                f"{record}: identity folder {folder} has no {modality.name} images in {tree.root / below}; every "
                "training identity needs NIR, CP and SK partners, restore the folder"
            )
        partners[modality] = tuple(
            Source(modality=modality, value=str(tree.root / below / name), record=record) for name in names
        )
    return partners


def _records(tree: _Tree, annotations: list[_Annotation]) -> tuple[Record, ...]:
    partners: dict[str, Mapping[Modality, tuple[Source, ...]]] = {}
    for annotation in annotations:
        if annotation.folder not in partners:
            partners[annotation.folder] = _partners(tree, annotation.folder, annotation.image.record)
    return tuple(
        Record(
            person_id=annotation.person,
            sources={Modality.RGB: annotation.image, Modality.TEXT: annotation.caption},
            partners=partners[annotation.folder],
            dataset=NAME,
            name=annotation.image.record,
        )
        for annotation in annotations
    )


def _searches(release: Release) -> list[Search]:
    return [
        mixed_search(key, release.parts[name], release.parts[GALLERY], NAME, repeated_items=True)
        for name, key in LISTS.items()
        if name in release.parts
    ]


def _record(person: int, sources: tuple[Source, ...]) -> Record:
    found = query_record(person, sources, NAME)
    # What a query asks for at a threshold is its caption.
    text = found.sources.get(Modality.TEXT)
    return found if text is None else replace(found, annotations={AnnotationKind.DESCRIPTION: text})


def _read_test(tree: _Tree, notes: list[str]) -> tuple[dict[str, tuple[Record, ...]], dict[str, str]]:
    """Return the gallery and the query lists as parts, and the absent lists with their row of averages."""
    path = tree.root / TEST_FILE
    content = read_json(path, "the test gallery and query lists of ORBench")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: must be an object with {GALLERY_KEY} and the query lists, found {_kind(content)}; restore the "
            "original file"
        )
    if not content.get(GALLERY_KEY):
        raise UserError(
            f"{path}: key {GALLERY_KEY} is missing or empty; without a gallery nothing can be searched, restore it"
        )
    unknown = sorted(set(content) - set(LISTS) - {GALLERY_KEY})
    if unknown:
        notes.append(f"{TEST_FILE}: {len(unknown)} unknown keys are ignored: {', '.join(unknown[:5])}")
    parts = {GALLERY: _rows(tree, GALLERY_KEY, (Modality.RGB,), content[GALLERY_KEY])}
    parts |= {name: _rows(tree, name, key, content[name]) for name, key in LISTS.items() if name in content}
    parts[GALLERY] = _captioned(tree, parts[GALLERY], parts.get(Modality.TEXT.name, ()), notes)
    missing = {name: GROUP_NAMES[len(key)] for name, key in LISTS.items() if name not in content}
    if len(missing) == len(LISTS):
        raise UserError(
            f"{path}: holds none of the {len(LISTS)} query lists (NIR, CP, ..., TEXT+NIR+CP+SK); restore the original"
        )
    if missing:
        notes.append(f"{TEST_FILE}: {len(missing)} of {len(LISTS)} query lists are missing: {', '.join(missing)}")
    return parts, missing


def _captioned(
    tree: _Tree, gallery: tuple[Record, ...], texts: tuple[Record, ...], notes: list[str]
) -> tuple[Record, ...]:
    """Return the gallery with the caption of each image, for mAP at a threshold: those of gallery_captions.json, else
    the TEXT list's where it goes through the same persons in the same order; without either a note says so.
    """
    captions = _own_captions(tree, gallery)
    if captions is None and [entry.person_id for entry in texts] == [image.person_id for image in gallery]:
        captions = [entry.sources[Modality.TEXT] for entry in texts]
    if captions is None:
        if texts:
            notes.append(
                f"captions of the gallery images are unknown, so that there is no mAP@tau: the TEXT list and "
                f"{GALLERY_KEY} do not name the same persons in the same order, and {CAPTIONS_FILE} is absent"
            )
        return gallery
    return tuple(
        replace(image, annotations={AnnotationKind.DESCRIPTION: caption})
        for image, caption in zip(gallery, captions, strict=True)
    )


def _own_captions(tree: _Tree, gallery: tuple[Record, ...]) -> list[Source] | None:
    """Return the captions of gallery_captions.json, path of an image -> caption; None without such a file."""
    path = tree.root / CAPTIONS_FILE
    if not path.is_file():
        return None
    content = read_json(path, "captions of ORBench's gallery images")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: must be an object with a caption for each image path, found "
            f"{_kind(content)}; correct it or remove the file"
        )
    captions = []
    for image in gallery:
        name = Path(image.sources[Modality.RGB].value).relative_to(tree.root).as_posix()
        if not isinstance(content.get(name), str):
            raise UserError(f"{path}: has no caption for the gallery image {name}; add it or remove the file")
        captions.append(Source(modality=Modality.TEXT, value=content[name], record=f"{CAPTIONS_FILE} {name}"))
    return captions


def _rows(tree: _Tree, name: str, key: Combination, rows: Any) -> tuple[Record, ...]:
    if not isinstance(rows, list):
        raise UserError(f"{TEST_FILE} key {name}: must be a list of entries, found {_kind(rows)}; restore the original")
    return tuple(_row(tree, f"{TEST_FILE} {name} entry {index}", key, row) for index, row in enumerate(rows))


def _row(tree: _Tree, record: str, key: Combination, row: Any) -> Record:
    if not isinstance(row, list) or len(row) != len(key) + 1:
        raise UserError(
            f"{record}: must be a list of a person id and {len(key)} item(s) ({combination_name(key)}), found "
            f"{_shown(row)}; correct it"
        )
    person = _integer(row[0])
    if person is None:
        raise UserError(f"{record}: person id {_shown(row[0])} is not a whole number; correct it")
    return _record(person, tuple(_item(tree, modality, value, record) for modality, value in zip(key, row[1:])))


def _item(tree: _Tree, modality: Modality, value: Any, record: str) -> Source:
    # The key's modality decides what an item is: a caption that mentions ".jpg" is a caption.
    if MODALITIES[modality].is_image:
        return tree.source(modality, value, record)
    if not isinstance(value, str):
        raise UserError(f"{record}: the caption must be a text, found {_kind(value)}; correct it")
    return Source(modality=modality, value=value, record=record)


def _owners(root: Path, parts: Mapping[str, tuple[Record, ...]]) -> dict[str, Record]:
    """Return the first record of each identity folder of the test lists. Raises UserError for a folder whose images
    they give to two persons.
    """
    owners: dict[str, Record] = {}
    for records in parts.values():
        for record in records:
            for image in image_values([record]):
                folder = Path(image).relative_to(root).parts[1]
                first = owners.setdefault(folder, record)
                if first.person_id != record.person_id:
                    raise UserError(
                        f"{_place(record)}: {image} is of person {record.person_id}, but its folder {folder} belongs "
                        f"to person {first.person_id} in {_place(first)}; one folder holds one identity, correct one"
                    )
    return owners


def _place(record: Record) -> str:
    return next(source.record for source in record.sources.values())


def _check_overlap(annotations: list[_Annotation], owners: Mapping[str, Record]) -> None:
    """Raise UserError for an identity folder of both sides: persons are numbered anew in the test lists."""
    shared = sorted({annotation.folder for annotation in annotations} & owners.keys())
    if shared:
        raise UserError(
            f"{len(shared)} identity folders are in train and in test, for instance {shared[0]}; training and test "
            f"identities must not overlap: correct {TRAIN_FILE} or {TEST_FILE}"
        )


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value) else None
    return value if value is not None and abs(value) < 2**63 else None


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        type(None): "null",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__) + (" without entries" if value in ({}, []) else "")


def _recognise(root: Path) -> bool:
    return any((folder / TEST_FILE).is_file() for folder in (root, root / FOLDER))


PUBLISHED = {
    TRAIN: Count(
        images=27063,
        persons=600,
        partners={Modality.NIR: 15646, Modality.CP: 10800, Modality.SK: 10800},
        confirmed=False,
    ),
    GALLERY: Count(images=18050, persons=400, confirmed=False),
    "NIR": Count(images=10425, confirmed=False),
    "CP": Count(images=7200, confirmed=False),
    "SK": Count(images=7200, confirmed=False),
    "TEXT": Count(images=18050, confirmed=False),
}
"""Identities from the licence agreement; the rest follows from published totals and from the percentages of the
authors' result table, whose denominators they are."""

DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.ORB,
    read=read,
    protocols=protocol_table(
        [
            Protocol(
                name=NAME,
                summary="RGB gallery, no exclusion",
                searches=_searches,
                groups=tuple(GROUP_NAMES.values()),
            )
        ]
    ),
    default=(NAME,),
    recognise=_recognise,
    published={"": PUBLISHED},
    separate_ids=True,
    validation=partial(mixed_validation, repeated_items=True),
    access="Signed agreement to HUST; academic use only, no forwarding.",
)
