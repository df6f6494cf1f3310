"""Several data sets below one folder, read by their own readers, trained on and searched together.

Parts are `<member>/<part>` and `train`, the training records of all members. Persons and cameras are kept apart per
member by offsets, so that a number is unique in the whole release; the members' own protocols see their own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from configs.schema.data import DataConfig
from configs.vocabulary import Task
from datasets.catalogue import CATALOGUE, dataset_entry, read_release
from datasets.dataset_entry import OPTIONS, DatasetEntry
from datasets.formats.joining import (
    JOINT,
    JOINT_SUMMARY,
    TASK_FREE,
    TASK_FREE_SUMMARY,
    Member,
    Offset,
    joined_images,
    joint_searches,
    offsets_of,
    overlap_notes,
    refuse_identical,
    shifted,
    shifted_search,
    task_free_searches,
)
from datasets.protocols import Protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError, nearest

NAME, TITLE = "joint", "several data sets"
AUTHORS_TREE = "omnireid"
MEMBERS = tuple(name for name in CATALOGUE if name not in (NAME, AUTHORS_TREE) and not dataset_entry(name).own)
POOLED_PROTOCOLS: Mapping[str, tuple[str, ...]] = {"cocas": ("cocas-pid", "cocas-li")}
"""Member -> protocols whose searches are pooled, where these are not its default ones: in the joint test an identity is
a person.
"""
SINGLE_PROTOCOLS: Mapping[str, tuple[str, ...]] = {
    "cocas": ("cocas-target", "cocas-pid", "cocas-li", "cocas-li-target")
}
"""Member -> protocols searched task-free by themselves, where these are not its default ones."""
OPTIONAL_PARTS = {"cocas-li": "query_li", "cocas-li-target": "query_li"}
"""Protocol -> part without which it is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointRelease(Release):
    """A release with its members."""

    members: Mapping[str, Release] = field(default_factory=dict)
    """Name -> the member's release without records."""
    offsets: Mapping[str, Offset] = field(default_factory=dict)
    """Name -> what was added to its numbers."""


def read(root: Path, options: ReadOptions) -> JointRelease:
    """Read options.data.members, or every data set that is recognised in a folder below `root`. Raises UserError naming
    the member.
    """
    folders = _folders(root, options.data.members)
    _refuse_unowned(options.data, tuple(folders))
    releases = {
        name: read_release(dataset_entry(name), folder, replace(options, data=_own_options(name, options.data)))
        for name, folder in folders.items()
    }
    offsets = offsets_of(
        {
            name: [record for records in release.parts.values() for record in records]
            for name, release in releases.items()
        }
    )
    parts: dict[str, tuple[Record, ...]] = {}
    train: list[Record] = []
    notes: list[str] = []
    for name, release in releases.items():
        for part, records in release.parts.items():
            parts[f"{name}/{part}"] = tuple(shifted(record, offsets[name]) for record in records)
        train += _training(name, parts)
        notes += [f"{name}: {note}" for note in release.notes]
    images = joined_images(parts, {name: name for name in releases})
    notes += overlap_notes(images, {name: dataset_entry(name).name_pattern for name in releases})
    return JointRelease(
        name=NAME,
        root=root,
        parts=parts | ({"train": tuple(train)} if train else {}),
        notes=tuple(notes),
        offsets=offsets,
        dropped={
            f"{name}: {what}": count for name, release in releases.items() for what, count in release.dropped.items()
        },
        members={name: replace(release, parts={}, notes=()) for name, release in releases.items()},
        trials={name: trial for release in releases.values() for name, trial in release.trials.items()},
    )


def _training(name: str, parts: Mapping[str, tuple[Record, ...]]) -> tuple[Record, ...]:
    """Return the training records of a member, with those of its validation part where that has other persons."""
    train, val = parts.get(f"{name}/train", ()), parts.get(f"{name}/val", ())
    persons = {record.person_id for record in train}
    return train if not train or any(record.person_id in persons for record in val) else (*train, *val)


def _own_options(name: str, data: DataConfig) -> DataConfig:
    """Return the options that a member knows; the others as they are by default."""
    entry, plain = dataset_entry(name), DataConfig()
    return replace(
        data,
        members=(),
        variant=data.variant if data.variant in entry.variants else plain.variant,
        trial=data.trial if "trial" in entry.options else plain.trial,
        merge_val=data.merge_val if "merge_val" in entry.options else plain.merge_val,
    )


