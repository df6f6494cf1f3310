"""Cameras: each has a place, a height, a light and a sensor of its own, the same for everybody it sees."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.synthetic import nuisance
from utils.seeding import stream


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera. cast: gain per channel; pitch: how much the upper body is enlarged (a camera that looks down);
    softness in pixels of a 128-row picture; noise in grey levels; quality of its JPEG; place seeds the background's
    style.
    """

    site: str
    number: int
    cast: tuple[float, float, float]
    brightness: float
    contrast: float
    saturation: float
    gain: float
    pitch: float
    softness: float
    noise: float
    quality: int
    place: int


def make_camera(seed: int, site: str, number: int, infrared: bool = False) -> Camera:
    """Return camera `number` of a site; its infrared twin stands in the same place with another sensor."""
    place = stream(seed, "place", site, number)
    sensor = stream(seed, "sensor", site, number, int(infrared))
    low, high = nuisance.NIR_NOISE if infrared else nuisance.NOISE
    red, green, blue = (1.0 + sensor.uniform(-nuisance.CAST, nuisance.CAST) for _ in range(3))
    return Camera(
        site=site,
        number=number,
        cast=(red, green, blue),
        brightness=sensor.uniform(*nuisance.BRIGHTNESS),
        contrast=sensor.uniform(*nuisance.CONTRAST),
        saturation=sensor.uniform(*nuisance.SATURATION),
        gain=sensor.uniform(*nuisance.NIR_GAIN),
        pitch=place.uniform(0.0, 0.10),
        softness=sensor.uniform(*nuisance.BLUR_RADIUS),
        noise=sensor.uniform(low, high),
        quality=sensor.randint(*nuisance.JPEG_QUALITY),
        place=place.getrandbits(32),
    )
