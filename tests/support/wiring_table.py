"""Rows of the table of options: an experiment, an unusual value of each option, and where it is to be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wiring import Found

GIVEN = object()
"""What is found is the value itself."""


@dataclass(frozen=True)
class Option:
    """An unusual value, where it is to be seen, and what is seen there."""

    value: Any
    found: Found
    expected: Any = GIVEN


@dataclass(frozen=True)
class Experiment:
    """Options that one run can have together. base: options that only make it possible."""

    family: str
    options: Mapping[str, Option]
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fit: bool = False
