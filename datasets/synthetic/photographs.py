"""Visible and near-infrared photographs of a person."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from datasets.synthetic import nuisance, textures
from datasets.synthetic.background import draw_background, draw_occluder
from datasets.synthetic.camera import Camera
from datasets.synthetic.canvas import SUPERSAMPLING
from datasets.synthetic.figure import draw_labels
from datasets.synthetic.palettes import infrared_levels, visible_colours
from datasets.synthetic.person import Person, View
from datasets.synthetic.scenes import photo_scene
from datasets.synthetic.wardrobe import Outfit

_LUMA = (0.299, 0.587, 0.114)


def visible_photo(
    person: Person, outfit: Outfit, camera: Camera, view: View, size: tuple[int, int], rng: random.Random
) -> Image.Image:
    """Return an RGB picture of `size` (height, width): pose, lighting, colour cast, background, occlusion, blur,
    noise.
    """
    labels = draw_labels(person, outfit, photo_scene(person, camera, view, rng), size, rng)
    mask = reduced_mask(labels)
    figure = reduced_colours(labels, visible_colours(person, outfit))
    shade = _shading(size, rng)
    cover = mask.astype(np.float32) * np.float32(1 / 255)
    behind = draw_background(camera.place, size, rng)
    picture = figure * shade[..., None] + behind * (np.float32(1.0) - cover)[..., None]
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8), "RGB")
    if rng.random() < nuisance.OCCLUSION_RATE:
        draw_occluder(image, rng.uniform(*nuisance.OCCLUSION_SIZE), rng)
    image = image.convert("RGB", _colour_matrix(camera, rng))
    return _sensor(image, camera, rng)


def infrared_photo(
    person: Person, outfit: Outfit, camera: Camera, view: View, size: tuple[int, int], rng: random.Random
) -> Image.Image:
    """Return a grey (mode L) picture of `size`: reflectance of materials under a lamp beside the lens, more noise, no
    colour.
    """
    labels = draw_labels(person, outfit, photo_scene(person, camera, view, rng), size, rng)
    mask = reduced_mask(labels)
    figure = np.asarray(
        Image.fromarray(infrared_levels(person, outfit)[labels]).reduce(SUPERSAMPLING), dtype=np.float32
    )
    cover = mask.astype(np.float32) * np.float32(1 / 255)
    behind = np.asarray(Image.fromarray(draw_background(camera.place, size, rng)).convert("L"), dtype=np.float32)
    # The lamp lights what is near; the background falls into the dark.
    lit = figure * _shading(size, rng, 0.5) + (behind * np.float32(1.0 - nuisance.NIR_LAMP_FALLOFF)) * (
        np.float32(1.0) - cover
    )
    lit *= np.float32(camera.gain * (1.0 + rng.uniform(-nuisance.SHOT_BRIGHTNESS, nuisance.SHOT_BRIGHTNESS)))
    image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    if rng.random() < nuisance.OCCLUSION_RATE:
        draw_occluder(image, rng.uniform(*nuisance.OCCLUSION_SIZE), rng)
    return _sensor(image, camera, rng)


def reduced_mask(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the share of each pixel that the figure covers, (H, W) uint8 in 0..255."""
    return np.asarray(Image.fromarray((labels != 0).view(np.uint8) * np.uint8(255)).reduce(SUPERSAMPLING))


def reduced_colours(labels: NDArray[np.uint8], colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the labels painted with `colours` (256, 3) and reduced, (H, W, 3) float32 times the share covered."""
    painted = Image.fromarray(labels)
    painted.putpalette(colours.tobytes(), "RGB")
    return np.asarray(painted.convert("RGB").reduce(SUPERSAMPLING), dtype=np.float32)


def _shading(size: tuple[int, int], rng: random.Random, strength: float = 1.0) -> NDArray[np.float32]:
    """Return a (H, W) factor: light from one side and folds of cloth."""
    height, width = size
    side = rng.uniform(-nuisance.SIDE_LIGHT, nuisance.SIDE_LIGHT) * strength
    ramp = np.linspace(-side, side, width, dtype=np.float32) + np.float32(1.0)
    cell = max(4, 2 ** round(np.log2(max(1.0, height / 16))))
    folds = textures.window(textures.clouds(int(cell)), height, width, rng)
    return ramp[None, :] + folds * np.float32(nuisance.FOLDS * strength)


def _colour_matrix(camera: Camera, rng: random.Random) -> tuple[float, ...]:
    """Return the 3 x 4 matrix of saturation, contrast, brightness and cast."""
    bright = camera.brightness * (1.0 + rng.uniform(-nuisance.SHOT_BRIGHTNESS, nuisance.SHOT_BRIGHTNESS))
    rows: list[float] = []
    for channel in range(3):
        gain = camera.cast[channel] * bright * camera.contrast
        for source in range(3):
            kept = camera.saturation if source == channel else 0.0
            rows.append(gain * (kept + (1.0 - camera.saturation) * _LUMA[source]))
        rows.append(128.0 * (1.0 - camera.contrast))
    return tuple(rows)


def _sensor(image: Image.Image, camera: Camera, rng: random.Random) -> Image.Image:
    """Return the picture as the camera resolves it: soft and noisy."""
    width, height = image.size
    radius = camera.softness * height / 128
    if radius > 0.2:
        image = image.filter(ImageFilter.BoxBlur(radius) if height > 256 else ImageFilter.GaussianBlur(radius))
    noise = textures.window(textures.grain(), height, width, rng) * np.float32(camera.noise / 32.0)
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + (noise[..., None] if pixels.ndim == 3 else noise)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
