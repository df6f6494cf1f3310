"""Queries without a valid match, and why: from labels alone, person by person, under the rules of
utils.retrieval.exclusion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from configs.vocabulary import Modality
from datasets.checks.contents import side_of
from datasets.checks.report import Finding, Level, SearchCount, examples
from datasets.dataset_entry import DatasetEntry
from datasets.formats.joining import JOINT
from datasets.modalities import MODALITIES
from datasets.protocols import Search, image_source
from datasets.structures import Record, Release, Source
from utils.errors import UserError, nearest
from utils.retrieval.exclusion import (
    LabelBlock,
    excluded,
    get_rule,
    other_clothes,
    same_camera,
    same_clothes,
    same_item,
)

PERSON_ABSENT, OUTSIDE, OWN_IMAGE, DROPPED = (
    "person_absent",
    "outside_this_gallery",
    "own_image_only",
    "dropped_by_rule",
)
REASONS: dict[str, str] = {
    PERSON_ABSENT: "their person is not in the gallery; add images of it, or take the queries out",
    OUTSIDE: "their person is in the test images, but not in those that this protocol searches; this is so by "
    "design{other}",
    OWN_IMAGE: "the query itself is the only gallery image of its person; add another image, or take the query out",
    "same_camera_only": "all gallery images of their person are of the query's camera; give images of another "
    "camera{other}",
    "same_clothes_only": "all gallery images of their person show the query's clothes; this is so by design for "
    "persons who never change{other}",
    "other_clothes_only": "all gallery images of their person show other clothes; add images in the query's "
    "clothes{other}",
    DROPPED: "the rule {rule} drops all gallery images of their person; add others{other}",
}
"""Key of a reason -> what is said about it and what to change."""
BY_DESIGN = (OUTSIDE, "same_clothes_only", "other_clothes_only")
_PARTS = {
    "same_camera": ("same_camera_only",),
    "same_clothes": ("same_clothes_only",),
    "other_clothes": ("other_clothes_only",),
    "same_camera_or_clothes": ("same_camera_only", "same_clothes_only"),
    "same_camera_or_other_clothes": ("same_camera_only", "other_clothes_only"),
}
"""Rule -> the reasons by which it can drop, asked in this order."""
_TESTS = {"same_camera_only": same_camera, "same_clothes_only": same_clothes, "other_clothes_only": other_clothes}
ROWS = 1024
"""Queries of one person that are looked at together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmatched:
    """Queries of a search that nothing valid can be found for, by reason."""

    search: Search
    queries: dict[str, list[Record]]

    def count(self) -> SearchCount:
        """Return the numbers alone."""
        search = self.search
        return SearchCount(
            protocol=search.protocol,
            title=search.title,
            rule=search.exclusion_rule,
            queries=len(search.query),
            gallery=len(search.gallery),
            unmatched={reason: len(records) for reason, records in self.queries.items()},
        )


Persons = Mapping[Modality, frozenset[int]]


def searchable_persons(release: Release) -> Persons:
    """Return, by modality, the persons with an image in the test parts that do not consist of queries."""
    found: dict[Modality, set[int]] = {}
    for part, records in release.parts.items():
        if side_of(part) == "test" and not part.rpartition("/")[2].startswith("query"):
            for record in records:
                for modality in record.sources:
                    found.setdefault(modality, set()).add(record.person_id)
    return {modality: frozenset(persons) for modality, persons in found.items()}


def find_unmatched(search: Search, persons: Persons, pictures: Mapping[str, str] = MappingProxyType({})) -> Unmatched:
    """Return the queries of a search that have no gallery image of their person left under its rule.

    persons: see `searchable_persons`; whoever is there but not in the gallery was left out by the protocol. pictures:
    file -> the first of its byte copies. Only images of the query's own person can be a match, so each person is
    compared with itself alone: the work is the sum over persons of queries x images, not queries x gallery.
    """
    images: dict[int, list[Record]] = {}
    for record in search.gallery:
        images.setdefault(record.person_id, []).append(record)
    queries: dict[int, list[Record]] = {}
    for record in search.query:
        queries.setdefault(record.person_id, []).append(record)
    found: dict[str, list[Record]] = {}
    modalities = {image_source(record).modality for record in search.gallery}
    others = frozenset().union(*(persons.get(modality, frozenset()) for modality in modalities))
    for person, records in queries.items():
        if person not in images:
            found.setdefault(OUTSIDE if person in others else PERSON_ABSENT, []).extend(records)
            continue
        for start in range(0, len(records), ROWS):
            _compare(records[start : start + ROWS], images[person], search.exclusion_rule, pictures, found)
    return Unmatched(search=search, queries={reason: found[reason] for reason in REASONS if reason in found})


