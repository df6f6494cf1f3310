"""Which files are images by their names, and what is said of those that are images but cannot be read."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from datasets.loading.readers import FORMATS
from datasets.structures import WARNING
from utils.errors import shortened

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
    | ({".avif"} if "AVIF" in FORMATS else set())
)
"""What is read; of several frames the first."""
UNREAD_SUFFIXES = (
    frozenset(
        {".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jp2", ".j2k", ".jxr", ".tga", ".psd", ".svg", ".eps"}
        | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".ico", ".exr", ".hdr", ".pcx"}
    )
    - IMAGE_SUFFIXES
)
"""Images that are not read; whoever has some must be told."""
JUNK = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
"""What systems put beside images."""
SHOWN = 3


def suffix_of(name: str) -> str:
    """Return the suffix of a file name or path in small letters."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    """Return whether a file name ends like an image that is read and is not hidden."""
    return not name.startswith(".") and suffix_of(name) in IMAGE_SUFFIXES


def passed_over(names: Iterable[str]) -> list[str]:
    """Return the names among those of a folder that are neither images, hidden nor a system's own."""
    shown = (name for name in names if not name.startswith(".") and name.lower() not in JUNK)
    return [name for name in shown if suffix_of(name) not in IMAGE_SUFFIXES]


def unread_notes(paths: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence on the images among passed-over files, which begins with `warning: `, and one on the others."""
    images = [path for path in paths if suffix_of(path) in UNREAD_SUFFIXES]
    others = [path for path in paths if suffix_of(path) not in UNREAD_SUFFIXES]
    notes = []
    if images:
        notes.append(
            f"{WARNING}{_counted(images)} are of a form that is not read, and left out: {shortened(images, SHOWN)}; "
            "convert them to .jpg or .png"
        )
    if others:
        notes.append(f"{_counted(others)} do not end like an image and are left out: {shortened(others, SHOWN)}")
    return tuple(notes)


def unread_images(beside: Iterable[str]) -> list[str]:
    """Return the images of a form that is not read in the folders of the files `beside`, sorted by folder and name.

    Folders that cannot be listed are left to whoever reads them.
    """
    found: list[str] = []
    for folder in sorted({os.path.split(path)[0] for path in beside}):
        with contextlib.suppress(OSError):
            found += [os.path.join(folder, name) for name in passed_over(sorted(os.listdir(folder)))]
    return [path for path in found if suffix_of(path) in UNREAD_SUFFIXES]


def _counted(paths: Sequence[str]) -> str:
    kinds = Counter(suffix_of(path) or "no suffix" for path in paths)
    return f"{len(paths)} files ({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))})"
