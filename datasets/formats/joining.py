"""Several test sets at once: persons and cameras kept apart per image source, galleries merged, gallery images without
instruction.

An image source is what shares its images and therefore its persons: two tasks on COCAS+ Real2 are one source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.vocabulary import Combination, Task, combination_name
from datasets.formats.listing import OUTFITS
from datasets.modalities import MODALITIES
from datasets.overlap import find_identical, grammar_of, known_overlaps
from datasets.protocols import Search, image_source
from datasets.structures import WARNING, Record, Source
from utils.errors import UserError

TASK_FREE, JOINT = "task-free", "joint"

QueryKey = tuple[int, str, tuple[Source, ...]]
"""Person, place in the lists, and sources: what tells a query from the others of its member."""

TASK_FREE_SUMMARY = (
    "each test set by itself under its own rule and curve; queries keep the instruction of their task, gallery images "
    "have none"
)
JOINT_SUMMARY = (
    "all test sets pooled: the queries of each, with the instruction of their task, against the images of all "
    "galleries, which have none; persons and cameras are told apart per image source; the same person in the same "
    "camera is dropped and a query never finds its own image; CMC over images; the average is over all queries; a set "
    "that draws its gallery takes part with the images of all its draws"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offset:
    """What is added to the numbers of an image source; clothes ids follow their persons."""

    persons: int = 0
    """Added to every person id."""
    cameras: int = 0
    """Added to every known camera."""

    def negative(self) -> Offset:
        """Return the offset that takes this one back."""
        return Offset(persons=-self.persons, cameras=-self.cameras)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A test set in a joint test."""

    name: str
    source: str
    """Image source: what shares its images and therefore its persons."""
    searches: tuple[Search, ...]
    """Its own searches, persons and cameras already kept apart."""


def offsets_of(sources: Mapping[str, Iterable[Record]]) -> dict[str, Offset]:
    """Return for each image source, in the given order, the offset that keeps its persons and cameras apart from the
    earlier ones'. Raises UserError for a negative person id.
    """
    offsets, persons, cameras = {}, 0, 0
    for name, records in sources.items():
        offsets[name] = Offset(persons=persons, cameras=cameras)
        last_person = last_camera = -1
        for record in records:
            if record.person_id < 0:
                raise UserError(
                    f"{record.name}: person {record.person_id} of {name} has a negative number, by which persons of "
                    "several data sets cannot be kept apart; number its persons from 0"
                )
            last_person, last_camera = max(last_person, record.person_id), max(last_camera, record.camera_id)
        persons, cameras = persons + last_person + 1, cameras + last_camera + 1
    return offsets


def shifted(record: Record, offset: Offset) -> Record:
    """Return the record with the offset added; what is unknown stays unknown."""
    if not (offset.persons or offset.cameras):
        return record
    return replace(
        record,
        person_id=record.person_id + offset.persons,
        camera_id=record.camera_id + offset.cameras if record.camera_id >= 0 else -1,
        clothes_id=record.clothes_id + offset.persons * OUTFITS if record.clothes_id >= 0 else -1,
    )


def shifted_search(search: Search, offset: Offset, member: str) -> Search:
    """Return a member's search with both sides shifted; its gallery stays the member's own."""
    return replace(
        search,
        query=[shifted(record, offset) for record in search.query],
        gallery=[shifted(record, offset) for record in search.gallery],
        gallery_key=f"{member}/{search.gallery_key}" if search.gallery_key else "",
    )


def task_free_searches(members: Iterable[Member]) -> list[Search]:
    """Return every search of every member with gallery images that have no instruction; draws keep their rows of
    averages.
    """
    return [
        replace(
            search,
            title=f"{TASK_FREE} {search.title}",
            protocol=TASK_FREE,
            gallery_instructions=False,
            group=f"{TASK_FREE} {search.group}" if search.group else "",
        )
        for member in members
        for search in member.searches
    ]


