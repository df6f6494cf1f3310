"""Checks of ranges that every section shares."""

from __future__ import annotations

from typing import Any


def require(condition: bool, key: str, value: Any, rule: str) -> None:
    """Raise ValueError that names an option, its value and the rule that it breaks."""
    if not condition:
        raise ValueError(f"{key} = {value!r}: must be {rule}")
