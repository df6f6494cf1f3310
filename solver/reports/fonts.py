"""Fonts of the pictures: DejaVu Sans, and for what it lacks (Chinese, Japanese, Korean, ...) an installed font."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
"""Where Linux, macOS and Windows keep fonts; those that are not there are passed over."""
FONT_SUFFIXES = frozenset({".ttf", ".otf", ".ttc"})
CHECK_SIZE = 16
NO_CHARACTER = "\U0010ffff"
"""No font has a glyph for it: what is drawn for it is what is drawn for a missing letter."""
MOST_LETTERS = 2000
"""Different letters of a text that are looked at."""


def load_font(size: int, bold: bool = False) -> Font:
    """Return DejaVu Sans, which comes with matplotlib and knows Greek and Cyrillic too, else Pillow's own font."""
    return _open(_own_file(bold), size)


def font_for(text: str, size: int, bold: bool = False) -> Font:
    """Return `load_font` where it has every letter of `text`, else the installed font that has the most of them."""
    return _open(_file_for(_letters(text), _own_file(bold)), size)


def without_glyph(texts: Iterable[str]) -> str:
    """Return, each once and in order, the letters that the font chosen for their text cannot draw."""
    lost: dict[str, None] = {}
    for letters in map(_letters, texts):
        lost |= dict.fromkeys(_lacking(_file_for(letters, _own_file(False)), letters))
    return "".join(lost)


def _letters(text: str) -> str:
    found = dict.fromkeys(letter for letter in text if letter.isprintable() and not letter.isspace())
    return "".join(sorted(list(found)[:MOST_LETTERS]))


@functools.cache
def _own_file(bold: bool) -> str:
    package = importlib.util.find_spec("matplotlib")
    if package is None or not package.origin:
        return ""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return str(file) if file.is_file() else ""


@functools.cache
def _open(file: str, size: int) -> Font:
    # The basic layout: the other one is not in every build of Pillow, and gives up on some mixtures of scripts.
    if file:
        return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
    font = ImageFont.load_default(size)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC) if isinstance(font, ImageFont.FreeTypeFont) else font


@functools.lru_cache(maxsize=4096)
def _file_for(letters: str, own: str) -> str:
    best, fewest = own, len(_lacking(own, letters))
    if fewest:
        for file in _installed(FONT_FOLDERS):
            lacking = len(_lacking(file, letters, fewest))
            if lacking < fewest:
                best, fewest = file, lacking
            if not fewest:
                break
    return best


def _lacking(file: str, letters: str, limit: int = MOST_LETTERS) -> list[str]:
    """Return the letters without a glyph, all or at least `limit` of them; all letters for a file that is no font."""
    lacking: list[str] = []
    for letter in letters:
        if not _has_glyph(file, letter):
            lacking.append(letter)
            if len(lacking) >= limit:
                break
    return lacking


@functools.lru_cache(maxsize=65536)
def _has_glyph(file: str, letter: str) -> bool:
    try:
        return _drawn(file, letter) != _drawn(file, NO_CHARACTER)
    except (OSError, ValueError):
        return False


def _drawn(file: str, letter: str) -> tuple[object, bytes]:
    mask = _open(file, CHECK_SIZE).getmask(letter)
    return mask.size, bytes(mask)


@functools.cache
def _installed(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(_font_files(folders)))


def _font_files(folders: Iterable[str]) -> Iterator[str]:
    for folder in map(os.path.expanduser, folders):
        for parent, _, names in os.walk(folder):
            yield from (os.path.join(parent, name) for name in names if Path(name).suffix.lower() in FONT_SUFFIXES)
