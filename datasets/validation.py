"""Validation sets made of training records: whole identities held out, and the searches that are done with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from configs.vocabulary import Modality
from datasets.mixed_queries import drawn_searches
from datasets.protocols import Search, image_source
from datasets.structures import Record
from utils.errors import UserError
from utils.retrieval.exclusion import get_rule
from utils.seeding import stream

VAL_PROTOCOL = "validation"
VAL_SEED = 20250611
"""Fixed, so that runs with different seeds are selected on the same identities and queries."""
SAME_CAMERA = "same_camera"


def hold_out(person_ids: Iterable[int], fraction: float) -> frozenset[int]:
    """Return the persons held out for validation, at least one; they depend on the set of persons alone, not on a run's
    seed.

    Raises UserError when fewer than two persons would be left to train on.
    """
    persons = sorted(set(person_ids))
    count = max(1, round(fraction * len(persons)))
    if len(persons) - count < 2:
        raise UserError(
            f"data.val_fraction={fraction} leaves fewer than two of {len(persons)} training identities; lower it or "
            "set train.select=last"
        )
    stream(VAL_SEED, "val", len(persons)).shuffle(persons)
    return frozenset(persons[:count])


def validation_search(records: Sequence[Record], default: Search | None) -> tuple[Search, str]:
    """Return the search among held-out records, and what it is in words.

    Records with a text: every text against every image. Visible and other ones: the others against the visible.
    Otherwise one image per person and camera against the rest. default: the data set's own first search, whose rule and
    curve are taken where the records have the labels that the rule needs; image against image never keeps the same
    camera's images where cameras are known, because neighbouring frames would say nothing.
    """
    if any(Modality.TEXT in record.sources for record in records):
        query, gallery, roles = _texts(records), _images(records), "every text against every image"
    elif len({image_source(record).modality for record in records}) > 1:
        query = [record for record in records if image_source(record).modality is not Modality.RGB]
        gallery = [record for record in records if image_source(record).modality is Modality.RGB]
        others = {image_source(record).modality for record in query}
        roles = "infrared against visible" if others == {Modality.NIR} else "drawings against visible"
    else:
        query, gallery = _one_of_each_camera(records)
        roles = "one image per person and camera against the rest"
    rule = usable_rule(default.exclusion_rule if default is not None else "none", query, gallery)
    if rule == "none" and roles.startswith("one image") and _known(query, gallery, "camera_id"):
        rule = SAME_CAMERA
    search = Search(
        title=VAL_PROTOCOL,
        protocol=VAL_PROTOCOL,
        query=query,
        gallery=gallery,
        exclusion_rule=rule,
        cmc=default.cmc if default is not None else "image",
    )
    return search, roles


def mixed_validation(records: Sequence[Record], repeated_items: bool = False) -> tuple[list[Search], str]:
    """Return the mixed query lists of held-out training records, drawn as ORBench's are, and what they are in words.

    repeated_items: see `drawn_searches`.
    """
    searches = drawn_searches(records, VAL_PROTOCOL, VAL_SEED, repeated_items=repeated_items)
    return searches, "query lists drawn as the data set's, RGB gallery, no exclusion"


def usable_rule(rule: str, query: Sequence[Record], gallery: Sequence[Record]) -> str:
    """Return `rule` where every record has the labels that it needs, else `none`."""
    fields = {"cameras": "camera_id", "clothes": "clothes_id"}
    return rule if all(_known(query, gallery, fields[need]) for need in get_rule(rule).needs) else "none"


def _known(query: Sequence[Record], gallery: Sequence[Record], field: str) -> bool:
    return all(getattr(record, field) >= 0 for side in (query, gallery) for record in side)


def _texts(records: Sequence[Record]) -> list[Record]:
    return [
        replace(record, sources={Modality.TEXT: record.sources[Modality.TEXT]})
        for record in records
        if Modality.TEXT in record.sources
    ]


def _images(records: Sequence[Record]) -> list[Record]:
    """The distinct images, without their texts."""
    images: dict[str, Record] = {}
    for record in records:
        source = image_source(record)
        images.setdefault(source.value, replace(record, sources={source.modality: source}))
    return list(images.values())


def _one_of_each_camera(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split into queries and gallery. A person always keeps an image in the gallery: one with a single image is no
    query.
    """
    grouped: dict[int, dict[int, list[Record]]] = {}
    for record in sorted(records, key=lambda record: (record.person_id, record.camera_id, image_source(record).value)):
        grouped.setdefault(record.person_id, {}).setdefault(record.camera_id, []).append(record)
    query: list[Record] = []
    gallery: list[Record] = []
    for person, cameras in grouped.items():
        chosen = {
            camera: stream(VAL_SEED, "query", person, camera).randrange(len(group)) for camera, group in cameras.items()
        }
        total = sum(map(len, cameras.values()))
        if total == len(chosen):
            # One image in each camera: the first is the query, the others are found.
            chosen = dict(list(chosen.items())[:1]) if total > 1 else {}
        for camera, group in cameras.items():
            for index, record in enumerate(group):
                (query if chosen.get(camera) == index else gallery).append(record)
    return query, gallery
