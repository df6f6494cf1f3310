"""The table of data sets. A new one is a module that ends in its `DATASET`, and one line here."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from datasets.dataset_entry import DatasetEntry, refuse_options
from datasets.loading.suffixes import unread_images, unread_notes
from datasets.overlap import image_values
from datasets.structures import ReadOptions, Release
from utils.errors import UserError, nearest

CATALOGUE: dict[str, str] = {
    "orbench": "datasets.releases.orbench",
    "market1501": "datasets.releases.market1501",
    "msmt17": "datasets.releases.msmt17",
    "cuhk03": "datasets.releases.cuhk03",
    "prcc": "datasets.releases.prcc",
    "vc-clothes": "datasets.releases.vc_clothes",
    "ltcc": "datasets.releases.ltcc",
    "last": "datasets.releases.last",
    "nkup": "datasets.releases.nkup",
    "nkup-plus": "datasets.releases.nkup_plus",
    "cocas": "datasets.releases.cocas",
    "llcm": "datasets.releases.llcm",
    "sysu": "datasets.releases.sysu",
    "regdb": "datasets.releases.regdb",
    "cuhk-pedes": "datasets.releases.cuhk_pedes",
    "icfg-pedes": "datasets.releases.icfg_pedes",
    "rstpreid": "datasets.releases.rstpreid",
    "synth-pedes": "datasets.releases.synth_pedes",
    "omnireid": "datasets.releases.omnireid",
    "joint": "datasets.releases.joint",
    "manifest": "datasets.releases.manifest",
    "folders": "datasets.releases.folders",
}
"""Name -> module with `DATASET: DatasetEntry`, imported when it is asked for."""


def dataset_entry(name: str) -> DatasetEntry:
    """Return the entry of a data set. Raises UserError that names the nearest one."""
    if name not in CATALOGUE:
        raise UserError(f"unknown data set {name!r} (data.dataset): {nearest(name, CATALOGUE)}")
    entry = importlib.import_module(CATALOGUE[name]).DATASET
    assert isinstance(entry, DatasetEntry) and entry.name == name
    return entry


def owners_of(option: str) -> list[str]:
    """Return the data sets that have an option of dataset_entry.OPTIONS."""
    return [name for name in CATALOGUE if option in dataset_entry(name).options]


def read_release(entry: DatasetEntry, root: Path, options: ReadOptions) -> Release:
    """Read a data set; a note says which images beside those that it lists are of a form that is not read.

    Raises UserError for an option that it does not have, and for whatever its reader refuses.
    """
    refuse_options(entry, options.data, owners_of)
    release = entry.read(root, options)
    if entry.own or entry.composed:
        return release
    images = (value for records in release.parts.values() for value in image_values(records))
    return replace(release, notes=(*release.notes, *unread_notes(unread_images(images))))
