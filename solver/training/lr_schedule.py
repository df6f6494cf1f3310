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
"""(base rate, time, share of the shape's time that has passed, section `schedule`) -> rate."""

SHAPES: dict[str, Shape] = {
    "cosine": lambda base, time, done, spec: _towards(base, spec.target_lr, (1 + math.cos(math.pi * done)) / 2),
    "linear": lambda base, time, done, spec: base * (1 - done),
    "exp": lambda base, time, done, spec: base * spec.power**done,
    "poly": lambda base, time, done, spec: _towards(base, spec.target_lr, (1 - done) ** spec.power),
    "poly_released": lambda base, time, done, spec: _towards(base, spec.target_lr, spec.power ** (1 - done)),
    "step": lambda base, time, done, spec: base * spec.gamma ** bisect.bisect_right(spec.milestones, time),
}
"""Shapes of the rate. poly_released rises from power x base to base: the released formula with base and exponent
swapped, kept for comparison; poly is the intended one."""

WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda factor, done: factor * (1 - done) + done,
    "constant": lambda factor, done: factor,
}
"""(warmup_factor, share of the warm-up that has passed) -> factor on the base rate."""


def learning_rate(time: float, base_lr: float, spec: ScheduleConfig, end: float, warmup: float) -> float:
    """Return the rate in force at `time` (0 = start of the run, fractions allowed) for a group whose base is
    `base_lr`. time, end of the run, warmup, spec.milestones: all in epochs, or all in optimiser steps.

    warmup `before`: the shape begins when the warm-up is over, and its time runs from 0 there to 1 at `end`. `during`:
    it begins with the run, and the warm-up's factor multiplies it. Beyond `end` the rate stays. Source: reference
    (released form of every shape but poly; target_lr is absolute, so it holds for every group); `during` is that of
    Instruct-ReID's code.
    """
    factor = WARMUPS[spec.warmup_method](spec.warmup_factor, time / warmup) if time < warmup else 1.0
    if spec.warmup == "before" and time < warmup:
        return base_lr * factor
    start = warmup if spec.warmup == "before" else 0.0
    done = min((time - start) / (end - start), 1.0) if end > start else 1.0
    return SHAPES[spec.name](base_lr, time, done, spec) * factor


class Timeline:
    """How long a run is and which rate its steps have. Time is in epochs, or under train.steps in optimiser steps."""

    def __init__(self, spec: ScheduleConfig, steps_per_epoch: int, *, epochs: int, steps: int = 0) -> None:
        """steps: train.steps, of the whole run; 0 = it lasts `epochs`."""
        self.spec, self.steps_per_epoch, self.by_steps = spec, steps_per_epoch, steps > 0
        self.steps = steps or epochs * steps_per_epoch
        self.epochs = math.ceil(steps / steps_per_epoch) if self.by_steps else epochs
        # Steps of a unit of time.
        unit = 1 if self.by_steps else steps_per_epoch
        self.end = float(steps if self.by_steps else epochs)
        if spec.warmup_steps:
            self.warmup = spec.warmup_steps / unit
        else:
            self.warmup = spec.warmup_epochs * (steps_per_epoch if self.by_steps else 1)

    def time(self, step: int) -> float:
        """Return when optimiser step `step` (from 0) is: at its epoch's beginning under the interval `epoch`."""
        counted = step - step % self.steps_per_epoch if self.spec.interval == "epoch" else step
        return float(counted) if self.by_steps else counted / self.steps_per_epoch

    def rate(self, step: int, base_lr: float) -> float:
        """Return the rate of optimiser step `step` for a group whose base is `base_lr`."""
        return learning_rate(self.time(step), base_lr, self.spec, self.end, self.warmup)
