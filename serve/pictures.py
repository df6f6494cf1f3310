"""Pictures as the page shows them: small ones made anew, and the files of the gallery as they are.

Only sources that the gallery or the test set lists are read; nothing of a request becomes a path.
"""

from __future__ import annotations

import functools
import io
import logging
import os

from PIL import Image, ImageOps

from datasets.loading.readers import FORMATS, open_source
from datasets.structures import Source
from utils.errors import UserError

logger = logging.getLogger(__name__)

SMALL = (200, 400)
QUALITY = 82
KEPT = 2000
"""Small pictures that are kept, about 10 KB each."""
MOST_BYTES = 64 << 20
"""Of a file that is sent as it is."""


def small(source: Source) -> bytes:
    """Return a source as a small JPEG. Raises UserError for a file that is gone or damaged."""
    try:
        return _small(source, os.stat(source.value).st_mtime_ns)
    except (OSError, UserError) as error:
        # What is wrong with it names its place on this machine.
        logger.info("not shown: %s", error)
        raise UserError("the picture cannot be read any more") from error


@functools.lru_cache(maxsize=KEPT)
def _small(source: Source, changed: int) -> bytes:
    """changed: when the file was written, so that another version of it is another picture."""
    picture = ImageOps.contain(open_source(source), SMALL, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def whole(source: Source) -> tuple[bytes, str]:
    """Return what is encoded of a source: its file as it is, or, of a part of an image, that part as PNG; and what the
    bytes are. Raises UserError as `original` does.
    """
    if not source.crop:
        return original(source.value)
    stream = io.BytesIO()
    try:
        open_source(source).save(stream, format="PNG")
    except (OSError, UserError) as error:
        logger.info("not sent: %s", error)
        raise UserError("the picture cannot be read any more") from error
    return stream.getvalue(), "image/png"


def original(path: str) -> tuple[bytes, str]:
    """Return the bytes of an image file and what they are, by their content whatever the file is called.

    Raises UserError for a file that is gone, too large or no image.
    """
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 (a name from a listing, as it stands)
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"the picture cannot be read any more ({error.strerror})") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"the file has more than {MOST_BYTES >> 20} MiB and is not sent")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kind = Image.MIME.get(image.format or "", "")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("the file is no image any more") from error
    return content, kind if kind.startswith("image/") else "application/octet-stream"
