"""The one part of a picture that stands for something else than the whole: the upper-body box."""

from __future__ import annotations

from PIL import Image

from configs.vocabulary import BOX, BOX_ROWS
from datasets.structures import Source
from utils.errors import UserError

BOX_TEXT = f"upper-body box (rows {BOX_ROWS[0] * 100:.0f} to {BOX_ROWS[1] * 100:.0f} %)"
"""How it is called in notes and errors."""


def upper_body_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in pixels of the upper-body box, at least one row."""
    top = min(round(BOX_ROWS[0] * height), height - 1)
    return 0, top, width, max(round(BOX_ROWS[1] * height), top + 1)


def cropped(image: Image.Image, source: Source) -> Image.Image:
    """Return the part of a decoded picture that its source means. Raises UserError for a crop that nobody knows."""
    if not source.crop:
        return image
    if source.crop != BOX:
        raise UserError(f"{source.value} ({source.record}): unknown crop {source.crop!r}; {BOX!r} is the only one")
    return image.crop(upper_body_box(*image.size))
