"""From a release on disk to a benchmark: training labels, the test split of some protocols, a validation split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.vocabulary import Modality
from datasets.dataset_entry import DatasetEntry
from datasets.fitting import ModelNeeds, encodable, fit_split, pair_records
from datasets.given_instructions import with_gallery_alone, with_given
from datasets.instructions import InstructionMaker, annotate_release
from datasets.mixed_queries import drawn_searches, query_modalities
from datasets.overlap import apply_exclusions, image_values, load_exclusions
from datasets.protocols import Search, assemble_split
from datasets.published_counts import count_differences, differing_counts, equal_counts, is_rendered
from datasets.structures import Benchmark, EvalSplit, Record, Release, Source
from datasets.validation import (
    VAL_PROTOCOL,
    VAL_SEED,
    hold_out,
    mixed_validation,
    usable_rule,
    validation_search,
)
from utils.errors import UserError, nearest
from utils.files import fingerprint

logger = logging.getLogger(__name__)

TRAIN, VAL, VAL_QUERY, VAL_GALLERY = "train", "val", "val_query", "val_gallery"


def build_from_release(
    entry: DatasetEntry,
    release: Release,
    *,
    protocols: Sequence[str] = (),
    need_train: bool = True,
    select_val: bool = False,
    val_fraction: float = 0.0,
    maker: InstructionMaker = InstructionMaker(),
    needs: ModelNeeds = ModelNeeds(),
) -> Benchmark:
    """Return the benchmark of a release.

    protocols: names of those that make the split `test`, empty = the data set's default ones. need_train: False leaves
    `train` empty. select_val: make the split `val`. It is the data set's own (`val_query` and `val_gallery`, or `val`)
    where that shares no person with train, else val_fraction of the training identities, held out. Without select_val a
    `val` of other persons joins train (SYSU-MM01); one of the same persons (PRCC) is never used. maker: gives queries
    and gallery items the instruction that a model may follow, and the annotation that mAP at a threshold compares.
    needs: what a model and its objective take; what it cannot use is left aside with a note.
    Labels are 0..n-1 in the order of the sorted ids. Raises UserError for an unknown protocol, a missing part, and
    persons that are in train and in a search.
    """
    release = annotate_release(release, maker)
    test = _test_searches(entry, release, protocols, need_train)
    notes = [*release.notes, *_dropped(release), *published_notes(entry, release)]
    splits: dict[str, EvalSplit] = {}
    if test:
        splits["test"] = _test_split(entry, release, test, maker)
    else:
        notes.append(f"{entry.title} has no test part: it can be trained on, not evaluated")
    if not entry.separate_ids and not release.shared_persons:
        _check_overlap(entry, release, test)
    train: Sequence[Record] = ()
    if need_train:
        release, aside = _without_unknown(release, needs)
        notes += aside
        train, validation = _divide(entry, release, test, _Validation(select_val, val_fraction, needs.paired))
        if validation is not None:
            searches, summary = validation
            splits["val"] = _validation_split(searches, summary, maker, needs)
            notes.append(f"validation: {summary}")
        if needs.paired:
            train, aside = pair_records(entry.name, train, needs.modalities)
            notes += aside
    for name, split in splits.items():
        named = replace(split, person_names=release.person_names)
        splits[name], aside = fit_split(entry.name, named, needs, entry.own)
        notes += aside
    records = relabel(train)
    for note in notes:
        logger.info("%s", note)
    return Benchmark(
        name=entry.name,
        train=records,
        num_identities=len({record.person_id for record in records}),
        splits=splits,
        fingerprint=digest(records, splits, release.root),
        notes=tuple(notes),
        trials=dict(release.trials),
    )


def _test_split(entry: DatasetEntry, release: Release, test: Sequence[Search], maker: InstructionMaker) -> EvalSplit:
    summaries = {name: protocol.summary for name, protocol in entry.protocols.items()}
    split = with_unique_titles(assemble_split("test", test, summaries, maker.for_test))
    groups = dict.fromkeys(group for protocol in entry.protocols.values() for group in protocol.groups)
    split = replace(split, missing_lists=dict(release.missing), groups=tuple(groups))
    split = with_given(split, maker.config.given)
    return with_gallery_alone(split) if maker.config.gallery == "none" else split


def _validation_split(
    searches: Iterable[Search], summary: str, maker: InstructionMaker, needs: ModelNeeds
) -> EvalSplit:
    searches = [replace(search, gallery_instructions=needs.told_gallery) for search in searches]
    return assemble_split("val", searches, {VAL_PROTOCOL: summary}, maker.for_test)


def _without_unknown(release: Release, needs: ModelNeeds) -> tuple[Release, list[str]]:
    """Return the release whose training records hold what the model encodes only, and notes on the rest."""
    notes: list[str] = []
    parts = dict(release.parts)
    for part in (TRAIN, VAL):
        if parts.get(part):
            kept, aside = encodable(release.name, parts[part], needs.modalities)
            parts[part] = tuple(kept)
            notes += aside
    return replace(release, parts=parts), list(dict.fromkeys(notes))


def exclude_listed(release: Release, listing: Path, root: Path, need_train: bool) -> Release:
    """Return the release without the images of a list (data.exclude). Raises UserError for a path that is no image of
    it.

    Without need_train the training images may not have been read; listed ones that exist are then passed over.
    """
    excluded = load_exclusions(listing, root)
    if not need_train:
        known = {os.path.abspath(value) for records in release.parts.values() for value in image_values(records)}
        excluded = {path: where for path, where in excluded.items() if path in known or not os.path.exists(path)}
    return apply_exclusions(release, excluded) if excluded else release


def relabel(records: Sequence[Record]) -> tuple[Record, ...]:
    """Return the records with labels 0..n-1 in the order of their sorted person ids."""
    labels = {person: label for label, person in enumerate(sorted({record.person_id for record in records}))}
    return tuple(replace(record, person_id=labels[record.person_id]) for record in records)


def with_unique_titles(split: EvalSplit) -> EvalSplit:
    """Return the split with a number behind titles that several of its lists have: results are told apart by them."""
    names = [queries.name for queries in split.query_lists]
    if len(set(names)) == len(names):
        return split
    seen: dict[str, int] = {}
    lists = []
    for queries in split.query_lists:
        seen[queries.name] = seen.get(queries.name, 0) + 1
        lists.append(
            queries
            if names.count(queries.name) == 1
            else replace(queries, title=f"{queries.name} ({seen[queries.name]})")
        )
    return replace(split, query_lists=tuple(lists))


def _test_searches(entry: DatasetEntry, release: Release, names: Sequence[str], need_train: bool) -> list[Search]:
    if entry.own and need_train and not names and release.parts.keys().isdisjoint(("query", "gallery")):
        # A user's own images may be there to be trained on alone.
        return []
    for name in names:
        if name not in entry.protocols:
            raise UserError(
                f"data.protocols: {entry.name} has no protocol {name!r}, {nearest(name, entry.protocols)}"
                if entry.protocols
                else f"data.protocols = {name!r}: {entry.title} has no test part, so no protocol"
            )
    chosen: list[Search] = []
    for name in dict.fromkeys(names or entry.default):
        try:
            searches = list(entry.protocols[name].searches(release))
        except KeyError as error:
            raise UserError(
                f"protocol {name} of {entry.name} needs the part {error.args[0]!r}, which {release.root} lacks (there: "
                f"{', '.join(release.parts) or 'none'}); restore it or choose another with data.protocols"
            ) from error
        for search in searches:
            for side, records in (("queries", search.query), ("gallery images", search.gallery)):
                if not records:
                    raise UserError(
                        f"protocol {name} of {entry.name}: {search.title} has no {side} in {release.root}; restore the "
                        "files or choose another with data.protocols"
                    )
        chosen += searches
    return chosen


@dataclass(frozen=True)
class _Validation:
    """How a validation split is asked for."""

    wanted: bool
    fraction: float
    """Of the training identities, where the data set has none of its own."""
    paired: bool
    """Mixed queries are drawn where the held-out records have several modalities."""


def _divide(
    entry: DatasetEntry, release: Release, test: Sequence[Search], asked: _Validation
) -> tuple[Sequence[Record], tuple[Sequence[Search], str] | None]:
    """Return the training records and, when asked for, the validation searches with their summary."""
    parts = release.parts
    train = parts.get(TRAIN, ())
    if not train:
        raise UserError(
            f"{entry.title} at {release.root} has no training part (there: {', '.join(parts) or 'none'}); train on "
            "another data set, or only evaluate with test.py"
        )
    persons = {record.person_id for record in train}
    own = parts.get(VAL, ())
    if own and not persons.isdisjoint(record.person_id for record in own):
        own = ()
    if not asked.wanted:
        return (*train, *own), None
    default = test[0] if test else None
    if VAL_QUERY in parts and VAL_GALLERY in parts:
        listed = _own_searches(parts[VAL_QUERY], parts[VAL_GALLERY], default, asked.paired)
        return train, (listed, "the data set's own validation queries and gallery")
    if own:
        searches, roles = _validation(entry, own, default, asked.paired)
        count = len({record.person_id for record in own})
        return train, (searches, f"the data set's own {count} validation identities, {roles}")
    if asked.fraction <= 0:
        raise UserError(
            f"train.select = 'val' needs data.val_fraction > 0, because {entry.title} has no validation identities of "
            "its own; set it, or select test or last"
        )
    # A paired objective searches visible images, and leaves persons without one out of training.
    able = {record.person_id for record in train if not asked.paired or Modality.RGB in record.sources}
    held_out = hold_out(able, asked.fraction)
    searches, roles = _validation(
        entry, [record for record in train if record.person_id in held_out], default, asked.paired
    )
    kept = [record for record in train if record.person_id not in held_out]
    return kept, (searches, f"{len(held_out)} of {len(able)} training identities held out, {roles}")


def _validation(
    entry: DatasetEntry, records: Sequence[Record], default: Search | None, paired: bool
) -> tuple[Sequence[Search], str]:
    if entry.validation is not None:
        return entry.validation(records)
    if paired and len(query_modalities(records)) > 1:
        return mixed_validation(records)
    search, roles = validation_search(records, default)
    return [search], roles


def _own_searches(
    query: Sequence[Record], gallery: Sequence[Record], default: Search | None, paired: bool
) -> list[Search]:
    rule = usable_rule(default.exclusion_rule if default is not None else "none", query, gallery)
    listed = Search(
        title=VAL_PROTOCOL,
        protocol=VAL_PROTOCOL,
        query=query,
        gallery=gallery,
        exclusion_rule=rule,
        cmc=default.cmc if default is not None else "image",
    )
    several = paired and len(query_modalities(query)) > 1
    return [listed, *(drawn_searches([*query, *gallery], VAL_PROTOCOL, VAL_SEED, smallest=2) if several else ())]


def _check_overlap(entry: DatasetEntry, release: Release, test: Sequence[Search]) -> None:
    train = release.parts.get(TRAIN, ())
    searched = {record.person_id for search in test for side in (search.query, search.gallery) for record in side}
    shared = [record for record in train if record.person_id in searched]
    if shared:
        persons = sorted({record.person_id for record in shared})
        first = release.person(persons[0])
        raise UserError(
            f"{len(persons)} persons of {entry.name} are in train and in test, for instance {first} "
            f"({shared[0].name}); training and test identities must not overlap: correct the lists or folders"
        )


def _dropped(release: Release) -> list[str]:
    if not release.dropped:
        return []
    return [
        "left out by the data set's own rules: "
        + ", ".join(f"{what}: {count:,}" for what, count in release.dropped.items())
    ]


def published_notes(entry: DatasetEntry, release: Release) -> list[str]:
    """Return one line: the counts that differ from the published ones, or that none does. Nothing for rendered data."""
    compared, different = count_differences(entry, release)
    if not compared or is_rendered(release):
        return []
    return [
        f"{differing_counts(entry, compared, different)}: {', '.join(different)}"
        if different
        else equal_counts(entry, compared)
    ]


def digest(train: Iterable[Record], splits: Mapping[str, EvalSplit], root: Path) -> str:
    """Return the fingerprint of every record, label, list and option; it does not depend on where the data lie.

    It names the data in checkpoints and results and refuses nothing: a run whose checkpoint names another one (ORBench
    was named otherwise before its reader gave a release) is opened and tested as ever, a gallery that was encoded under
    another one is encoded anew, and a comparison of two results says that they differ.
    """
    relative = _relative_to(root)
    parts: list[Any] = [_described(record, relative) for record in train]
    for name, split in sorted(splits.items()):
        gallery = zip(
            split.gallery_ids,
            split.gallery,
            *(
                _column(values, len(split.gallery))
                for values in (
                    split.gallery_camera_ids,
                    split.gallery_clothes_ids,
                    split.gallery_instructions,
                    split.gallery_annotations,
                )
            ),
        )
        parts += [name, split.protocol, list(split.pooled_groups)]
        parts += [
            [
                person,
                relative(source),
                camera,
                clothes,
                _optional(instruction, relative),
                _annotated(annotations, relative),
            ]
            for person, source, camera, clothes, instruction, annotations in gallery
        ]
        for queries in split.query_lists:
            parts.append(
                [queries.name, queries.group, queries.protocol, queries.exclusion_rule, queries.cmc, queries.gallery]
            )
            columns = zip(
                queries.person_ids,
                queries.entries,
                *(
                    _column(values, len(queries.entries))
                    for values in (queries.camera_ids, queries.clothes_ids, queries.instructions, queries.annotations)
                ),
            )
            parts += [
                [
                    person,
                    [relative(source) for source in sources],
                    camera,
                    clothes,
                    _optional(instruction, relative),
                    _optional(annotation, relative),
                ]
                for person, sources, camera, clothes, instruction, annotation in columns
            ]
    return fingerprint(parts)


Relative = Callable[[Source], list[str]]


def _relative_to(root: Path) -> Relative:
    # Annotations of one outfit and draws of one gallery share their sources.
    prefix, known = f"{root}/", dict[Source, list[str]]()

    def relative(source: Source) -> list[str]:
        if source not in known:
            known[source] = [source.modality.value, source.value.removeprefix(prefix), source.crop]
        return known[source]

    return relative


def _column(values: Sequence[Any], count: int) -> Sequence[Any]:
    return values or (None,) * count


def _optional(source: Source | None, relative: Relative) -> list[str] | None:
    return None if source is None else relative(source)


def _annotated(annotations: Mapping[Any, Source] | None, relative: Relative) -> list[Any]:
    return [[kind.value, relative(source)] for kind, source in sorted((annotations or {}).items())]


def _described(record: Record, relative: Relative) -> list[Any]:
    return [
        record.person_id,
        record.camera_id,
        record.clothes_id,
        record.task.value,
        [relative(source) for _, source in sorted(record.sources.items())],
        [
            [modality.value, [relative(source) for source in candidates]]
            for modality, candidates in sorted(record.partners.items())
        ],
        _annotated(record.annotations, relative),
    ]