def _compare(
    queries: Sequence[Record],
    images: Sequence[Record],
    rule_name: str,
    pictures: Mapping[str, str],
    found: dict[str, list[Record]],
) -> None:
    rule = get_rule(rule_name)
    numbers: dict[str, int] = {}

    def number(source: Source) -> int:
        return numbers.setdefault(pictures.get(source.value, source.value), len(numbers))

    gallery = _labels(images, [number(image_source(record)) for record in images])
    width = max(len(record.sources) for record in queries)
    shown = [[number(source) if _is_image(source) else -1 for source in record.sources.values()] for record in queries]
    query = _labels(queries, [row + [-1] * (width - len(row)) for row in shown])
    own = same_item(query, gallery)
    assert own is not None
    for row in excluded(query, gallery, rule).all(dim=1).nonzero().flatten().tolist():
        found.setdefault(_reason(query.rows(row, row + 1), gallery, own[row], rule_name), []).append(queries[row])


def _is_image(source: Source) -> bool:
    return MODALITIES[source.modality].is_image


def _labels(records: Sequence[Record], items: Sequence[int | Sequence[int]]) -> LabelBlock:
    """items: the picture of each record, or a row of them."""
    return LabelBlock(
        persons=torch.zeros(len(records), dtype=torch.int64),
        items=torch.tensor(items),
        cameras=torch.tensor([record.camera_id for record in records]),
        clothes=torch.tensor([record.clothes_id for record in records]),
    )


def _reason(query: LabelBlock, gallery: LabelBlock, own: Tensor, rule_name: str) -> str:
    others = ~own
    if not others.any():
        return OWN_IMAGE
    for reason in _PARTS.get(rule_name, ()):
        if _TESTS[reason](query, gallery)[0][others].all():
            return reason
    return DROPPED


def searches_of(entry: DatasetEntry, release: Release, names: Sequence[str]) -> tuple[list[Search], list[Finding]]:
    """Return the searches of the named protocols, or of all that the parts allow, and findings on those that they do
    not.

    Raises UserError for a name that does not exist, and for a named protocol that is not possible.
    """
    found: list[Search] = []
    notes: list[Finding] = []
    for name in names or entry.protocols:
        if name not in entry.protocols:
            raise UserError(f"--protocols: {entry.name} has no protocol {name!r}: {nearest(name, entry.protocols)}")
        try:
            found += entry.protocols[name].searches(release)
        except (KeyError, UserError) as error:
            reason = f"the part {error.args[0]!r} is absent" if isinstance(error, KeyError) else str(error)
            if names:
                raise UserError(f"protocol {name} is not possible: {reason}") from error
            # What is wrong with the data as such is a defect; a part or a file of a further protocol may be absent.
            needed = name in entry.default or name == JOINT
            level: Level = "defect" if isinstance(error, UserError) and needed else "note"
            notes.append(
                Finding(level=level, kind="protocol_not_possible", message=f"protocol {name} is not possible: {reason}")
            )
    # Two names may lead to one search (own-data chooses another of its protocols).
    return list({(search.protocol, search.title): search for search in found}.values()), notes


def match_findings(entry: DatasetEntry, unmatched: Iterable[Unmatched]) -> list[Finding]:
    """Return a finding per protocol and reason, from the search in which most queries have no match.

    A person that is absent from the gallery, and a search without any valid match, are defects; what a rule drops is a
    warning, and a note where the protocol searches a part of the gallery or the rule compares clothes: then it is so by
    design.
    """
    findings = []
    worst: dict[tuple[str, str], Unmatched] = {}
    for entry_ in unmatched:
        for reason, records in entry_.queries.items():
            key = (entry_.search.protocol, reason)
            if key not in worst or len(records) > len(worst[key].queries[reason]):
                worst[key] = entry_
        if len({record.person_id for record in entry_.search.gallery}) == 1:
            findings.append(
                Finding(
                    level="warning" if entry.own else "note",
                    kind="one_person",
                    count=len(entry_.search.gallery),
                    message=f"{entry_.search.title}: all images that are searched are of one person, so that every "
                    "order is right and the figures say nothing; add others",
                )
            )
        lost = sum(map(len, entry_.queries.values()))
        if entry_.search.query and lost == len(entry_.search.query):
            findings.append(
                Finding(
                    level="defect",
                    kind="search_without_match",
                    count=lost,
                    message=f"{entry_.search.title}: none of {lost} queries has a valid match, so it measures nothing",
                )
            )
    for (protocol, reason), case in worst.items():
        search, records = case.search, case.queries[reason]
        others = [name for name in entry.protocols if name not in (protocol, "own-data")]
        other = f", or choose another protocol ({', '.join(others[:4])})" if others else ""
        text = REASONS[reason].format(other=other, rule=search.exclusion_rule)
        designed = reason in BY_DESIGN or (reason == DROPPED and "clothes" in get_rule(search.exclusion_rule).needs)
        level: Level = "defect" if reason == PERSON_ABSENT else "note" if designed else "warning"
        findings.append(
            Finding(
                level=level,
                kind=f"query_{reason}",
                count=len(records),
                examples=examples(record.name for record in records),
                message=f"{search.title}: {len(records):,} of {len(search.query):,} queries have no valid match: "
                f"{text}",
            )
        )
    return findings
