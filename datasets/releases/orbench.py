"""Reader of the official ORBench layout. Annotations only: no pixels, no tensors, no randomness of a run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from configs.vocabulary import ORBENCH_KEYS, Combination, Modality, combination_name
from datasets.formats.query_lists import draw_query_lists
from datasets.loading.readers import IMAGE_SUFFIXES
from datasets.modalities import MODALITIES
from datasets.orbench_statistics import orbench_notes
from datasets.structures import Benchmark, EvalSplit, QueryList, Record, Source
from datasets.validation import VAL_SEED, hold_out
from utils.errors import UserError
from utils.files import fingerprint, read_json

logger = logging.getLogger(__name__)

FOLDER = "ORBench"
TRAIN_FILE = "train_annos.json"
TEST_FILE = "test_gallery_and_queries.json"
GALLERY_KEY = "RGB_GALLERY"
PROTOCOL = "ORBench: RGB gallery, cosine similarity, no exclusion"
SHOWN = 120
PARTNERS = (Modality.NIR, Modality.CP, Modality.SK)


@dataclass
class _Tree:
    """Files below ORBench/, each folder listed and each path looked at once. check: raise for a listed file that is
    absent.

    A path that many query lists share is one Source, whose record is the first place it stands at.
    """

    root: Path
    check: bool
    listings: dict[str, frozenset[str]] = field(default_factory=dict)
    known: dict[tuple[Modality, str], Source] = field(default_factory=dict)

    def names(self, folder: str) -> frozenset[str]:
        """Names of the image files in a folder relative to ORBench/; empty when there is no such folder."""
        if folder not in self.listings:
            try:
                entries = os.listdir(self.root / folder)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            except OSError as error:
                raise UserError(f"cannot list {self.root / folder}: {error.strerror}") from error
            self.listings[folder] = frozenset(
                name for name in entries if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            )
        return self.listings[folder]

    def source(self, modality: Modality, relative: Any, record: str) -> Source:
        """Return the image source of a path relative to ORBench/. Raises UserError naming the record."""
        if isinstance(relative, str) and (modality, relative) in self.known:
            return self.known[modality, relative]
        if not isinstance(relative, str) or not relative or "\0" in relative:
            raise UserError(f"{record}: {_shown(relative)} is not an image path")
        path = PurePosixPath(relative)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 3:
            raise UserError(
                f"{record}: image path {_shown(relative)} must have the form <modality>/<folder>/<name> inside "
                f"{FOLDER}/"
            )
        if path.parts[0] != MODALITIES[modality].folder:
            raise UserError(
                f"{record}: image path {_shown(relative)} must lie in {MODALITIES[modality].folder}/, it is a "
                f"{modality.name} item"
            )
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{record}: {_shown(relative)} does not end like an image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        if self.check and path.name not in self.names(str(path.parent)):
            raise UserError(f"{record}: no such image: {self.root / path}; restore the file or set data.on_error=skip")
        return self.known.setdefault(
            (modality, relative), Source(modality=modality, value=str(self.root / path), record=record)
        )


@dataclass(frozen=True, kw_only=True)
class _Annotation:
    person: int
    folder: str
    image: Source
    caption: Source


def load_orbench(
    root: str | Path, *, need_train: bool, val_fraction: float = 0.0, check_files: bool = True
) -> Benchmark:
    """Read ORBench/ below `root`.

    need_train: False reads the test lists; train_annos.json is then only compared with them, and may be absent.
    val_fraction: share of training identities cut off into the split `val`, whose 32 query lists are drawn as
    ORBench's; 0 = none. check_files: raise for a listed image that does not exist. Labels are 0..n-1 in the order of
    the sorted raw ids. Raises UserError naming file, entry or key for everything that does not fit the layout.
    """
    folder = locate(Path(root))
    tree = _Tree(root=folder, check=check_files)
    notes: list[str] = []
    if need_train or (folder / TRAIN_FILE).is_file():
        annotations = _read_train(tree if need_train else _Tree(root=folder, check=False))
    else:
        annotations = []
        notes.append(f"{TRAIN_FILE} is absent: whether test identities were trained on cannot be checked")
    splits = {"test": _read_test(tree, notes)}
    _check_overlap(folder, annotations, splits["test"])
    if not need_train:
        annotations = []
    held_out = (
        hold_out((entry.person for entry in annotations), val_fraction)
        if annotations and val_fraction > 0
        else frozenset()
    )
    if held_out:
        splits["val"] = _val_split(tree, [entry for entry in annotations if entry.person in held_out])
    train = _records(tree, [entry for entry in annotations if entry.person not in held_out])
    notes += orbench_notes(folder, train, splits)
    for note in notes:
        logger.info("%s", note)
    return Benchmark(
        name="orbench",
        train=train,
        num_identities=len({record.person_id for record in train}),
        splits=splits,
        fingerprint=_digest(train, splits, folder),
        notes=tuple(notes),
    )


def locate(root: Path) -> Path:
    """Return the ORBench folder below `root`. Raises UserError that says when root is one level too high or too low."""
    if not root.is_dir():
        raise UserError(f"no such data root: {root}; set data.root to the folder that contains {FOLDER}/")
    if (root / FOLDER).is_dir():
        return root / FOLDER
    if (root / TRAIN_FILE).exists() or (root / TEST_FILE).exists():
        raise UserError(
            f"data.root={root} is one level too low: it is the {FOLDER} folder itself; set "
            f"data.root={root.resolve().parent}"
            + ("" if root.resolve().name == FOLDER else f" and name the folder {FOLDER}")
        )
    above = next((parent for parent in root.resolve().parents if parent.name == FOLDER), None)
    if above is not None:
        raise UserError(f"data.root={root} is too low: it lies inside {FOLDER}/; set data.root={above.parent}")
    below = sorted(entry.parent for entry in root.glob(f"*/{FOLDER}") if entry.is_dir())
    if below:
        raise UserError(
            f"data.root={root} is one level too high: {FOLDER}/ lies in {below[0]}; set data.root={below[0]}"
        )
    raise UserError(f"data.root={root} has no folder {FOLDER}/; set data.root to the folder that contains it")


def _shown(value: Any) -> str:
    """Return a value from a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _read_train(tree: _Tree) -> list[_Annotation]:
    path = tree.root / TRAIN_FILE
    content = read_json(path, "the training annotations of ORBench")
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: must be a list of annotations, found {_kind(content)}")
    annotations = [_annotation(tree, entry, f"{TRAIN_FILE} entry {index}") for index, entry in enumerate(content)]
    owner: dict[str, int] = {}
    for index, entry in enumerate(annotations):
        if owner.setdefault(entry.folder, entry.person) != entry.person:
            raise UserError(
                f"{TRAIN_FILE} entry {index}: folder {entry.folder} belongs to id {owner[entry.folder]} and to id "
                f"{entry.person}; one folder holds one identity"
            )
    if len({entry.person for entry in annotations}) < 2:
        raise UserError(f"{path}: one training identity only (id {annotations[0].person}); at least two are needed")
    return annotations