def joint_searches(members: Sequence[Member]) -> list[Search]:
    """Return the pooled searches: one per member and task, all in one gallery. Raises UserError for images with two
    owners.
    """
    gallery = merge_images(record for member in members for search in member.searches for record in search.gallery)
    pooled = []
    for member in members:
        lists = _pooled_queries(member)
        tasks = dict.fromkeys(task for task, _ in lists)
        pooled += [
            Search(
                title=f"{JOINT} {_row(member.name, task, tasks, combination)}",
                protocol=JOINT,
                group=JOINT,
                pooled=True,
                gallery=gallery,
                gallery_key=JOINT,
                query=queries,
                combination=combination,
                exclusion_rule="same_camera",
                gallery_instructions=False,
            )
            for (task, combination), queries in lists.items()
        ]
    return pooled


def _pooled_queries(member: Member) -> dict[tuple[Task, Combination], list[Record]]:
    """Return the distinct queries of a member's searches by task and by what they mix."""
    lists: dict[tuple[Task, Combination], dict[QueryKey, Record]] = {}
    for search in member.searches:
        for record in search.query:
            queries = lists.setdefault((record.task, search.combination), {})
            queries.setdefault((record.person_id, record.name, tuple(record.sources.values())), record)
    return {key: list(queries.values()) for key, queries in lists.items()}


def _row(member: str, task: Task, tasks: Iterable[Task], combination: Combination) -> str:
    parts = [member, *([] if len(list(tasks)) == 1 else [task.value])]
    return " ".join([*parts, *([combination_name(combination)] if combination else [])])


def merge_images(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return one record per image, in order of first appearance: labels of the first that knows them, one annotation
    per kind.

    Raises UserError when two records show one image with different persons.
    """
    merged: dict[str, Record] = {}
    for record in records:
        value = image_source(record).value
        known = merged.setdefault(value, record)
        if known is record:
            continue
        if known.person_id != record.person_id:
            raise UserError(
                f"{value} shows person {known.person_id} in {known.name} and {record.person_id} in {record.name}; "
                "correct one of the lists, or leave the image out with data.exclude"
            )
        merged[value] = _merged(known, record)
    return tuple(merged.values())


def _merged(known: Record, other: Record) -> Record:
    camera = known.camera_id if known.camera_id >= 0 else other.camera_id
    clothes = known.clothes_id if known.clothes_id >= 0 else other.clothes_id
    if (camera, clothes) == (
        known.camera_id,
        known.clothes_id,
    ) and not other.annotations.keys() - known.annotations.keys():
        return known
    return replace(known, camera_id=camera, clothes_id=clothes, annotations={**other.annotations, **known.annotations})


def refuse_identical(images: Mapping[str, Iterable[str]]) -> None:
    """Raise UserError when files with the same bytes lie in two image sources. images: source -> image files."""
    if len(images) < 2:
        return
    found = find_identical(images)
    if found:
        (left, first), (right, second) = list(found[0].paths.items())[:2]
        raise UserError(
            f"{len(found)} image(s) with identical bytes are in several of the joined data sets, for instance "
            f"{first[0]} ({left}) and {second[0]} ({right}); list the ones to leave out in a file and set data.exclude "
            "to it"
        )


def overlap_notes(images: Mapping[str, Sequence[str]], patterns: Mapping[str, str]) -> list[str]:
    """Return warnings: pairs of sources known to share images, and sources whose file names have the form of another
    one's.

    images: source -> image files. patterns: data set -> regular expression of its file names.
    """
    found = [f"{WARNING}{sentence}" for sentence in known_overlaps(images)]
    for name, paths in images.items():
        others = {other: pattern for other, pattern in patterns.items() if other != name and other in images}
        found += [
            f"{WARNING}{name} and {other}: the file names of {name} have the form of {other}'s, so they may share "
            "images; compare them and leave the shared ones out with data.exclude"
            for other in grammar_of(list(paths), others)
        ]
    return found


def joined_images(parts: Mapping[str, Iterable[Record]], source_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the distinct images of persons of each image source. parts: `<member>/<part>` -> records; source_of:
    member -> source.

    Clothes images are left out: the same picture of a shirt may serve several data sets.
    """
    by_source: dict[str, dict[str, None]] = {}
    for part, records in parts.items():
        member, _, rest = part.partition("/")
        if rest and member in source_of:
            found = by_source.setdefault(source_of[member], {})
            for record in records:
                shown = (*record.sources.values(), *(source for group in record.partners.values() for source in group))
                found.update((source.value, None) for source in shown if MODALITIES[source.modality].is_image)
    return {name: list(images) for name, images in by_source.items()}
