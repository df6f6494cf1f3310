"""What a rendering is asked for, checked before anything heavy is imported. Standard library only."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from utils.errors import UserError, nearest

LAYOUTS = {
    name: f"datasets.synthetic.layouts.{name.replace('-', '_')}"
    for name in (
        "orbench",
        "market1501",
        "msmt17",
        "cuhk03",
        "prcc",
        "ltcc",
        "vc-clothes",
        "last",
        "nkup",
        "llcm",
        "sysu",
        "regdb",
        "cuhk-pedes",
        "icfg-pedes",
        "rstpreid",
        "cocas",
        "omnireid",
    )
}
"""Name of a layout -> module with `FOLDER` (the name of its root folder) and `plan(arguments) -> Plan`."""

DEFAULT_IDENTITIES = {"orbench": 1200, "ltcc": 50, "omnireid": 50, "regdb": 200}
OTHER_IDENTITIES = 300
"""Training identities when none are asked for: no more than a layout's file names and lists can hold."""

MINIMUM_SIDE, MAXIMUM_SIDE = 16, 1024
MAXIMUM_PERSONS = 90_000
"""Persons of one part of one layout; a layout's file names may hold fewer."""
MAXIMUM_OUTFITS, MAXIMUM_IMAGES = 90, 500
OF_MEMBERS = "omnireid"
"""The layout that is made of members."""
MEMBERS = ("market", "msmt", "cuhk", "ltcc", "prcc", "vc_clothes", "real1", "real2", "llcm", "CUHK-Pedes")
"""Its members, by the names of their folders."""
LATER_ARGUMENTS: dict[str, Any] = {"shared_persons": 0, "outfits": 3, "members": ""}
"""Arguments that manifests of older renderings do not name, with the value that those had."""


@dataclass(frozen=True, slots=True)
class RenderArguments:
    """Everything that decides the pictures. identities: training persons; image_size: (height, width) in pixels;
    shared_persons: so many of the training persons are the first test persons too; outfits: per person, where clothes
    change; members: of the layout omnireid, empty = all.
    """

    layout: str
    identities: int
    test_identities: int
    seed: int
    image_size: tuple[int, int]
    images_per_modality: int
    shared_persons: int = LATER_ARGUMENTS["shared_persons"]
    outfits: int = LATER_ARGUMENTS["outfits"]
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(f"unknown layout {self.layout!r}: {nearest(self.layout, LAYOUTS)}")
        for name, value in (
            ("identities", self.identities),
            ("test-identities", self.test_identities),
            ("images-per-modality", self.images_per_modality),
            ("outfits", self.outfits),
        ):
            if value < 1:
                raise UserError(f"--{name} is {value}: give at least 1")
        for name, value, most in (
            ("identities", self.identities, MAXIMUM_PERSONS),
            ("outfits", self.outfits, MAXIMUM_OUTFITS),
            ("test-identities", self.test_identities, MAXIMUM_PERSONS),
            ("images-per-modality", self.images_per_modality, MAXIMUM_IMAGES),
        ):
            if value > most:
                raise UserError(f"--{name} is {value}: give at most {most}")
        if not 0 <= self.shared_persons <= min(self.identities, self.test_identities):
            raise UserError(
                f"--shared-persons is {self.shared_persons}: give 0..{min(self.identities, self.test_identities)}, no "
                "more than there are training or test identities"
            )
        if not all(MINIMUM_SIDE <= side <= MAXIMUM_SIDE for side in self.image_size):
            raise UserError(
                f"--image-size is {self.image_size[0]}x{self.image_size[1]}: both sides must lie in "
                f"{MINIMUM_SIDE}..{MAXIMUM_SIDE} pixels"
            )
        if self.members and self.layout != OF_MEMBERS:
            raise UserError(
                f"--members is {','.join(self.members)}, but the layout {self.layout} has no members: choose "
                f"--layout {OF_MEMBERS}, or leave --members away"
            )
        for name in self.members:
            if name not in MEMBERS:
                raise UserError(f"--members names {name!r}, no member of {OF_MEMBERS}: {nearest(name, MEMBERS)}")

    def layout_module(self) -> ModuleType:
        """Import and return the layout's module."""
        return importlib.import_module(LAYOUTS[self.layout])


def parse_layouts(values: Sequence[str]) -> tuple[str, ...]:
    """Return the layouts named by options that may each hold several names, comma separated; each name once. Raises
    UserError.
    """
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in names:
        if name not in LAYOUTS:
            raise UserError(f"unknown layout {name!r}: {nearest(name, LAYOUTS)}")
    if not names:
        raise UserError("--layout names no layout: give one of " + ", ".join(LAYOUTS))
    return tuple(dict.fromkeys(names))


def parse_members(text: str) -> tuple[str, ...]:
    """Return the members named by a comma separated option, each once and in the order of the tree; unknown ones last,
    for `RenderArguments` to refuse.
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    return (*(name for name in MEMBERS if name in names), *sorted(names - {*MEMBERS}))


def parse_image_size(text: str) -> tuple[int, int]:
    """Return (height, width) from `128x64`. Raises UserError for anything else."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--image-size is {text!r}: write HEIGHTxWIDTH in pixels, for instance 128x64")
    return int(parts[0]), int(parts[1])
