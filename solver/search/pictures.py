"""Pictures as programs have them: a path, the bytes of a file, a PIL image or an array, each as a source that is read
like a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from configs.vocabulary import Modality
from datasets.structures import Source
from solver.search.queries import image_file
from utils.errors import UserError, home_expanded

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""bytes: of an image file. An array has (H, W, 3) uint8, RGB."""
Pictures = Picture | Sequence[Picture]
Texts = str | Sequence[str]


def picture_source(picture: Any, modality: Modality, name: str) -> Source:
    """Return a picture as an image source.

    name: of this picture and no other, for errors, `nir[0]`. Raises UserError for a path without a file, for an array
    of another kind or shape, and for what is no picture at all; one that cannot be decoded is refused when it is read.
    """
    if isinstance(picture, (str, os.PathLike)):
        path = os.path.abspath(home_expanded(os.fsdecode(picture)))
        return Source(modality=modality, value=image_file(path, f"{name}: no such image", ""), record=name)
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture, name)
    if not isinstance(picture, (bytes, Image.Image)):
        raise UserError(
            f"{name} is {_kind(picture)}: give a path, the bytes of an image file, a PIL image or an array (height, "
            "width, 3) of uint8"
        )
    # No absolute path begins so: nothing in memory has the name of a file.
    return Source(modality=modality, value=f"<{name}>", record="in memory", picture=picture)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"{name} is an array of {array.dtype} {array.shape}: give (height, width, 3) of uint8, RGB from 0 to 255"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def listed_items(items: Any) -> list[Any]:
    """Return what is given for one part of the queries as a list: a single text, path, picture or array is one item."""
    if isinstance(items, np.ndarray) and items.ndim == 4:
        return [*items]
    if isinstance(items, (str, bytes, os.PathLike, Image.Image, np.ndarray)) or not isinstance(items, Sequence):
        return [items]
    return [*items]


def text_of(text: Any, name: str) -> str:
    """Return a text. Raises UserError for what is none."""
    if not isinstance(text, str):
        raise UserError(f"{name} is {_kind(text)}: give a text")
    return text


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"
