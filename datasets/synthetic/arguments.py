"""What a rendering is asked for, checked before anything heavy is imported. Standard library only."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from utils.errors import UserError, nearest

LAYOUTS = {"orbench": "datasets.synthetic.layouts.orbench"}
"""Name of a layout -> module with `FOLDER` (the name of its root folder) and `plan(arguments) -> Plan`."""

MINIMUM_SIDE, MAXIMUM_SIDE = 16, 1024


@dataclass(frozen=True, slots=True)
class RenderArguments:
    """Everything that decides the pictures. identities: training persons; image_size: (height, width) in pixels."""

    layout: str
    identities: int
    test_identities: int
    seed: int
    image_size: tuple[int, int]
    images_per_modality: int

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(f"unknown layout {self.layout!r}: {nearest(self.layout, LAYOUTS)}")
        for name, value in (("identities", self.identities), ("test-identities", self.test_identities),
                            ("images-per-modality", self.images_per_modality)):
            if value < 1:
                raise UserError(f"--{name} is {value}: give at least 1")
        if not all(MINIMUM_SIDE <= side <= MAXIMUM_SIDE for side in self.image_size):
            raise UserError(f"--image-size is {self.image_size[0]}x{self.image_size[1]}: "
                            f"both sides must lie in {MINIMUM_SIDE}..{MAXIMUM_SIDE} pixels")

    def layout_module(self) -> ModuleType:
        """Import and return the layout's module."""
        return importlib.import_module(LAYOUTS[self.layout])


def parse_image_size(text: str) -> tuple[int, int]:
    """Return (height, width) from `128x64`. Raises UserError for anything else."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--image-size is {text!r}: write HEIGHTxWIDTH in pixels, for instance 128x64")
    return int(parts[0]), int(parts[1])
