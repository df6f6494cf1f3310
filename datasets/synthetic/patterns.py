"""Patterns of cloth, painted into a label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_EDGE = 0.12
"""Distance below the shoulders (body units) at which a two-block garment changes colour."""

PANEL_HALF_WIDTH = 0.042


def paint_pattern(
    labels: NDArray[np.uint8],
    pattern: str,
    scale: float,
    layers: Sequence[tuple[int, int]],
    origin: tuple[float, float],
    unit: tuple[float, float],
) -> None:
    """Change, in place, the first value of each pair in `layers` to the second where the pattern says so.

    labels: (H, W) uint8. origin: pixel (x, y) where the pattern starts. unit: pixels per body unit along x and y.
    'sleeves' changes the second pair only (the sleeves), 'block' and 'panel' the first only.
    """
    if pattern == "plain":
        return
    height, width = labels.shape
    if pattern == "sleeves":
        for first, second in layers[1:]:
            labels[labels == first] = second
        return
    y = (np.arange(height, dtype=np.float64) - origin[1]) / unit[1]
    x = (np.arange(width, dtype=np.float64) - origin[0]) / unit[0]
    where, only_first = _where(pattern, scale, x[None, :], y[:, None])
    rows = np.flatnonzero((labels == layers[0][0]).any(axis=1))
    if len(rows) == 0:
        return
    band = slice(rows[0], rows[-1] + 1)
    where = np.broadcast_to(where, labels.shape)[band]
    part = labels[band]
    for first, second in layers[:1] if only_first else layers:
        part[(part == first) & where] = second


def _where(
    pattern: str, scale: float, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], bool]:
    """Return the mask of the second colour, broadcastable to the map, and whether it spares the sleeves."""
    if pattern == "wide stripes":
        return _phase(y, 0.085 * scale) < 0.45, False
    if pattern == "thin stripes":
        return _phase(y, 0.042 * scale) < 0.40, False
    if pattern == "vertical stripes":
        return _phase(x + 0.011, 0.046 * scale) < 0.45, False
    if pattern == "checks":
        return (_phase(x, 0.070 * scale) < 0.5) ^ (_phase(y, 0.070 * scale) < 0.5), False
    if pattern == "dots":
        pitch = 0.048 * scale
        odd = np.floor(y / pitch) % 2 * 0.5
        return (np.abs(_phase(x / pitch + odd, 1.0) - 0.5) < 0.25) & (np.abs(_phase(y, pitch) - 0.5) < 0.25), False
    if pattern == "block":
        return y > BLOCK_EDGE * scale, True
    if pattern == "panel":
        return np.abs(x) < PANEL_HALF_WIDTH * scale, True
    raise ValueError(f"unknown pattern {pattern!r}")


def _phase(position: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    return position / period % 1.0
