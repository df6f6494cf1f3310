"""One picture to be taken: who, in which outfit, by which camera, in which modality, to which path."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from configs.vocabulary import Modality
from datasets.synthetic import drawings, photographs
from datasets.synthetic.camera import Camera, make_camera
from datasets.synthetic.person import Person, View, make_person
from datasets.synthetic.wardrobe import Outfit, make_outfit
from utils.seeding import stream

DRAWING_QUALITY = 88


@dataclass(frozen=True, slots=True)
class Shot:
    """A picture. path: relative to the layout's folder. index: number of the picture among those of the same person, outfit
    and modality; a sketch is made from the colour-pencil drawing of the same index. site '' and camera 0 for a drawing."""

    path: str
    person: int
    outfit: int
    modality: Modality
    index: int
    view: View
    site: str = ""
    camera: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a layout holds: its pictures, and its annotation files by relative path (values to be written as JSON)."""

    shots: tuple[Shot, ...]
    annotations: Mapping[str, Any]


@functools.lru_cache(maxsize=64)
def _dressed(seed: int, person: int, outfit: int) -> tuple[Person, Outfit]:
    somebody = make_person(seed, person)
    return somebody, make_outfit(seed, somebody, outfit)


@functools.lru_cache(maxsize=256)
def _camera(seed: int, site: str, number: int, infrared: bool) -> Camera:
    return make_camera(seed, site, number, infrared)


def draw_shot(shot: Shot, seed: int, size: tuple[int, int]) -> tuple[Image.Image, int]:
    """Return the picture and the JPEG quality with which it is stored; depends on the arguments only."""
    person, outfit = _dressed(seed, shot.person, shot.outfit)
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
    """Return the JPEG file of a picture."""
    image, quality = draw_shot(shot, seed, size)
    stream_out = io.BytesIO()
    image.save(stream_out, "JPEG", quality=quality)
    return stream_out.getvalue()
