"""Reading one source: one attempt, a size limit, what a viewer shows, and an error that names file and record."""

from __future__ import annotations

import io
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from configs.vocabulary import Modality
from datasets.loading.crops import cropped
from datasets.loading.tokenizers import TextReader, Tokenizer
from datasets.modalities import MODALITIES
from datasets.structures import Source
from utils.errors import UserError
from utils.files import ordinary

MAX_PIXELS = 50_000_000
"""Larger pictures are refused unread: no person crop has so many, and a small file can claim them."""

Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF") if name in Image.OPEN)
"""What a file may hold, whatever its name: other decoders of Pillow start programs (EPS) or are of no use here."""

DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes of more than 8 bits a channel; its conversion would turn everything above 255 into white."""

DECODING_ERRORS = (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError)
"""What Pillow raises for damaged files."""

OR_SKIP = " or set data.on_error=skip"
"""The other remedy for a damaged image, at the end of the sentence; of no use to those who skip it."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what shows the picture upright; 1 and everything unknown = as stored. Source: EXIF 2.32, tag 274."""

# A process-wide filter: Pillow warns of pictures above its own limit, ours is lower and refuses them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageReader(Protocol):
    """An image source in, (3, H, W) uint8 out."""

    def __call__(self, source: Source) -> np.ndarray:
        """Read one image. Raises UserError for an unreadable file."""


class Reader(Protocol):
    """What training and evaluation read with."""

    def __call__(self, source: Source) -> Tensor:
        """Return a source as the model takes it: (3, H, W) uint8 or (T,) int64. Raises UserError."""

    def annotation(self, source: Source) -> Tensor:
        """Return an instruction as the model takes it: (3, h, w) uint8 or (T,) int64. Raises UserError."""


def open_source(source: Source) -> Image.Image:
    """Return the picture of an image source as RGB, cut as the source says: what it means, wherever it is shown or
    read. Raises UserError naming file and record for anything that is not a whole image.
    """
    if source.picture is not None:
        return cropped(show_picture(source.picture, source.value).picture, source)
    return cropped(open_image(source.value, source.record), source)


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded picture as a viewer shows it, and what of that the stored pixels alone do not say."""

    picture: Image.Image
    """RGB."""
    turned: bool
    """Its EXIF orientation turned or mirrored it."""
    transparent: bool
    """A part of it is transparent and became white, wholly or in part."""


def open_image(path: str | Path, record: str = "") -> Image.Image:
    """Open and decode an image file as RGB, upright and on white. Raises UserError naming file and record for anything
    that is not a whole image.
    """
    return show_image(path, record).picture


def show_image(path: str | Path, record: str = "") -> Shown:
    """Open and decode an image file as every viewer shows it: turned as its EXIF orientation says, what is transparent
    on white.

    Departure: reference code takes the stored pixels, so that a drawing on a transparent ground is black all over. An
    opaque picture without an orientation has the same pixels either way. Raises UserError naming file and record for
    anything that is not a whole image.
    """
    where = f"{path}{f' ({record})' if record else ''}"
    try:
        with Image.open(ordinary(path), formats=FORMATS) as image:
            return _checked(image, where)
    except FileNotFoundError as error:
        raise UserError(f"{where}: no such image; restore the file or remove its record") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: {error}, ours is {MAX_PIXELS:,} pixels; crop or shrink it") from error
    except UnidentifiedImageError as error:
        what = "an empty file" if os.path.getsize(path) == 0 else "not an image"
        raise UserError(f"{where}: {what}; restore the file{OR_SKIP}") from error
    except DECODING_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: cannot be decoded ({error}); it may be truncated, copy it again{OR_SKIP}") from error


def show_picture(picture: Image.Image | bytes, where: str) -> Shown:
    """Return a picture in memory, or the bytes of an image file, as `show_image` does. where: its name in errors.

    Raises UserError for whatever a file is refused for.
    """
    try:
        if isinstance(picture, Image.Image):
            return _checked(picture, where)
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            return _checked(image, where)
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: {error}, ours is {MAX_PIXELS:,} pixels; crop or shrink it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: bytes that are no image; give those of a whole image file") from error
    except DECODING_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: cannot be decoded ({error}); it may be truncated or closed, give it anew") from error


def _checked(image: Image.Image, where: str) -> Shown:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{where}: {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}; crop or shrink it"
        )
    if image.mode in DEEP_MODES:
        raise UserError(
            f"{where}: more than 8 bits a channel (mode {image.mode}) have no known black and white; convert it to 8 "
            "bits: convert IN -auto-level -depth 8 OUT.png (ImageMagick)"
        )
    return _shown(image)


def _shown(image: Image.Image) -> Shown:
    # Pillow turns a TIFF by itself while it decodes it, and then forgets that it did.
    turned = image.format == "TIFF" and _orientation(image) in TURNS
    image.load()
    turn = TURNS.get(_orientation(image))
    transparent = False
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        transparent = layers.getchannel("A").getextrema() != (255, 255)
        picture = Image.new("RGBA", layers.size, "white")
        picture.alpha_composite(layers)
    else:
        picture = image
    picture = picture.convert("RGB")
    return Shown(picture if turn is None else picture.transpose(turn), turned or turn is not None, transparent)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; a damaged table says nothing, since the pixels do not need it."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


class PillowReader:
    """Decodes, cuts and resizes with Pillow: bilinear with antialiasing, the reference's evaluation transform."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size

    def __call__(self, source: Source) -> np.ndarray:
        """Return (3, H, W) uint8, RGB. Raises UserError for an unreadable file."""
        height, width = self.image_size
        image = open_source(source)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class SourceReader:
    """Reads any source: images through an ImageReader, texts through a tokenizer.

    texts: None = the model reads images only. annotation_images: reader of clothes pictures that
    serve as instructions; None = the model follows no instruction.
    """

    def __init__(
        self,
        images: ImageReader,
        texts: TextReader | None = None,
        annotation_images: ImageReader | None = None,
    ) -> None:
        self.images, self.texts, self.annotation_images = images, texts, annotation_images

    def __call__(self, source: Source) -> Tensor:
        """Return (3, H, W) uint8 or (T,) int64. Raises UserError for an unreadable image and an unread modality."""
        return self._read(source, self.images)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Whose ids texts become, None for a model that reads images only."""
        return self.texts.tokenizer if self.texts is not None else None

    def annotation(self, source: Source) -> Tensor:
        """Return a clothes picture (3, h, w) uint8 at the size of instructions, or token ids (T,) int64."""
        return self._read(source, self.annotation_images)

    def _read(self, source: Source, images: ImageReader | None) -> Tensor:
        if MODALITIES[Modality(source.modality)].is_image:
            if images is None:
                raise UserError(f"{source.value} ({source.record}): this model follows no instruction pictures")
            return torch.from_numpy(images(source))
        if self.texts is None:
            raise UserError(
                f"this model reads images only, not the text {source.value[:40]!r}; choose another family or other "
                "protocols (data.protocols)"
            )
        return self.texts(source.value)
