"""Several data sets below one folder, read by their own readers, trained on and searched together.

Parts are `<member>/<part>` and `train`, the training records of all members. Persons and cameras are kept apart per
member by offsets, so that a number is unique in the whole release; the members' own protocols see their own numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from configs.vocabulary import Task
from datasets.catalogue import CATALOGUE, dataset_entry
from datasets.dataset_entry import DatasetEntry
from datasets.formats.joining import (
    JOINT,
    JOINT_SUMMARY,
    TASK_FREE,
    TASK_FREE_SUMMARY,
    Member,
    Offset,
    Shifter,
    joined_images,
    joint_searches,
    offsets_of,
    overlap_notes,
    refuse_identical,
    shifted,
    task_free_searches,
)
from datasets.protocols import Protocol, protocol_table
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError, nearest

NAME, TITLE = "joint", "several data sets"
AUTHORS_TREE = "omnireid"
NO_MEMBERS = frozenset({NAME, AUTHORS_TREE, "manifest", "folders"})
MEMBERS = tuple(name for name in CATALOGUE if name not in NO_MEMBERS)
POOLED_PROTOCOLS: Mapping[str, tuple[str, ...]] = {"cocas": ("cocas-pid", "cocas-li")}
"""Member -> protocols whose searches are pooled, where these are not its default ones: in the joint test an identity is
a person.
"""
SINGLE_PROTOCOLS: Mapping[str, tuple[str, ...]] = {"cocas": ("cocas-target", "cocas-pid", "cocas-li")}
"""Member -> protocols searched task-free by themselves, where these are not its default ones."""
OPTIONAL_PARTS = {"cocas-li": "query_li"}
"""Protocol -> part without which it is left out."""
OWNERS = {"v1": "msmt17", "v2": "msmt17", "detected": "cuhk03", "labeled": "cuhk03"}
"""data.variant -> the member that it is meant for."""
WITH_VALIDATION_LIST, WITH_TRIALS = ("msmt17", "sysu"), ("regdb",)
"""Members that data.merge_val and data.trial are meant for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointRelease(Release):
    """A release with its members. members: name -> the member's release without records. offsets: name -> what was
    added.
    """

    members: Mapping[str, Release] = field(default_factory=dict)
    offsets: Mapping[str, Offset] = field(default_factory=dict)


def read(root: Path, options: ReadOptions) -> JointRelease:
    """Read options.members, or every data set that is recognised in a folder below `root`. Raises UserError naming the
    member.
    """
    folders = _folders(root, options.members)
    _refuse_unowned(options, tuple(folders))
    releases = {name: dataset_entry(name).read(folder, _own_options(name, options)) for name, folder in folders.items()}
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


def _own_options(name: str, options: ReadOptions) -> ReadOptions:
    """Return the options that a member knows."""
    return replace(
        options,
        members=(),
        variant=options.variant if OWNERS.get(options.variant) == name else "",
        trial=options.trial if name in WITH_TRIALS else 1,
        merge_val=options.merge_val if name in WITH_VALIDATION_LIST else True,
    )


def _refuse_unowned(options: ReadOptions, members: tuple[str, ...]) -> None:
    """Raise UserError for an option that none of the members has."""
    for given, text, owners in (
        (bool(options.variant), f"data.variant={options.variant}", (OWNERS.get(options.variant, ""),)),
        (options.trial != 1, f"data.trial={options.trial}", WITH_TRIALS),
        (not options.merge_val, "data.merge_val=false", WITH_VALIDATION_LIST),
    ):
        if given and not set(owners) & set(members):
            raise UserError(f"{text} belongs to none of the members ({', '.join(members)}); remove the option")


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
    below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    seen = {name: [folder for folder in below if dataset_entry(name).recognise(folder)] for name in members or MEMBERS}
    if members:
        return {name: folders[0] if len(folders) == 1 else root for name, folders in seen.items()}
    # The authors' tree holds copies of several data sets, whose folders would be taken for the originals.
    authors = {folder for folder in below if dataset_entry(AUTHORS_TREE).recognise(folder)}
    found = {
        name: kept
        for name, folders in seen.items()
        if (kept := [folder for folder in folders if folder not in authors])
    }
    if not found:
        raise UserError(
            f"no folder in {root} is recognised as a data set; set data.root to the folder that contains them, or name "
            f"them with data.members ({', '.join(MEMBERS[:4])}, ...)"
        )
    owners: dict[Path, str] = {}
    for name, folders in found.items():
        for folder in folders:
            if owners.setdefault(folder, name) != name:
                raise UserError(f"{folder} looks like {owners[folder]} and like {name}; say which with data.members")
    return {name: folders[0] if len(folders) == 1 else root for name, folders in found.items()}


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
    own, shift = Shifter(offset.negative()), Shifter(offset)
    parts = {
        part.removeprefix(f"{name}/"): own(records)
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
    return [Member(name=name, source=name, searches=tuple(map(shift.search, searches)))] if searches else []


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
    separate_ids=True,
    access="Each member under its own licence.",
)
