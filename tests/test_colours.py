"""Covers: datasets/loading/colour_jitter, datasets/loading/transforms. Colour jitter against torchvision's, and boxes
erased with a colour.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from configs.load import build_experiment
from configs.schema.data import AugmentConfig
from datasets.loading.colour_jitter import Strengths, jitter_colours
from datasets.loading.transforms import ImageAugmentation
from utils.errors import UserError

ORDERS = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])


class Fixed(random.Random):
    """Draws what it is told to: the share of each range, and an order."""

    def __new__(cls, *_: object) -> Fixed:
        # Python 3.10's takes a seed alone.
        return super().__new__(cls)

    def __init__(self, share: float, order: list[int]) -> None:
        super().__init__(0)
        self.share, self.order = share, order

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share

    def sample(self, population: Any, k: int, **_: Any) -> list[Any]:
        return [population[place] for place in self.order]


def picture(height: int = 24, width: int = 12) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (3, height, width), dtype=np.uint8)


def by_torchvision(image: np.ndarray, amounts: list[float], order: list[int]) -> np.ndarray:
    found: Any = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for which in order:
        found = changes[which](found, amounts[which])
    return np.asarray(found).transpose(2, 0, 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("share", "amounts"),
    # Of strengths .5, .3, 1.5 and .4: from 1 - s, not below 0, to 1 + s; hue from -s to s.
    [(0.0, [0.5, 0.7, 0.0, -0.4]), (1.0, [1.5, 1.3, 2.5, 0.4]), (0.25, [0.75, 0.85, 0.625, -0.2])],
)
def test_jitter_is_torchvisions(share: float, amounts: list[float], order: list[int]) -> None:
    found = jitter_colours(picture(), (0.5, 0.3, 1.5, 0.4), Fixed(share, order))
    expected = by_torchvision(picture(), amounts, order)
    assert found.dtype == np.uint8 and found.shape == (3, 24, 12) and np.array_equal(found, expected)
    assert not np.array_equal(found, picture())


def test_a_strength_of_zero_leaves_its_part_alone() -> None:
    for which in range(4):
        strengths: Any = tuple(0.4 * (place == which) for place in range(4))
        found = jitter_colours(picture(), strengths, Fixed(1.0, [3, 2, 1, 0]))
        amounts = [1.4, 1.4, 1.4, 0.4]
        assert np.array_equal(found, by_torchvision(picture(), amounts, [which]))
    assert np.array_equal(jitter_colours(picture(), (0, 0, 0, 0), random.Random(3)), picture())


def test_every_draw_has_its_own_amounts_and_order() -> None:
    strengths: Strengths = (0.5, 0.5, 0.5, 0.4)
    first = jitter_colours(picture(), strengths, random.Random(7))
    assert np.array_equal(first, jitter_colours(picture(), strengths, random.Random(7)))
    found = {jitter_colours(picture(), strengths, random.Random(seed)).tobytes() for seed in range(30)}
    assert len(found) == 30
    # Brightness alone: the mean follows a factor that is uniform on .5..1.5.
    grey = np.full((3, 4, 4), 100, dtype=np.uint8)
    means = [jitter_colours(grey, (0.5, 0, 0, 0), random.Random(seed)).mean() for seed in range(400)]
    assert 49 <= min(means) < 55 and 145 < max(means) <= 150 and 95 < np.mean(means) < 105


def test_a_box_of_one_colour_replaces_the_pixels_and_no_box_is_left() -> None:
    plain = ImageAugmentation(AugmentConfig(flip=0, erase=1, erase_area=(0.1, 0.2)))
    filling = ImageAugmentation(AugmentConfig(flip=0, erase=1, erase_area=(0.1, 0.2), erase_fill="random"))
    colours, before = set(), picture(40, 20)
    for seed in range(60):
        kept, (top, left, height, width) = plain(before, random.Random(seed))
        image, box = filling(before, random.Random(seed))
        assert np.array_equal(kept, before) and box == (0, 0, 0, 0)
        # The share is that asked for, up to the rounding of two sides.
        assert 0.07 < height * width / 800 < 0.24
        inside = image[:, top : top + height, left : left + width].reshape(3, -1)
        assert (inside == inside[:, :1]).all()
        colours.add(tuple(inside[:, 0]))
        outside = np.ones((40, 20), dtype=bool)
        outside[top : top + height, left : left + width] = False
        assert np.array_equal(image[:, outside], before[:, outside])
    assert len(colours) > 55 and np.ptp(np.array(list(colours)), axis=0).min() > 200
    assert np.array_equal(before, picture(40, 20)), "the image itself, which may lie in a cache, is left alone"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("jitter", [0.5, 0.5, 0.5, 0.6], "hue"),
        ("jitter", [0.5, -1, 0.5, 0.1], "0 or larger"),
        ("jitter", [0.5, 0.5], "augment.jitter"),
        ("erase_area", [0.4, 0.1], "ascending"),
        ("erase_area", [0, 0.1], "above 0"),
        ("erase_fill", "rand", "random"),
    ],
)
def test_wrong_values_are_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_experiment([("here", {"family": "reid5o", "augment": {key: value}})])