def _annotation(tree: _Tree, entry: Any, record: str) -> _Annotation:
    if not isinstance(entry, dict):
        raise UserError(f"{record}: must be an object with id, file_path and caption, found {_kind(entry)}")
    for key in ("id", "file_path", "caption"):
        if key not in entry:
            raise UserError(f"{record}: key {key!r} is missing")
    person = _integer(entry["id"])
    if person is None:
        raise UserError(f"{record}: id = {_shown(entry['id'])} is not a whole number")
    if not isinstance(entry["caption"], str):
        raise UserError(f"{record}: caption must be a text, found {_kind(entry['caption'])}")
    image = tree.source(Modality.RGB, entry["file_path"], record)
    return _Annotation(
        person=person,
        folder=PurePosixPath(entry["file_path"]).parts[1],
        image=image,
        caption=Source(modality=Modality.TEXT, value=entry["caption"], record=record),
    )


def _partners(tree: _Tree, folder: str, record: str) -> dict[Modality, tuple[Source, ...]]:
    found = {}
    for modality in PARTNERS:
        below = f"{MODALITIES[modality].folder}/{folder}"
        names = sorted(tree.names(below))
        if not names:
            raise UserError(
                f"{record}: identity folder {folder} has no {modality.name} images in {tree.root / below}; every "
                "training identity needs NIR, CP and SK partners"
            )
        found[modality] = tuple(
            Source(modality=modality, value=str(tree.root / below / name), record=record) for name in names
        )
    return found


def _records(tree: _Tree, annotations: list[_Annotation]) -> tuple[Record, ...]:
    labels = {person: label for label, person in enumerate(sorted({entry.person for entry in annotations}))}
    partners: dict[str, Mapping[Modality, tuple[Source, ...]]] = {}
    for entry in annotations:
        if entry.folder not in partners:
            partners[entry.folder] = _partners(tree, entry.folder, entry.image.record)
    return tuple(
        Record(
            person_id=labels[entry.person],
            sources={Modality.RGB: entry.image, Modality.TEXT: entry.caption},
            partners=partners[entry.folder],
            dataset="orbench",
            name=entry.image.record,
        )
        for entry in annotations
    )


def _val_split(tree: _Tree, annotations: list[_Annotation]) -> EvalSplit:
    items: dict[int, dict[Modality, list[Source]]] = {}
    for entry in sorted(annotations, key=lambda entry: (entry.person, entry.image.value)):
        person = items.setdefault(
            entry.person,
            {
                Modality.RGB: [],
                Modality.TEXT: [],
                **{key: list(value) for key, value in _partners(tree, entry.folder, entry.image.record).items()},
            },
        )
        person[Modality.RGB].append(entry.image)
        person[Modality.TEXT].append(entry.caption)
    drawn = draw_query_lists(items, VAL_SEED)
    gallery = [(person, source) for person, sources in items.items() for source in sources[Modality.RGB]]
    return EvalSplit(
        name="val",
        protocol=f"{PROTOCOL}; validation identities cut from train",
        gallery=tuple(source for _, source in gallery),
        gallery_ids=tuple(person for person, _ in gallery),
        query_lists=tuple(_query_list(key, drawn[key]) for key in ORBENCH_KEYS),
    )


