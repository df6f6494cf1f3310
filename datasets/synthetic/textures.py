"""Noise and stroke tiles, made once per process from a fixed seed; a picture takes a window at a random place."""

from __future__ import annotations

import functools
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE = 1024
_TILE_SEED = 20_260_101
STROKE_ANGLES = 4


@functools.cache
def grain() -> NDArray[np.int16]:
    """White noise (TILE, TILE), standard deviation 32."""
    values = np.random.Generator(np.random.PCG64(_TILE_SEED)).standard_normal((TILE, TILE))
    return np.clip(np.rint(values * 32.0), -128, 127).astype(np.int16)


@functools.cache
def clouds(cell: int) -> NDArray[np.float32]:
    """Smooth noise (TILE, TILE) in -1..1 whose blobs are about `cell` pixels wide."""
    rng = np.random.Generator(np.random.PCG64(_TILE_SEED + cell))
    small = rng.integers(0, 256, (TILE // cell + 2, TILE // cell + 2), dtype=np.uint8)
    large = Image.fromarray(small).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return (np.asarray(large, dtype=np.float32) - 127.5) / 127.5


@functools.cache
def strokes(angle: int) -> NDArray[np.float32]:
    """Pencil hatching (TILE, TILE) in 0 (paper) .. 1 (pigment), strokes about 4 pixels apart, in one of STROKE_ANGLES
    directions.
    """
    rng = np.random.Generator(np.random.PCG64(_TILE_SEED + 7000 + angle))
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float64)
    theta = np.pi * (0.20 + 0.17 * angle)
    wander = np.asarray(clouds(32), dtype=np.float64)
    across = x * np.cos(theta) + y * np.sin(theta) + 3.0 * wander
    lines = 0.5 + 0.5 * np.cos(across * (2 * np.pi / 4.2))
    tooth = rng.random((TILE, TILE))
    # Quantised, so that the last bit of a cosine cannot decide a pixel.
    return (np.clip(np.rint((0.75 * lines + 0.45 * tooth - 0.1) * 64.0), 0, 64) / 64.0).astype(np.float32)


def window(tile: NDArray, height: int, width: int, rng: random.Random) -> NDArray:
    """Return a (height, width) view of a tile at a random place; at most TILE / 2 a side."""
    top, left = rng.randrange(TILE - height + 1), rng.randrange(TILE - width + 1)
    return tile[top : top + height, left : left + width]
