"""Pixels from file to model: uint8 on the loader's side, float32 on the compute device."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.schema.data import AugmentConfig
from configs.vocabulary import Modality
from datasets.loading.colour_jitter import jitter_colours
from datasets.modalities import MODALITIES, STATISTICS

ERASE_ASPECT = (0.3, 3.3)
ERASE_ATTEMPTS = 10
NO_BOX = (0, 0, 0, 0)
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageAugmentation:
    """Colour jitter, then flip, pad-and-crop, erase, drawn from one generator per image; the jitter has its own.

    Source: the training transforms of the reference, and those of Instruct-ReID.

    config: the section `augment`, whose captions' part is not looked at.
    """

    config: AugmentConfig

    def __call__(self, image: np.ndarray, rng: random.Random) -> tuple[np.ndarray, Box]:
        """Augment (3, H, W) uint8; return the image and the box (top, left, height, width) to erase after normalising,
        none where it is filled already.
        """
        _, height, width = image.shape
        if rng.random() < self.config.flip:
            image = image[:, :, ::-1]
        pad = self.config.pad_crop
        if pad:
            top, left = rng.randint(0, 2 * pad), rng.randint(0, 2 * pad)
            padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
            image = padded[:, top : top + height, left : left + width]
        box = _erase_box(height, width, self.config.erase_area, rng) if rng.random() < self.config.erase else NO_BOX
        if self.config.erase_fill == "random" and box != NO_BOX:
            return _filled(image, box, rng), NO_BOX
        return np.ascontiguousarray(image), box

    def jitter(self, image: np.ndarray, draw: Callable[[], random.Random]) -> np.ndarray:
        """Return (3, H, W) uint8 with its colours changed as `jitter` says. draw: makes the generator, if one is
        needed.
        """
        return jitter_colours(image, self.config.jitter, draw()) if any(self.config.jitter) else image

    def replace_channels(self, image: np.ndarray, rng: random.Random) -> np.ndarray:
        """Replace, with the probability `channel`, all channels of (3, H, W) uint8 by the red, the green or the blue
        one or by grey, each equally likely.

        Source: Ye et al., ICCV 2021 (CAJ), public code. Departure: before normalisation, so that the result is a grey
        picture.
        """
        if rng.random() >= self.config.channel:
            return image
        choice = rng.randrange(len(image) + 1)
        single = (
            image[choice]
            if choice < len(image)
            else np.rint(np.tensordot(GREY, image, axes=1)).clip(0, 255).astype(np.uint8)
        )
        return np.broadcast_to(single, image.shape).copy()


def _filled(image: np.ndarray, box: Box, rng: random.Random) -> np.ndarray:
    """Return a copy of the image whose box has one colour, each channel equally likely to have any value.

    Source: the released code of Instruct-ReID. Departure: the box's aspect is drawn on a logarithmic scale, as for the
    other fill, there on a linear one.
    """
    top, left, height, width = box
    image = image.copy()
    colour = np.array([rng.randrange(256) for _ in image], dtype=np.uint8)
    image[:, top : top + height, left : left + width] = colour[:, None, None]
    return image


def _erase_box(height: int, width: int, share: tuple[float, float], rng: random.Random) -> Box:
    for _ in range(ERASE_ATTEMPTS):
        area = height * width * rng.uniform(*share)
        aspect = math.exp(rng.uniform(math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])))
        box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    return NO_BOX


def model_input(modality: Modality, inputs: Tensor, erased: Tensor | None = None, statistics: str = "clip") -> Tensor:
    """Turn a loader's rows into a model's: (B, 3, H, W) uint8 -> normalised float32; token ids pass unchanged.

    erased: (B, 4) int64 boxes (top, left, height, width), filled with the mean AFTER normalisation, as the reference
    does (so the fill is not the mean colour). Zero area = nothing. statistics: name in datasets.modalities.STATISTICS.
    """
    if not MODALITIES[Modality(modality)].is_image:
        return inputs
    mean, std = (torch.tensor(values, device=inputs.device).view(1, 3, 1, 1) for values in STATISTICS[statistics])
    images = (inputs.float() / 255.0 - mean) / std
    if erased is None or not bool((erased[:, 2] > 0).any()):
        return images
    return torch.where(_box_mask(erased, *images.shape[-2:]), mean, images)


def _box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 1, H, W) bool, True inside each row's box."""
    top, left, box_height, box_width = (column.view(-1, 1, 1, 1) for column in boxes.unbind(1))
    rows = torch.arange(height, device=boxes.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=boxes.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