def _refuse_unowned(data: DataConfig, members: tuple[str, ...]) -> None:
    """Raise UserError for an option that none of the members has."""
    entries = [dataset_entry(name) for name in members]
    for option, asked in OPTIONS.items():
        value = asked(data)
        owned = option == "members" or any(
            option in entry.options and (option != "variant" or value in entry.variants) for entry in entries
        )
        if value and not owned:
            raise UserError(
                f"data.{option}={value} belongs to none of the members ({', '.join(members)}); remove the option"
            )


def _folders(root: Path, members: tuple[str, ...]) -> dict[str, Path]:
    """Return the folder of each member. A member that no single folder is recognised as reads `root` itself, and says
    what is wrong.
    """
    if not root.is_dir():
        raise UserError(
            f"no such data root: {root}; set data.root to the folder that contains the folders of several data sets"
        )
    for member in members:
        if member not in MEMBERS:
            raise UserError(f"data.members: {member!r} is no data set that can be joined: {nearest(member, MEMBERS)}")
    below = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    seen = {name: [folder for folder in below if dataset_entry(name).recognise(folder)] for name in members or MEMBERS}
    folders = seen if members else _originals(root, below, seen)
    return {name: candidates[0] if len(candidates) == 1 else root for name, candidates in folders.items()}


def _originals(root: Path, below: Sequence[Path], seen: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Return the folders of each recognised data set, without those in the authors' tree, whose copies of several data
    sets would be taken for the originals. Raises UserError when there is none, and for a folder that looks like two.
    """
    authors = [folder for folder in below if dataset_entry(AUTHORS_TREE).recognise(folder)]
    kept = {name: [folder for folder in folders if folder not in authors] for name, folders in seen.items()}
    kept = {name: folders for name, folders in kept.items() if folders}
    if not kept:
        raise UserError(
            f"no folder in {root} is recognised as a data set; set data.root to the folder that contains them, or name "
            f"them with data.members ({', '.join(MEMBERS[:4])}, ...)"
        )
    owners: dict[Path, str] = {}
    for name, folders in kept.items():
        for folder in folders:
            if owners.setdefault(folder, name) != name:
                raise UserError(f"{folder} looks like {owners[folder]} and like {name}; say which with data.members")
    return kept


def members_of(release: Release, joint: bool) -> list[Member]:
    """Return the members that have test parts, with the searches of their own protocols. joint: those for the pooled
    test.

    Raises UserError for identical images, where several members are searched or trained on together, and for persons of
    a member that are both in train and in a search.
    """
    assert isinstance(release, JointRelease)
    names = {name: name for name in release.members}
    used = {part: records for part, records in release.parts.items() if joint or part.endswith("/train")}
    refuse_identical(joined_images(used, names))
    return [member for name in names for member in _member(release, name, joint)]


def _member(release: JointRelease, name: str, joint: bool) -> list[Member]:
    entry, offset = dataset_entry(name), release.offsets[name]
    parts = {
        part.removeprefix(f"{name}/"): tuple(shifted(record, offset.negative()) for record in records)
        for part, records in release.parts.items()
        if part.startswith(f"{name}/")
    }
    chosen = (POOLED_PROTOCOLS if joint else SINGLE_PROTOCOLS).get(name, entry.default)
    searches = [
        search
        for protocol in chosen
        if OPTIONAL_PARTS.get(protocol, "") in {"", *parts}
        for search in entry.protocols[protocol].searches(replace(release.members[name], parts=parts))
    ]
    trained = frozenset() if entry.separate_ids else frozenset(record.person_id for record in parts.get("train", ()))
    for search in searches:
        shared = next(
            (record for side in (search.query, search.gallery) for record in side if record.person_id in trained), None
        )
        if shared is not None:
            raise UserError(
                f"person {shared.person_id} of {name} is in train and in test ({shared.name}); training and test "
                "identities must not overlap: correct its lists or folders"
            )
    return (
        [Member(name=name, source=name, searches=tuple(shifted_search(search, offset, name) for search in searches))]
        if searches
        else []
    )


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    read=read,
    protocols=protocol_table(
        (
            Protocol(
                name=TASK_FREE,
                searches=lambda release: task_free_searches(members_of(release, joint=False)),
                summary=TASK_FREE_SUMMARY,
            ),
            Protocol(
                name=JOINT,
                searches=lambda release: joint_searches(members_of(release, joint=True)),
                summary=JOINT_SUMMARY,
            ),
        )
    ),
    default=(JOINT,),
    recognise=lambda _: False,
    composed=True,
    separate_ids=True,
    options=frozenset(OPTIONS),
    variants=tuple(variant for name in MEMBERS for variant in dataset_entry(name).variants),
    access="Each member under its own licence.",
)
