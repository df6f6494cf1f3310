"""Golden checks of the released learning rate of IRM: by steps, with a warm-up that runs during the shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity_common import Kind, Row, relative_error

from configs.schema.train import ScheduleConfig
from solver.training.lr_schedule import Timeline

RATES = "lr_used_at_iteration(0-based)"
RATE_TOLERANCE = 1e-9
SHAPES = {"cosine": "cosine", "multistep": "step"}
"""Kind of a file -> shape of ours."""
STEPS_PER_EPOCH = 7
"""Of no consequence under train.steps."""


def timeline_of(case: dict[str, Any]) -> Timeline:
    """Return the run that a case of the file describes, as train.steps and the section `schedule` say it."""
    options = dict(case["args"])
    name: Any = SHAPES[case["kind"]]
    length = options.pop("max_iters", None) or 1 + max(map(int, case[RATES]))
    spec = ScheduleConfig(
        name=name,
        interval="step",
        warmup="during",
        warmup_epochs=0.0,
        warmup_steps=options.pop("warmup_iters"),
        warmup_factor=options.pop("warmup_factor"),
        warmup_method=options.pop("warmup_method", "linear"),
        milestones=tuple(options.pop("milestones", ())),
        gamma=options.pop("gamma", 0.1),
        target_lr=options.pop("eta_min", 0.0),
    )
    if options:
        raise ValueError(f"a schedule with {sorted(options)} is of no known form")
    return Timeline(spec, STEPS_PER_EPOCH, epochs=1, steps=length)


def check_schedules(path: Path) -> list[Row]:
    """Compare the rate of every step of the file, relative to the file's own."""
    rows = []
    for number, case in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        timeline, base = timeline_of(case), case["base_lr"]
        errors = [relative_error(timeline.rate(int(step), base), rate) for step, rate in case[RATES].items()]
        method = case["args"].get("warmup_method", "linear")
        rows.append(Row(f"{number}: {case['kind']}, {method} warm-up (relative)", max(errors), RATE_TOLERANCE))
    return rows


KINDS: tuple[Kind, ...] = (Kind("learning rate (IRM)", r"d_lr_schedules.*\.json", check_schedules),)
