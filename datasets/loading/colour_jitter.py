"""Random brightness, contrast, saturation and hue of a training image."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

Strengths = tuple[float, float, float, float]
"""Of brightness, contrast, saturation and hue."""


def _shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Turn the hue by a share of the circle, -0.5 to 0.5, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    turned = ((np.asarray(hue).astype(np.int32) + int(share * 255)) % 256).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    _shift_hue,
)
"""In the order of the strengths."""


def jitter_colours(image: np.ndarray, strengths: Strengths, rng: random.Random) -> np.ndarray:
    """Return (3, H, W) uint8 with its brightness, contrast and saturation multiplied by a factor from 1 - strength
    (at least 0) to 1 + strength each, and its hue turned by a share of the circle from -strength to strength, in an
    order that is drawn too. A strength of 0 leaves its part as it is.

    Source: torchvision's ColorJitter on Pillow images, as in the released code of Instruct-ReID. Departure: it is
    applied to the image at the model's size, which is what the cache holds, there to the image of the file.
    """
    amounts = [rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths[:3]]
    amounts.append(rng.uniform(-strengths[3], strengths[3]))
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for which in rng.sample(range(len(CHANGES)), len(CHANGES)):
        if strengths[which]:
            picture = CHANGES[which](picture, amounts[which])
    return np.asarray(picture).transpose(2, 0, 1)
