"""A user's own data, a folder per person; no list and no code to write.

`root/<person>/*.jpg`, or `root/{train,val,query,gallery,test}/<person>/*.jpg` with any of these splits; what a split
means is said in `datasets.releases.manifest`. Without split folders every image is trained on and tested leave-one-out,
and a note says so. Cameras, clothes and captions cannot be given this way: a manifest has columns for them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.vocabulary import Task
from datasets.dataset_entry import DatasetEntry
from datasets.formats.listing import ImageTree
from datasets.formats.manifest_rows import SPLITS, SUFFIXES, ManifestRow
from datasets.loading.suffixes import SHOWN, unread_notes
from datasets.releases.manifest import own_protocols, release_of_rows
from datasets.structures import WARNING, ReadOptions, Release
from utils.errors import UserError, shortened
from utils.texts import one_form


def read(root: Path, options: ReadOptions) -> Release:
    """Return the release of the folders below `root`. Raises UserError naming the folder."""
    tree = ImageTree(root)
    release = release_of_rows("folders", root, root, folder_rows(root, tree), options)
    return replace(release, notes=(*release.notes, *folder_notes(tree)))


def folder_notes(tree: ImageTree) -> tuple[str, ...]:
    """Return what is to be said of files that are passed over, and of persons who have no others. Raises UserError."""
    persons = _person_folders(tree)
    splits = dict.fromkeys(split for split, _ in persons if split)
    folders = [_joined(split, person) for split, person in persons]
    left_out = [path for folder in ("", *splits, *folders) for path in tree.passed_over(folder)]
    empty = [folder for folder in folders if not tree.names(folder)]
    notes = unread_notes(left_out)
    if empty:
        notes += (f"{WARNING}{len(empty)} folders of persons hold no image that is read: {shortened(empty, SHOWN)}",)
    return notes


def _person_folders(tree: ImageTree) -> list[tuple[str, str]]:
    """Return (split, person) of every person's folder; the split is empty where there are none."""
    names = tree.folders("")
    splits = [split for split in SPLITS if split in names]
    if not splits:
        return [("", person) for person in names]
    return [(split, person) for split in splits for person in tree.folders(split)]


def _joined(split: str, person: str) -> str:
    return f"{split}/{person}" if split else person


def folder_rows(root: Path, tree: ImageTree) -> list[ManifestRow]:
    """Return a row per image below `root`, sorted by split, person and name. tree: of the root, read as it is asked.

    Raises UserError naming the folder.
    """
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        raise UserError(f"data.root={root} is a file; for a manifest set data.dataset=manifest")
    if not root.is_dir():
        raise UserError(f"no such data root: {root}; set data.root to the folder that holds a folder per person")
    names = tree.folders("")
    splits = [split for split in SPLITS if split in names]
    others = [name for name in names if name not in SPLITS]
    if splits and others:
        raise UserError(
            f"{root}: {others[0]}/ stands beside {splits[0]}/; either every folder is a person, or every folder is one "
            f"of {', '.join(SPLITS)}"
        )
    if not names:
        raise UserError(
            f"{root} holds no folder; make one folder per person, named as the person, with the images in it"
        )
    for folder in ("", *splits):
        _refuse_loose(tree, folder)
    rows = [
        row
        for split, person in _person_folders(tree)
        for row in _person_rows(tree, _joined(split, person), person, split)
    ]
    if not rows:
        raise UserError(f"{root}: no images in its folders; put each person's images directly into the person's folder")
    return rows


def _refuse_loose(tree: ImageTree, folder: str) -> None:
    loose = tree.names(folder)
    if loose:
        raise UserError(
            f"{tree.root / folder}: {len(loose)} images lie beside the folders, for instance {loose[0]}; move each "
            "into the folder of its person"
        )


def _person_rows(tree: ImageTree, folder: str, person: str, split: str) -> list[ManifestRow]:
    deeper = tree.folders(folder)
    if deeper:
        raise UserError(
            f"{tree.root / folder} is a person's folder but holds the folder {deeper[0]}/; put the images directly "
            "into it, or list them in a manifest"
        )
    return [
        ManifestRow(path=f"{folder}/{name}", person=one_form(person), split=split, where=f"{folder}/{name}")
        for name in tree.names(folder)
    ]


def _recognise(root: Path) -> bool:
    if not root.is_dir():
        return False
    tree = ImageTree(root)
    names = tree.folders("")
    return bool(names) and not tree.names("") and all(tree.names(name) for name in names[:5] if name not in SPLITS)


DATASET = DatasetEntry(
    name="folders",
    title="Own data (a folder per person)",
    task=Task.TRAD,
    read=read,
    protocols=own_protocols(),
    default=("own-data",),
    recognise=_recognise,
    own=True,
    access="Your own images; their licence is yours to know.",
)