def _query_list(key: Combination, rows: list[tuple[int, tuple[Source, ...]]]) -> QueryList:
    return QueryList(
        combination=key, entries=tuple(sources for _, sources in rows), person_ids=tuple(person for person, _ in rows)
    )


def _read_test(tree: _Tree, notes: list[str]) -> EvalSplit:
    path = tree.root / TEST_FILE
    content = read_json(path, "the test gallery and query lists of ORBench")
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be an object with {GALLERY_KEY} and the query lists, found {_kind(content)}")
    if not content.get(GALLERY_KEY):
        raise UserError(f"{path}: key {GALLERY_KEY} is missing or empty; without a gallery nothing can be searched")
    names = {combination_name(key): key for key in ORBENCH_KEYS}
    unknown = sorted(set(content) - set(names) - {GALLERY_KEY})
    if unknown:
        notes.append(f"{TEST_FILE}: {len(unknown)} unknown keys are ignored: {', '.join(unknown[:5])}")
    gallery = _rows(tree, GALLERY_KEY, (Modality.RGB,), content[GALLERY_KEY])
    present = {name: key for name, key in names.items() if name in content}
    missing = tuple(name for name in names if name not in content)
    if not present:
        raise UserError(f"{path}: holds none of the 32 query lists (NIR, CP, ..., TEXT+NIR+CP+SK)")
    if missing:
        notes.append(f"{TEST_FILE}: {len(missing)} of 32 query lists are missing: {', '.join(missing)}")
    return EvalSplit(
        name="test",
        protocol=PROTOCOL,
        gallery=tuple(sources[0] for _, sources in gallery),
        gallery_ids=tuple(person for person, _ in gallery),
        missing_lists=missing,
        query_lists=tuple(_query_list(key, _rows(tree, name, key, content[name])) for name, key in present.items()),
    )


def _rows(tree: _Tree, name: str, key: Combination, rows: Any) -> list[tuple[int, tuple[Source, ...]]]:
    if not isinstance(rows, list):
        raise UserError(f"{TEST_FILE} key {name}: must be a list of entries, found {_kind(rows)}")
    return [_row(tree, f"{TEST_FILE} {name} entry {index}", key, row) for index, row in enumerate(rows)]


def _row(tree: _Tree, record: str, key: Combination, row: Any) -> tuple[int, tuple[Source, ...]]:
    if not isinstance(row, list) or len(row) != len(key) + 1:
        raise UserError(
            f"{record}: must be a list of a person id and {len(key)} item(s) ({combination_name(key)}), found "
            f"{_shown(row)}"
        )
    person = _integer(row[0])
    if person is None:
        raise UserError(f"{record}: person id {_shown(row[0])} is not a whole number")
    return person, tuple(_item(tree, modality, value, record) for modality, value in zip(key, row[1:]))


def _item(tree: _Tree, modality: Modality, value: Any, record: str) -> Source:
    # The key's modality decides what an item is: a caption that mentions ".jpg" is a caption.
    if MODALITIES[modality].is_image:
        return tree.source(modality, value, record)
    if not isinstance(value, str):
        raise UserError(f"{record}: the caption must be a text, found {_kind(value)}")
    return Source(modality=modality, value=value, record=record)


def _check_overlap(root: Path, annotations: list[_Annotation], split: EvalSplit) -> None:
    train = {entry.folder for entry in annotations}
    images = {
        source.value
        for source in (
            *split.gallery,
            *(source for queries in split.query_lists for entry in queries.entries for source in entry),
        )
        if MODALITIES[source.modality].is_image
    }
    shared = sorted({os.path.relpath(image, root).split(os.sep)[1] for image in images} & train)
    if shared:
        raise UserError(
            f"{len(shared)} identity folders are in train and in test, for instance {shared[0]}; training and test "
            f"identities must not overlap: correct {TRAIN_FILE} or {TEST_FILE}"
        )


def _digest(train: tuple[Record, ...], splits: Mapping[str, EvalSplit], root: Path) -> str:
    start = len(str(root)) + 1

    def relative(source: Source) -> str:
        return source.value[start:] if MODALITIES[source.modality].is_image else source.value

    # Records of one folder share their partners.
    partners = {id(record.partners): record.partners for record in train}.values()
    parts: list[Any] = [[record.person_id, *map(relative, record.sources.values())] for record in train]
    parts += [[relative(source) for sources in group.values() for source in sources] for group in partners]
    for name, split in sorted(splits.items()):
        parts += [name, [[person, relative(source)] for person, source in zip(split.gallery_ids, split.gallery)]]
        parts += [
            [queries.name, person, *map(relative, entry)]
            for queries in split.query_lists
            for person, entry in zip(queries.person_ids, queries.entries)
        ]
    return fingerprint(parts)


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
