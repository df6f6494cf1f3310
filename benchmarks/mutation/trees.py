"""Damaged data sets: rendered trees of official layouts in which one thing is wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutation.damage import (
    damage_bytes,
    damage_json,
    damage_lines,
    instead_of_file,
    instead_of_folder,
    other_picture,
    replace_file,
)

PICTURES = {".jpg", ".bmp", ".png"}
MEMBERS = "market,prcc,real1,real2,llcm,CUHK-Pedes"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """config, options: what is trained on it."""

    config: str
    options: tuple[str, ...] = ()
    rendered: tuple[str, ...] = ()


INFRARED = ("train.batch_size=8", "train.instances=2")
LAYOUTS = {
    "orbench": Layout(config="configs/reid5o/smoke.yaml"),
    "sysu": Layout(config="configs/vireid/smoke.yaml", options=INFRARED),
    "regdb": Layout(config="configs/vireid/smoke.yaml", options=("data.dataset=regdb", *INFRARED)),
    "llcm": Layout(config="configs/vireid/smoke.yaml", options=("data.dataset=llcm", *INFRARED)),
    "omnireid": Layout(config="configs/irm/smoke.yaml", rendered=("--members", MEMBERS)),
}


def copy_linked(source: Path, target: Path) -> None:
    """Copy a tree by hard links: a damaged file gets a name of its own (`replace_file`)."""
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(parents=True)
        for name in names:
            os.link(Path(folder) / name, there / name)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "manifest.json")


def _pictures(root: Path) -> list[Path]:
    return [path for path in _files(root) if path.suffix in PICTURES]


def _lists(root: Path) -> list[Path]:
    return [path for path in _files(root) if path.suffix not in PICTURES]


def list_removed(rng: random.Random, root: Path) -> str:
    """A list, or what is in its place."""
    path = rng.choice(_lists(root))
    return f"{path.relative_to(root)}: {instead_of_file(rng, path)}"


def list_bytes(rng: random.Random, root: Path) -> str:
    """Bytes of a list."""
    path = rng.choice(_lists(root))
    return f"{path.relative_to(root)}: {damage_bytes(rng, path)}"


def list_values(rng: random.Random, root: Path) -> str:
    """Entries of a list, which is still one."""
    path = rng.choice([path for path in _lists(root) if path.suffix != ".mat"])
    how = damage_json(rng, path) if path.suffix == ".json" else damage_lines(rng, path)
    return f"{path.relative_to(root)}: {how}"


def picture_removed(rng: random.Random, root: Path) -> str:
    """A picture, or what is in its place."""
    path = rng.choice(_pictures(root))
    return f"{path.relative_to(root)}: {instead_of_file(rng, path)}"


def picture_bytes(rng: random.Random, root: Path) -> str:
    """Bytes of a picture."""
    path = rng.choice(_pictures(root))
    return f"{path.relative_to(root)}: {damage_bytes(rng, path)}"


def picture_form(rng: random.Random, root: Path) -> str:
    """A picture of another form."""
    path = rng.choice(_pictures(root))
    return f"{path.relative_to(root)}: {other_picture(rng, path)}"


def folder(rng: random.Random, root: Path) -> str:
    """A folder, or what is in its place."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_dir()))
    return f"{path.relative_to(root)}: {instead_of_folder(rng, path)}"


def further_file(rng: random.Random, root: Path) -> str:
    """A file that does not belong there."""
    beside = rng.choice(_files(root))
    name = rng.choice(
        (
            "Thumbs.db",
            ".DS_Store",
            "a.txt",
            "copy of it.jpg",
            "é\u0301.jpg",
            "9999_c9s9_999999_99.jpg",
            f"._{beside.name}",
        )
    )
    replace_file(beside.with_name(name), beside.read_bytes())
    return f"{beside.relative_to(root)}: {name!r} beside it"


def name_changed(rng: random.Random, root: Path) -> str:
    """A file by another name."""
    path = rng.choice(_files(root))
    changed = rng.choice(
        (f"x{path.name}", path.name.upper(), path.name.replace("0", "9", 1), f"{path.name}.bak", path.stem, "a\nb.jpg")
    )
    path.rename(path.with_name(changed))
    return f"{path.relative_to(root)}: now {changed!r}"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "list replaced": list_removed,
    "list, bytes": list_bytes,
    "list, values": list_values,
    "picture replaced": picture_removed,
    "picture, bytes": picture_bytes,
    "picture, form": picture_form,
    "folder": folder,
    "further file": further_file,
    "name": name_changed,
}
OTHER_PIXELS = ("picture, bytes", "picture, form")
"""Kinds after which a picture may still be one: pictures have no checksum that anybody could compare."""
