"""Learning rate as a pure function of the position in the run."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

from utils.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """How a base rate changes over a run of `epochs` epochs.

    target_lr: rate at the end, where the shape approaches one (cosine, poly, poly_released). power: exponent of poly,
    base of exp and poly_released. milestones, gamma: step.
    """

    name: str
    epochs: int
    warmup_epochs: float = 5.0
    warmup_factor: float = 0.1
    warmup_method: str = "linear"
    target_lr: float = 0.0
    power: float = 0.9
    milestones: tuple[int, ...] = (20, 50)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise UserError(f"schedule.name = {self.name!r} is not known: {nearest(self.name, SHAPES)}")
        if self.warmup_method not in WARMUPS:
            raise UserError(
                f"schedule.warmup_method = {self.warmup_method!r} is not known: {nearest(self.warmup_method, WARMUPS)}"
            )
        if self.target_lr and self.name not in WITH_TARGET:
            raise UserError(
                f"schedule.target_lr = {self.target_lr} has no effect under {self.name}: set it to 0 or choose one of "
                f"{', '.join(WITH_TARGET)} (poly with power 1 is a line to the target)"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"schedule.milestones = {list(self.milestones)} must be in ascending order")


def _towards(base: float, target: float, share: float) -> float:
    """Return `target` for share 0, `base` for share 1, and what lies between."""
    return target + (base - target) * share


Shape = Callable[[float, float, float, ScheduleSpec], float]
"""(base rate, epoch, share of the time after warm-up that has passed, spec) -> rate."""

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

WITH_TARGET = ("cosine", "poly", "poly_released")

WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda factor, done: factor * (1 - done) + done,
    "constant": lambda factor, done: factor,
}
"""(warmup_factor, share of the warm-up that has passed) -> factor on the base rate."""


def learning_rate(epoch: float, base_lr: float, spec: ScheduleSpec) -> float:
    """Return the rate in force at `epoch` (0 = start of the run, fractions allowed) for a group whose base is
    `base_lr`.

    Before warmup_epochs the shape is not applied; after it, time runs from 0 at its end to 1 at `epochs` and stays
    there. Source: reference (released form of every shape but poly; target_lr is absolute, so it holds for every
    group).
    """
    if epoch < spec.warmup_epochs:
        return base_lr * WARMUPS[spec.warmup_method](spec.warmup_factor, epoch / spec.warmup_epochs)
    remaining = spec.epochs - spec.warmup_epochs
    done = min((epoch - spec.warmup_epochs) / remaining, 1.0) if remaining > 0 else 1.0
    return SHAPES[spec.name](base_lr, epoch, done, spec)


def schedule_position(step: int, steps_per_epoch: int, interval: str) -> float:
    """Return the epoch that optimiser step `step` (from 0) counts as: whole for `epoch`, with its fraction for
    `step`.
    """
    return float(step // steps_per_epoch) if interval == "epoch" else step / steps_per_epoch
