"""What the caption data sets share: a JSON list of images with captions, one record per caption in training, every
caption a query.

A training record has the image (RGB) and one caption (TEXT). A query is one caption, a gallery item one image. The
annotation of kind description is a query's own caption, a training record's own caption, and a gallery image's FIRST
caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.vocabulary import AnnotationKind, Modality, Task
from datasets.formats.listing import ImageTree, require_some
from datasets.protocols import Protocol, plain_protocol
from datasets.structures import Record, Release, Source
from utils.errors import UserError, nearest
from utils.files import read_json

SPLITS = ("train", "val", "test")
SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionLayout:
    """How one caption data set is laid out.

    images: folder that the paths are relative to, empty = the data set's own. path_key: key of the path. splits:
    entries name their split; without, all of them are training entries.
    """

    name: str
    images: str = "imgs"
    path_key: str = "file_path"
    splits: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One listed image. path: relative to the data set's folder. where: file and entry."""

    person: int
    split: str
    path: str
    captions: tuple[str, ...]
    where: str


@dataclass
class _Parts:
    """Records of the parts while entries arrive. owners: person and place of every image seen so far."""

    tree: ImageTree
    name: str
    records: dict[str, list[Record]] = field(default_factory=dict)
    owners: dict[str, tuple[int, str]] = field(default_factory=dict)
    repeated: int = 0

    def add(self, entry: CaptionedImage) -> None:
        """Add an image with its captions. Raises UserError when it is listed with another person before."""
        person, where = self.owners.setdefault(entry.path, (entry.person, entry.where))
        if person != entry.person:
            raise UserError(
                f"{entry.where}: {entry.path} shows person {entry.person} here and {person} in {where}; correct one of "
                "them"
            )
        image = self.tree.source(Modality.RGB, entry.path, entry.where)
        captions = [Source(modality=Modality.TEXT, value=caption, record=entry.where) for caption in entry.captions]
        if entry.split == "train":
            self._extend(
                "train",
                [self._record(entry, {Modality.RGB: image, Modality.TEXT: caption}, caption) for caption in captions],
            )
            return
        prefix = "val_" if entry.split == "val" else ""
        self._extend(f"{prefix}query", [self._record(entry, {Modality.TEXT: caption}, caption) for caption in captions])
        if where == entry.where:
            self._extend(f"{prefix}gallery", [self._record(entry, {Modality.RGB: image}, captions[0])])
        else:
            self.repeated += 1

    def _extend(self, part: str, records: Iterable[Record]) -> None:
        self.records.setdefault(part, []).extend(records)

    def _record(self, entry: CaptionedImage, sources: Mapping[Modality, Source], description: Source) -> Record:
        return Record(
            person_id=entry.person,
            sources=sources,
            dataset=self.name,
            task=Task.T2I,
            annotations={AnnotationKind.DESCRIPTION: description},
            name=entry.where,
        )


def read_entries(path: Path, layout: CaptionLayout) -> Iterator[CaptionedImage]:
    """Yield the entries of an annotation file. Raises UserError naming file and entry for everything that is not as it
    should be.
    """
    content = read_json(path, "the captions")
    if not isinstance(content, list) or not content:
        raise UserError(
            f"{path}: must be a list of images with captions, found {type(content).__name__}; restore it from the "
            "original release"
        )
    for index, entry in enumerate(content):
        yield _entry(entry, f"{path.name} entry {index}", layout)


def _entry(entry: Any, where: str, layout: CaptionLayout) -> CaptionedImage:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be an object with keys, found {_shown(entry)}; restore the annotation file")
    for key in ("id", layout.path_key, "captions", *(("split",) if layout.splits else ())):
        if key not in entry:
            raise UserError(
                f"{where}: no key {key!r}, there are {', '.join(map(repr, sorted(entry)))}; use the annotation file of "
                "the original release"
            )
    person, path, captions = entry["id"], entry[layout.path_key], entry["captions"]
    if isinstance(person, bool) or not isinstance(person, int) or not 0 <= person < 2**31:
        raise UserError(f"{where}: id = {_shown(person)} is not a whole number from 0; correct it")
    if not isinstance(path, str) or not path:
        raise UserError(f"{where}: {layout.path_key} = {_shown(path)} is not a path; correct it")
    if path.startswith("/"):
        raise UserError(f"{where}: {path!r} is not a path inside the data set's folder; it must be relative")
    split = str(entry["split"]).strip().lower() if layout.splits else "train"
    if split not in SPLITS:
        raise UserError(f"{where}: split = {_shown(entry['split'])}: {nearest(split, SPLITS)}")
    return CaptionedImage(
        person=person,
        split=split,
        path=f"{layout.images}/{path}" if layout.images else path,
        captions=check_captions(captions, where),
        where=where,
    )


def check_captions(captions: Any, where: str) -> tuple[str, ...]:
    """Return the captions of an entry. Raises UserError for a list that is empty or holds anything but text."""
    if not isinstance(captions, list) or not captions:
        raise UserError(f"{where}: captions = {_shown(captions)} is not a list of at least one caption; correct it")
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise UserError(f"{where}: caption {_shown(caption)} is not a text; correct it")
    return tuple(captions)


def build_release(
    layout: CaptionLayout, tree: ImageTree, entries: Iterable[CaptionedImage], need_train: bool
) -> Release:
    """Return the release of the entries. need_train: False leaves out all but the test split. Raises UserError."""
    parts = _Parts(tree=tree, name=layout.name)
    for entry in entries:
        if need_train or entry.split == "test":
            parts.add(entry)
    needed = [*(["train"] if need_train else []), *(["query", "gallery"] if layout.splits else [])]
    for part in needed:
        require_some(
            parts.records.get(part, ()),
            tree.root,
            f"entries of split {'train' if part == 'train' else 'test'} ({part})",
        )
    dropped = (
        {"further entries of an image in a gallery, which is there once": parts.repeated} if parts.repeated else {}
    )
    return Release(
        name=layout.name,
        root=tree.root,
        parts={name: tuple(records) for name, records in parts.records.items()},
        dropped=dropped,
    )


def caption_protocol(name: str) -> Protocol:
    """Return the protocol of a caption data set: every caption against every image of the test split."""
    return plain_protocol(
        name,
        "text to image: every caption of the test split against every image of it; nothing is excluded; CMC over "
        "images",
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
