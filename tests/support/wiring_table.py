"""Rows of the table of options: an experiment, an unusual value of each option, and where it is to be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wiring import Found

from configs.vocabulary import Family

GIVEN = object()
"""What is found is the value itself."""


@dataclass(frozen=True)
class Option:
    """An unusual value, where it is to be seen, and what is seen there."""

    value: Any
    found: Found
    expected: Any = GIVEN


@dataclass(frozen=True)
class Experiment:
    """Options that one run can have together. base: options that only make it possible."""

    family: str
    options: Mapping[str, Option]
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fit: bool = False


PLAIN = {Family.REID5O: "vision.projection", Family.VIREID: "backbone.stems.rgb.conv1.weight"}
NEW = {Family.REID5O: "classifier.weight", Family.VIREID: "heads.rgb.fc1.weight"}
BIAS = {Family.REID5O: "vision.ln_post.bias", Family.VIREID: "backbone.stems.rgb.bn1.bias"}

OPTIMIZER = {
    "optimizer.lr": Option(0.002, lambda run: run.group(PLAIN[run.job.config.family])["base_lr"]),
    "optimizer.weight_decay": Option(0.011, lambda run: run.group(PLAIN[run.job.config.family])["weight_decay"]),
    "optimizer.bias_weight_decay": Option(0.012, lambda run: run.group(BIAS[run.job.config.family])["weight_decay"]),
    "optimizer.new_module_lr_factor": Option(
        3.0, lambda run: round(run.group(NEW[run.job.config.family])["base_lr"] / 0.002, 6)
    ),
    "optimizer.bias_lr_factor": Option(
        1.5, lambda run: round(run.group(BIAS[run.job.config.family])["base_lr"] / 0.002, 6)
    ),
}
