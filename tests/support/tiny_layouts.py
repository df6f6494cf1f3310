"""Rendered layouts that hold no pictures, and whether a query of theirs has something to find."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from datasets.protocols import Search
from datasets.structures import Record
from datasets.synthetic.arguments import LAYOUTS, RenderArguments
from datasets.synthetic.shots import Plan

SMALL: dict[str, Any] = {
    "identities": 5,
    "test_identities": 3,
    "seed": 3,
    "image_size": (32, 16),
    "images_per_modality": 2,
}


def plan_of(layout: str, **changes: Any) -> Plan:
    return importlib.import_module(LAYOUTS[layout]).plan(RenderArguments(layout, **{**SMALL, **changes}))


def laid_out(layout: str, root: Path, **changes: Any) -> tuple[Path, Plan]:
    """Folder of a plan whose pictures hold their paths only."""
    folder, plan = root / importlib.import_module(LAYOUTS[layout]).FOLDER, plan_of(layout, **changes)
    contents: dict[str, bytes] = {shot.path: shot.path.encode() for shot in plan.shots}
    contents |= {path: text.encode() for path, text in plan.texts.items()} | dict(plan.binaries)
    contents |= {path: json.dumps(value).encode() for path, value in plan.annotations.items()}
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder, plan


def counts_as_match(rule: str, query: Record, item: Record) -> bool:
    """Whether a gallery item of the query's person may be found, written out rule by rule."""
    if query.person_id != item.person_id:
        return False
    return {
        "none": True,
        "same_camera": query.camera_id != item.camera_id or query.camera_id < 0,
        "sysu": not (query.camera_id == 3 and item.camera_id == 2),
    }[rule]


def matched(search: Search) -> int:
    """Number of queries with something to find."""
    gallery: dict[int, list[Record]] = {}
    for record in search.gallery:
        gallery.setdefault(record.person_id, []).append(record)
    return sum(
        any(counts_as_match(search.exclusion_rule, query, item) for item in gallery.get(query.person_id, ()))
        for query in search.query
    )
