"""Dividing the rows of a manifest: disjoint persons in train, val and test, and queries that can find something."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prettytable import PrettyTable

from configs.vocabulary import Modality, Task
from datasets.formats.listing import ImageTree
from datasets.formats.manifest_rows import ManifestRow, read_manifest
from datasets.releases.folders import folder_rows
from datasets.releases.manifest import release_of_rows
from datasets.structures import ReadOptions
from utils.errors import UserError, shortened
from utils.seeding import stream

SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitOptions:
    """val, test: shares of persons. queries_per_person: at most, of each modality."""

    val: float = 0.1
    test: float = 0.5
    queries_per_person: int = 1
    seed: int = 0
    caption_queries: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.val < 1:
            raise UserError(f"--val is {self.val}: give a share of persons, 0 or more and below 1")
        if not 0 < self.test < 1:
            raise UserError(f"--test is {self.test}: give a share of persons between 0 and 1")
        if self.val + self.test >= 1:
            raise UserError(f"--val {self.val} and --test {self.test} leave nobody to train on; lower them")
        if self.queries_per_person < 1:
            raise UserError(f"--queries-per-person is {self.queries_per_person}: give at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitResult:
    """rows: the manifest. persons: of each split, sorted. distractors: test persons without a query, with the reason.

    left_out: rows that no split can use, with the number.
    """

    rows: tuple[ManifestRow, ...]
    persons: Mapping[str, tuple[str, ...]]
    options: SplitOptions
    distractors: Mapping[str, str]
    left_out: Mapping[str, int]


def source_rows(source: Path, *, resplit: bool) -> list[ManifestRow]:
    """Return the rows of a manifest or of a folder per person, without splits.

    Raises UserError where there is a split already, and for whatever the reader of such data refuses.
    """
    if not source.exists():
        raise UserError(
            f"no such file or folder: {source}; set --source to a manifest or to a folder with a folder per person"
        )
    folder = source if source.is_dir() else source.parent
    rows = folder_rows(source, ImageTree(source)) if source.is_dir() else read_manifest(source)
    if any(row.split for row in rows) and not resplit:
        raise UserError(f"{source} has a split already; give --resplit to replace it")
    release_of_rows("manifest", source, folder, rows, ReadOptions(need_train=False))
    # An image that was a query and a gallery image stands in two rows that are now the same.
    return list(
        {
            (row.path, row.person, row.caption, row.task, row.clothes_image): replace(row, split="") for row in rows
        }.values()
    )


def moved(row: ManifestRow, source: Path, output: Path) -> ManifestRow:
    """Return a row whose relative paths count from `output` instead of `source`; on another drive they become
    absolute.
    """
    path, clothes = (_moved(path, source, output) for path in (row.path, row.clothes_image))
    return replace(row, path=path, clothes_image=clothes)


def _moved(path: str, source: Path, output: Path) -> str:
    if not path or os.path.isabs(path):
        return path
    path = os.path.abspath(source / path)
    try:
        return os.path.relpath(path, os.path.abspath(output)).replace(os.sep, "/")
    except ValueError:
        return path


def divide(rows: Sequence[ManifestRow], options: SplitOptions) -> SplitResult:
    """Return rows with splits. The result depends on the rows and the seed alone. Raises UserError for too few
    persons.
    """
    by_person: dict[str, list[ManifestRow]] = {}
    for row in sorted(rows, key=lambda row: (row.person, row.path, row.caption)):
        by_person.setdefault(row.person, []).append(row)
    persons = _divide_persons(sorted(by_person), options)
    result: list[ManifestRow] = []
    distractors: dict[str, str] = {}
    left_out: dict[str, int] = {}
    for person in persons["train"]:
        images = [row for row in by_person[person] if row.path]
        _count(left_out, "captions of training persons without an image", len(by_person[person]) - len(images))
        result += [replace(row, split="train") for row in images]
    for person in persons["val"]:
        images = _distinct(by_person[person])
        result += [replace(row, split="val") for row in images]
        result += _caption_rows(by_person[person], "val", options.caption_queries) if images else []
    for person in persons["test"]:
        queries, gallery, reason = _queries_of(person, _distinct(by_person[person]), options)
        unused = len(_distinct(by_person[person])) - len(queries) - len(gallery)
        _count(left_out, "test images that are not visible ones and are no query", unused)
        if reason:
            distractors[person] = reason
        result += [replace(row, split="query") for row in queries] + [replace(row, split="gallery") for row in gallery]
        result += _caption_rows(by_person[person], "query", options.caption_queries) if gallery else []
    if not any(row.split == "query" for row in result):
        raise UserError(
            "no test person has two images (of two cameras, where cameras are given), so there is no query; give more "
            "images, other cameras, or a larger --test"
        )
    return SplitResult(rows=tuple(result), persons=persons, options=options, distractors=distractors, left_out=left_out)


def _divide_persons(names: list[str], options: SplitOptions) -> dict[str, tuple[str, ...]]:
    tested, validated = _rounded(options.test * len(names)), _rounded(options.val * len(names))
    if tested < 1 or len(names) - tested - validated < 2 or (options.val > 0 and validated < 1):
        raise UserError(
            f"{len(names)} persons are too few for --val {options.val} and --test {options.test}: they give "
            f"{validated} and {tested}, and {len(names) - tested - validated} to train on (at least 2 are needed); "
            "give more persons or other shares"
        )
    stream(options.seed, "split", *names).shuffle(names)
    cut = tested + validated
    return {
        "train": tuple(sorted(names[cut:])),
        "val": tuple(sorted(names[tested:cut])),
        "test": tuple(sorted(names[:tested])),
    }


def _rounded(value: float) -> int:
    # Halves upwards: Python's round would make 2 of 2.5 and 4 of 3.5.
    return int(value + 0.5)


def _count(table: dict[str, int], key: str, number: int) -> None:
    if number:
        table[key] = table.get(key, 0) + number


def _distinct(rows: Iterable[ManifestRow]) -> list[ManifestRow]:
    """The images, each once: with several captions, the row of the first."""
    found: dict[str, ManifestRow] = {}
    for row in rows:
        if row.path:
            found.setdefault(os.path.normpath(row.path), row)
    return list(found.values())


def _caption_rows(rows: Sequence[ManifestRow], split: str, wanted: bool) -> list[ManifestRow]:
    # The description of a query of LI is no query by itself.
    captions = dict.fromkeys(
        row.caption for row in rows if row.caption and row.task is not Task.LI and (wanted or not row.path)
    )
    person = rows[0].person
    return [ManifestRow(person=person, modality=Modality.TEXT, caption=caption, split=split) for caption in captions]


def _queries_of(
    person: str, images: Sequence[ManifestRow], options: SplitOptions
) -> tuple[list[ManifestRow], list[ManifestRow], str]:
    """Return queries, gallery, and why there is no query (empty where there is one)."""
    visible = [row for row in images if row.modality is Modality.RGB]
    gallery = list(visible or images)
    others = [row for row in images if row.modality is not Modality.RGB] if visible else []
    shuffled = list(gallery)
    stream(options.seed, "queries", person).shuffle(shuffled)
    # Images that look for another modality come first: they take nothing from the gallery.
    queries: list[ManifestRow] = []
    stream(options.seed, "other queries", person).shuffle(others)
    for row in others:
        if _has_match(row, gallery) and _of_modality(queries, row) < options.queries_per_person:
            queries.append(row)
    for row in shuffled:
        if _of_modality(queries, row) >= options.queries_per_person:
            continue
        rest = [other for other in gallery if other is not row]
        if all(_has_match(query, rest) for query in (*queries, row)):
            queries.append(row)
            gallery = rest
    reason = (
        ""
        if queries
        else "one image"
        if len(images) == 1
        else "one camera"
        if images[0].camera
        else "nothing to be found"
    )
    order = {row.path: number for number, row in enumerate(images)}
    return sorted(queries, key=lambda row: order[row.path]), sorted(gallery, key=lambda row: order[row.path]), reason


def _of_modality(queries: Iterable[ManifestRow], row: ManifestRow) -> int:
    return sum(query.modality is row.modality for query in queries)


def _has_match(query: ManifestRow, gallery: Iterable[ManifestRow]) -> bool:
    """Whether the gallery of the same person holds an image that the camera rule does not drop."""
    return any(not query.camera or row.camera != query.camera for row in gallery)


def describe(result: SplitResult) -> str:
    """Return the table of the splits, the exact shares, and the persons without a query."""
    total = sum(len(persons) for persons in result.persons.values())
    table = PrettyTable(["split", "persons", "share", "images", "text queries"])
    table.align = "r"
    table.align["split"] = "l"
    lines = {"train": ("train",), "val": ("val",), "test": ("query", "gallery")}
    for name, splits in lines.items():
        persons = len(result.persons[name])
        table.add_row([name, persons, f"{100 * persons / total:.2f} %", *_counted(result.rows, splits)])
    for split in ("query", "gallery"):
        rows = [row for row in result.rows if row.split == split]
        table.add_row([f"  {split}", len({row.person for row in rows}), "", *_counted(rows, (split,))])
    asked = f"val {result.options.val:g}, test {result.options.test:g}; seed {result.options.seed}"
    said = [table.get_string(), f"persons: {total} in all; asked: {asked}"]
    if result.distractors:
        reasons = [f"{person} ({why})" for person, why in result.distractors.items()]
        said.append(
            f"{len(result.distractors)} test persons have no query and are distractors in the gallery: "
            f"{shortened(reasons, SHOWN)}"
        )
    said += [f"left out: {number} {what}" for what, number in result.left_out.items()]
    return "\n".join(said)


def _counted(rows: Iterable[ManifestRow], splits: Sequence[str]) -> tuple[int, int]:
    chosen = [row for row in rows if row.split in splits]
    return len({row.path for row in chosen if row.path}), sum(not row.path for row in chosen)
