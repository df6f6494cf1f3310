"""Learning rate as a pure function of the position in the run."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from configs.schema.train import ScheduleConfig


def _towards(base: float, target: float, share: float) -> float:
    """Return `target` for share 0, `base` for share 1, and what lies between."""
    return target + (base - target) * share


Shape = Callable[[float, float, float, ScheduleConfig], float]
"""(base rate, epoch, share of the time after warm-up that has passed, section `schedule`) -> rate."""

SHAPES: dict[str, Shape] = {
    "cosine": lambda base, epoch, done, spec: _towards(base, spec.target_lr, (1 + math.cos(math.pi * done)) / 2),
    "linear": lambda base, epoch, done, spec: base * (1 - done),
    "exp": lambda base, epoch, done, spec: base * spec.power**done,
    "poly": lambda base, epoch, done, spec: _towards(base, spec.target_lr, (1 - done) ** spec.power),
    "poly_released": lambda base, epoch, done, spec: _towards(base, spec.target_lr, spec.power ** (1 - done)),
    "step": lambda base, epoch, done, spec: base * spec.gamma ** bisect.bisect_right(spec.milestones, epoch),
}
"""Shapes after warm-up. poly_released rises from power x base to base: the released formula with base and exponent
swapped, kept for comparison; poly is the intended one."""

WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda factor, done: factor * (1 - done) + done,
    "constant": lambda factor, done: factor,
}
"""(warmup_factor, share of the warm-up that has passed) -> factor on the base rate."""


def learning_rate(epoch: float, base_lr: float, spec: ScheduleConfig, epochs: int) -> float:
    """Return the rate in force at `epoch` (0 = start of the run, fractions allowed) for a group whose base is
    `base_lr`. epochs: of the whole run.

    Before warmup_epochs the shape is not applied; after it, time runs from 0 at its end to 1 at `epochs` and stays
    there. Source: reference (released form of every shape but poly; target_lr is absolute, so it holds for every
    group).
    """
    if epoch < spec.warmup_epochs:
        return base_lr * WARMUPS[spec.warmup_method](spec.warmup_factor, epoch / spec.warmup_epochs)
    remaining = epochs - spec.warmup_epochs
    done = min((epoch - spec.warmup_epochs) / remaining, 1.0) if remaining > 0 else 1.0
    return SHAPES[spec.name](base_lr, epoch, done, spec)


def schedule_position(step: int, steps_per_epoch: int, interval: str) -> float:
    """Return the epoch that optimiser step `step` (from 0) counts as: whole for `epoch`, with its fraction for
    `step`.
    """
    return float(step // steps_per_epoch) if interval == "epoch" else step / steps_per_epoch
