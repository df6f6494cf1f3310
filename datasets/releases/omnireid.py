"""OmniReID as its authors lay it out: data/<set>/ with images and datalists, every task in one folder.

The names in the authors' documents, configurations and code disagree (`query_v2.txt`, `train_cc_clo.txt`, CUHK-Pedes
and cuhk_pedes, real2_v1.json); all of them are accepted. Parts are `<set>/train`, `<set>/query`, `<set>/gallery`, and
`train`, all training records. Persons and cameras are kept apart per image source by offsets, so that a number is
unique in the whole release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.vocabulary import TASK_TAGS, AnnotationKind, Task
from datasets.dataset_entry import Count, DatasetEntry
from datasets.formats.datalists import DataList, ListReader, describe_gallery
from datasets.formats.joining import (
    JOINT,
    JOINT_SUMMARY,
    TASK_FREE,
    TASK_FREE_SUMMARY,
    Member,
    joined_images,
    joint_searches,
    offsets_of,
    overlap_notes,
    refuse_identical,
    shifted,
    task_free_searches,
)
from datasets.formats.listing import ImageTree
from datasets.instructions import BOX, box_note
from datasets.protocols import Protocol, Search, protocol_table
from datasets.releases.cocas import in_target_outfit
from datasets.structures import ReadOptions, Record, Release
from utils.errors import UserError, nearest

NAME, TITLE = "omnireid", "OmniReID"
LISTS, LISTS_TARGET = "lists", "lists-target"
TEST_ROLES = ("query", "gallery")
_TAGS = {task: tag for tag, task in TASK_TAGS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSet:
    """One data set of one task. folders: what its folder may be called.

    suffixes: what may follow the role in a list's name, in the order in which they are looked for. kinds: word -> task,
    where there are several test lists. captions: names of the file with the captions, in the order in which they are
    looked for; `*` stands for anything.
    """

    name: str
    task: Task
    folders: tuple[str, ...]
    suffixes: tuple[str, ...] = ("", "_v2", "_cc_clo")
    kinds: Mapping[str, Task] | None = None
    captions: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("train", *TEST_ROLES)

    @property
    def source(self) -> str:
        """Name of the image source: sets of one folder share images and persons."""
        return self.folders[0]


def _changing(name: str, *folders: str, kinds: Mapping[str, Task] | None = None) -> tuple[ListedSet, ListedSet]:
    """Return a clothes-changing set, and the same images with descriptions, which the paper annotates for most of them.
    The names of these lists are unconfirmed: those of real1 and real2 are taken.
    """
    return (
        ListedSet(name=name, task=Task.CC, folders=folders, kinds=kinds),
        ListedSet(
            name=f"{name}_attr", task=Task.LI, folders=folders, suffixes=("_attr",), captions=("runner_*_v1_gpt.json",)
        ),
    )


REAL2_CAPTIONS = ("runner_real2_v1_gpt.json", "real2_v1.json")
SETS: dict[str, ListedSet] = {
    entry.name: entry
    for entry in (
        ListedSet(name="market", task=Task.TRAD, folders=("market",)),
        ListedSet(name="msmt", task=Task.TRAD, folders=("msmt",)),
        ListedSet(name="cuhk03", task=Task.TRAD, folders=("cuhk",)),
        *_changing("ltcc", "ltcc", kinds={"cc": Task.CC, "sc": Task.TRAD, "general": Task.CC}),
        *_changing("prcc", "prcc"),
        *_changing("vc_clothes", "vc_clothes"),
        *_changing("last", "last", "LaST"),
        *_changing("nkup", "nkup", "NKUP"),
        *_changing("nkup_plus", "nkup_plus", "nkup+", "NKUP+"),
        ListedSet(name="real1_ctcc", task=Task.CTCC, folders=("real1",), suffixes=("_ctcc",), roles=("train",)),
        ListedSet(
            name="real1_attr",
            task=Task.LI,
            folders=("real1",),
            suffixes=("_attr",),
            captions=("runner_real1_v1_gpt.json", "real1_v1.json"),
            roles=("train",),
        ),
        ListedSet(name="real2", task=Task.CTCC, folders=("real2",), suffixes=("", "_ctcc"), roles=TEST_ROLES),
        ListedSet(
            name="real2_attr",
            task=Task.LI,
            folders=("real2",),
            suffixes=("_attr",),
            captions=REAL2_CAPTIONS,
            roles=TEST_ROLES,
        ),
        ListedSet(name="llcm", task=Task.VI, folders=("llcm", "LLCM")),
        ListedSet(
            name="cuhk_pedes",
            task=Task.T2I,
            folders=("cuhk_pedes", "CUHK-Pedes", "CUHK-PEDES"),
            suffixes=("_t2i_v2", "_t2i"),
            captions=("caption_t2i_v2.json", "caption_t2i.json"),
        ),
        ListedSet(
            name="plip",
            task=Task.T2I,
            folders=("PLIP", "plip"),
            suffixes=("_t2i",),
            captions=("caption_t2i.json", "caption_t2i_v2.json"),
            roles=("train",),
        ),
    )
}
"""Sets by name, in the order in which they are read."""


def read(root: Path, options: ReadOptions) -> Release:
    """Read every set that has lists below `root`, the authors' data/ folder; options.data.members (sets or tasks)
    restricts them.

    Raises UserError naming file and line, and when nothing is found.
    """
    data = _data_folder(root)
    parts: dict[str, tuple[Record, ...]] = {}
    notes: list[str] = []
    by_folder: dict[Path, dict[str, DataList]] = {}
    for entry in _chosen(options.data.members):
        folder, lists = _find_lists(data, entry, options, notes)
        if lists:
            by_folder.setdefault(folder, {}).update(lists)
        elif entry.name in options.data.members and (options.need_train or "query" in entry.roles):
            wanted = " or ".join(f"{role}{entry.suffixes[0]}.txt" for role in entry.roles)
            raise UserError(
                f"{folder} has no lists of {entry.name} ({wanted}, there or in its datalist/); restore them or change "
                "data.members"
            )
    if not by_folder:
        asked = f" named by data.members ({', '.join(options.data.members)})" if options.data.members else ""
        raise UserError(
            f"{root} holds no set of {TITLE}{asked}: expected folders like market/ or real2/ with datalist/query.txt "
            "and datalist/gallery.txt; set data.root to the authors' data folder"
        )
    for folder, lists in by_folder.items():
        parts |= ListReader(tree=ImageTree(folder, options.check_files), dataset=NAME, crop=options.crop).read(lists)
    for name in [part.rpartition("/")[0] for part in parts if part.endswith("/gallery")]:
        parts[f"{name}/gallery"] = describe_gallery(parts.get(f"{name}/query", ()), parts[f"{name}/gallery"])
    notes += [
        box_note(part, count) for part, count in ((part, _boxed(records)) for part, records in parts.items()) if count
    ]
    notes += overlap_notes(
        {
            KNOWN_AS.get(source, source): []
            for source in dict.fromkeys(SOURCE_OF[part.partition("/")[0]] for part in parts)
        },
        {},
    )
    parts = _kept_apart(parts)
    train = tuple(record for part, records in parts.items() if part.endswith("/train") for record in records)
    return Release(name=NAME, root=data, parts=parts | ({"train": train} if train else {}), notes=tuple(notes))


def _boxed(records: Iterable[Record]) -> int:
    return sum(
        source.crop == BOX
        for record in records
        for kind, source in record.annotations.items()
        if kind is AnnotationKind.CLOTHES
    )


def _data_folder(root: Path) -> Path:
    if not root.is_dir():
        raise UserError(
            f"no such data root: {root}; set data.root to {TITLE}'s data folder, which holds market/, ltcc/, real2/ ..."
        )
    return next(
        (
            folder
            for folder in (root, *(root / name for name in ("data", "OmniReID", "omnireid")))
            if recognise_data(folder)
        ),
        root,
    )


def _chosen(members: Sequence[str]) -> list[ListedSet]:
    """Return the sets named by themselves, by a task or by the authors' tag of a task; all without names. Raises
    UserError.
    """
    if not members:
        return list(SETS.values())
    known = {*SETS, *TASK_TAGS, *(task.value for task in _TAGS)}
    for member in members:
        if member not in known:
            raise UserError(f"data.members: {member!r} is no set or task of {TITLE}: {nearest(member, known)}")
    return [entry for entry in SETS.values() if {entry.name, entry.task.value, _TAGS[entry.task]} & set(members)]


def _find_lists(
    data: Path, entry: ListedSet, options: ReadOptions, notes: list[str]
) -> tuple[Path, dict[str, DataList]]:
    """Return the folder of a set and its lists by part; no lists when there are none. Raises UserError for half a test
    set.
    """
    folders = [data / name for name in entry.folders if (data / name).is_dir()] or [data / entry.folders[0]]
    for folder in folders:
        lists = _lists_in(folder, entry, options, notes)
        if lists:
            return folder, lists
    return folders[0], {}


def _lists_in(folder: Path, entry: ListedSet, options: ReadOptions, notes: list[str]) -> dict[str, DataList]:
    found: dict[str, tuple[Path, str, Task]] = {}
    for role in entry.roles:
        if role == "train" and not options.need_train:
            continue
        kinds = {"": entry.task} | (dict(entry.kinds) if entry.kinds and role != "train" else {})
        for kind, task in kinds.items():
            part = f"{role}_{kind}" if kind else role
            names = [f"{part}.txt"] if kind else [f"{role}{suffix}.txt" for suffix in entry.suffixes]
            paths = [path for name in names for path in (folder / "datalist" / name, folder / name) if path.is_file()]
            if len(paths) > 1:
                notes.append(
                    f"{entry.name}: {', '.join(str(path.relative_to(folder)) for path in paths)} are all there; the "
                    "first is read"
                )
            if paths:
                found[part] = (paths[0], role, task)
    for part in found:
        other = part.replace("query", "gallery") if part.startswith("query") else part.replace("gallery", "query")
        if not part.startswith("train") and other not in found:
            raise UserError(
                f"{folder}: {found[part][0].name} is there without a list of the {other.partition('_')[0]}; restore "
                f"{other}.txt"
            )
    return {
        f"{entry.name}/{part}": DataList(
            path=path,
            task=task,
            role=role,  # type: ignore[arg-type]
            captions=_captions_of(folder, entry),
        )
        for part, (path, role, task) in found.items()
    }


def _captions_of(folder: Path, entry: ListedSet) -> Path | None:
    if not entry.captions:
        return None
    paths = [
        path for name in entry.captions for place in (folder / "datalist", folder) for path in sorted(place.glob(name))
    ]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: the lists of {entry.name} need captions, and {' or '.join(entry.captions)} is neither there "
            "nor in its datalist/; restore it or choose other sets with data.members"
        )
    return found


def _kept_apart(parts: Mapping[str, tuple[Record, ...]]) -> dict[str, tuple[Record, ...]]:
    by_source: dict[str, list[Record]] = {}
    for part, records in parts.items():
        by_source.setdefault(SOURCE_OF[part.partition("/")[0]], []).extend(records)
    offsets = offsets_of(by_source)
    return {
        part: tuple(shifted(record, offsets[SOURCE_OF[part.partition("/")[0]]]) for record in records)
        for part, records in parts.items()
    }


SOURCE_OF = {entry.name: entry.source for entry in SETS.values()}
KNOWN_AS = {
    "market": "market1501",
    "msmt": "msmt17",
    "cuhk": "cuhk03",
    "cuhk_pedes": "cuhk-pedes",
    "nkup_plus": "nkup-plus",
}
"""Image source -> name in the catalogue, for what is known of overlaps."""
JOINT_KINDS = ("_cc", "_general", "_sc")
"""Of several test lists of one set, the first that is there takes part in the joint test."""


def members_of(release: Release, one_kind: bool = False) -> list[Member]:
    """Return the test sets of a release. one_kind: of several lists of one set only the first of JOINT_KINDS."""
    found: dict[str, list[Search]] = {}
    for part, records in release.parts.items():
        name, _, rest = part.partition("/")
        if not rest.startswith("query"):
            continue
        kind = rest.removeprefix("query")
        if one_kind and kind != next((entry for entry in JOINT_KINDS if f"{name}/query{entry}" in release.parts), ""):
            continue
        found.setdefault(name, []).extend(_searches(name, kind, records, release.parts[f"{name}/gallery{kind}"]))
    return [Member(name=name, source=SOURCE_OF[name], searches=tuple(searches)) for name, searches in found.items()]


def _searches(name: str, kind: str, query: Sequence[Record], gallery: Sequence[Record]) -> list[Search]:
    task = SETS[name].task
    title = f"{name} {kind.lstrip('_')}" if kind else name
    rule = "none" if task is Task.T2I else "same_camera"
    found = [Search(title=title, protocol=LISTS, query=query, gallery=gallery, exclusion_rule=rule)]
    if task is Task.VI:
        found.append(
            Search(title=f"{title} reversed", protocol=LISTS, query=gallery, gallery=query, exclusion_rule=rule)
        )
    return found


def _target_members(release: Release) -> list[Member]:
    """Return the test sets whose queries ask for an outfit, with the person in that outfit as identity."""
    return [
        replace(
            member,
            searches=tuple(
                replace(
                    search,
                    title=f"{search.title} target",
                    protocol=LISTS_TARGET,
                    query=in_target_outfit(search.query),
                    gallery=in_target_outfit(search.gallery),
                )
                for search in member.searches
            ),
        )
        for member in members_of(release)
        if SETS[member.name].task in (Task.CTCC, Task.LI)
    ]


def _target_searches(release: Release) -> list[Search]:
    found = [search for member in _target_members(release) for search in member.searches]
    if not found:
        raise UserError(
            f"{LISTS_TARGET} needs a test set whose queries ask for an outfit (real2, real2_attr), and none of "
            f"{release.root} is read; restore its lists, or change data.members or data.protocols"
        )
    return found


def _checked(release: Release, joint: bool) -> Release:
    """Return the release. Raises UserError for identical images where several sources are trained on or searched
    together.
    """
    used = {part: records for part, records in release.parts.items() if joint or part.endswith("/train")}
    refuse_identical(joined_images(used, SOURCE_OF))
    return release


def recognise_data(folder: Path) -> bool:
    """Return whether a folder looks like the authors' data folder: a set's folder with a list in it."""
    roles = (
        f"{place}{role}{suffix}.txt"
        for place in ("datalist/", "")
        for role in ("query", "train")
        for suffix in ("", "_attr", "_t2i_v2", "_cc")
    )
    names = {name for entry in SETS.values() for name in entry.folders}
    candidates = [f"{name}/{path}" for path in roles for name in sorted(names)]
    return any((folder / path).is_file() for path in candidates)


DATASET = DatasetEntry(
    name=NAME,
    title=TITLE,
    task=Task.TRAD,
    read=read,
    protocols=protocol_table(
        (
            Protocol(
                name=LISTS,
                searches=lambda release: [
                    search for member in members_of(_checked(release, joint=False)) for search in member.searches
                ],
                summary="each set's queries against its gallery as the authors list them, LLCM also the other way "
                "round; right is the person; the same person in the same camera is dropped where the lists give "
                "cameras; CMC over images",
            ),
            Protocol(
                name=LISTS_TARGET,
                searches=lambda release: _target_searches(_checked(release, joint=False)),
                summary="queries that ask for an outfit (CTCC, LI) against the gallery as the authors list them; right "
                "is the person in the outfit that the query line names, the same person in other clothes is a wrong "
                "result; images of the right person in the right outfit in the query's camera are dropped where the "
                "lists give cameras; CMC over images",
            ),
            Protocol(
                name=TASK_FREE,
                searches=lambda release: task_free_searches(
                    [*members_of(_checked(release, joint=False)), *_target_members(release)]
                ),
                summary=f"{TASK_FREE_SUMMARY}; rows `target`: right is the person in the outfit asked for",
            ),
            Protocol(
                name=JOINT,
                searches=lambda release: joint_searches(members_of(_checked(release, joint=True), one_kind=True)),
                summary=JOINT_SUMMARY,
            ),
        )
    ),
    default=(LISTS,),
    recognise=recognise_data,
    descriptions=f"datalist/{REAL2_CAPTIONS[0]}",
    published={
        "": {
            "msmt/train": Count(images=30_248, persons=1_041),
            "real1_ctcc/train": Count(images=34_469, persons=2_800),
            "llcm/train": Count(images=30_921, persons=713),
            "prcc/train": Count(images=17_896, persons=150),
            "last/train": Count(images=71_248, persons=5_000),
        }
    },
    separate_ids=True,
    options=frozenset({"members"}),
    access="The authors' datalists (Instruct-ReID, no licence stated) and each data set under its own licence; Real1 "
    "has no public download (the lists were not seen, their contents are unconfirmed).",
)
