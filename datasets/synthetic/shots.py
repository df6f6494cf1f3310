"""One picture to be taken: who, in which outfit, by which camera, in which modality, to which path."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from PIL import Image

from configs.vocabulary import BOX_ROWS, Modality
from datasets.synthetic import drawings, photographs, templates
from datasets.synthetic.camera import Camera, make_camera
from datasets.synthetic.person import Person, View, make_person
from datasets.synthetic.wardrobe import Outfit, make_outfit
from utils.seeding import stream

DRAWING_QUALITY = 88
TEMPLATE_QUALITY = 90
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".bmp": "BMP"}


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture. path: relative to the layout's folder; its suffix decides the format (see FORMATS). index: number of
    the picture among those of the same person, outfit and modality, whatever the camera; a sketch is made from the
    colour-pencil drawing of the same index. site '' and camera 0 for a drawing.

    kind: `photo` = photograph or drawing; `template` = the outfit alone on a plain ground, without person and bags, a
    square with half the photographs' height as its side (index, view, site and camera do not matter); `crop` = the
    upper body (BOX_ROWS, full width) of the photograph with the same other fields. head: factor on the size of the
    head.
    """

    path: str
    person: int
    outfit: int
    modality: Modality
    index: int
    view: View
    site: str = ""
    camera: int = 0
    kind: Literal["photo", "template", "crop"] = "photo"
    head: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a layout holds: its pictures, and by relative path its annotation files: values to be written as
    JSON, texts (UTF-8) and bytes."""

    shots: tuple[Shot, ...]
    annotations: Mapping[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict)
    binaries: Mapping[str, bytes] = field(default_factory=dict)


@functools.lru_cache(maxsize=64)
def _dressed(seed: int, person: int, outfit: int, head: float) -> tuple[Person, Outfit]:
    somebody = make_person(seed, person)
    worn = make_outfit(seed, somebody, outfit)
    return dataclasses.replace(somebody, head=dataclasses.replace(somebody.head, zoom=head)), worn


@functools.lru_cache(maxsize=256)
def _camera(seed: int, site: str, number: int, infrared: bool) -> Camera:
    return make_camera(seed, site, number, infrared)


def draw_shot(shot: Shot, seed: int, size: tuple[int, int]) -> tuple[Image.Image, int]:
    """Return the picture and the quality with which a JPEG of it is stored; depends on the arguments only."""
    person, outfit = _dressed(seed, shot.person, shot.outfit, shot.head)
    if shot.kind == "template":
        side = size[0] // 2
        return templates.clothes_template(
            person, outfit, side, stream(seed, "template", shot.person, shot.outfit)
        ), TEMPLATE_QUALITY
    image, quality = _photo(shot, person, outfit, seed, size)
    if shot.kind == "crop":
        image = image.crop((0, round(BOX_ROWS[0] * size[0]), size[1], round(BOX_ROWS[1] * size[0])))
    return image, quality


def _photo(shot: Shot, person: Person, outfit: Outfit, seed: int, size: tuple[int, int]) -> tuple[Image.Image, int]:
    is_drawing = shot.modality in (Modality.CP, Modality.SK)
    rng = stream(seed, "drawing" if is_drawing else shot.modality.value, shot.person, shot.outfit, shot.index)
    if shot.modality is Modality.CP:
        return drawings.colour_pencil(person, outfit, shot.view, size, rng), DRAWING_QUALITY
    if shot.modality is Modality.SK:
        pen = stream(seed, "pen", shot.person, shot.outfit, shot.index)
        return drawings.sketch(person, outfit, shot.view, size, rng, pen), DRAWING_QUALITY
    infrared = shot.modality is Modality.NIR
    camera = _camera(seed, shot.site, shot.camera, infrared)
    take = photographs.infrared_photo if infrared else photographs.visible_photo
    return take(person, outfit, camera, shot.view, size, rng), camera.quality


def encode_shot(shot: Shot, seed: int, size: tuple[int, int]) -> bytes:
    """Return the file of a picture, in the format of its path's suffix."""
    image, quality = draw_shot(shot, seed, size)
    stream_out = io.BytesIO()
    image.save(stream_out, FORMATS[PurePosixPath(shot.path).suffix], quality=quality)
    return stream_out.getvalue()
