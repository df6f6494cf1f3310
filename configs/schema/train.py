"""Sections `train`, `optimizer` and `schedule`: the run itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from configs.schema.checks import require
from configs.vocabulary import Task


@dataclass(frozen=True)
class TrainConfig:
    """The run itself."""

    epochs: int = 60
    steps: int = 0
    """Optimiser steps of the whole run, with as many epochs as they take; 0 = train.epochs decides."""
    batch_size: int = 64
    """Rows of one forward pass."""
    accumulate: int = 1
    """Micro-batches of one optimiser step: the effective batch is batch_size x accumulate."""
    accumulate_features: bool = True
    """The losses see the rows of all micro-batches together, which costs a second forward pass; false: those of one
    micro-batch, and the gradients are averaged."""
    sampler: Literal["random", "identity", "modality", "tasks"] = "random"
    """random: a permutation of the records. identity: P identities x K rows. modality: P identities x (K infrared + K
    visible). tasks: identity batches of several tasks, put together."""
    instances: int = 4
    """K: rows per identity; under the modality sampler of each modality."""
    mixture: Literal["batch", "step"] = "batch"
    """Sampler tasks: every batch has rows of all tasks, or each batch is of one task."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Sampler tasks: task -> share of the rows, or of the batches; 0 leaves a task out, a task that is not named has
    1.
    """
    task_instances: dict[str, int] = field(default_factory=dict)
    """Sampler tasks: task -> rows per identity; train.instances where it is not named."""
    drop_last: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    checkpoint_activations: bool = False
    compile: bool = False
    freeze: tuple[str, ...] = ()
    """Patterns (regular expressions that match the whole name) of parameters that are not trained."""
    init_from: str = ""
    """Run directory whose weights (best, else last) start this run; nothing else is taken from it."""
    init_banks: Literal["same", "new"] = "same"
    """Where the objective has memory banks, with a slot for each training identity: refuse init_from of another number
    of identities, or start all the same, with banks (and a classifier) of which nothing is known yet."""
    select: Literal["val", "test", "last"] = "val"
    """What chooses `best`: an identity-disjoint validation split, the test set (then every result says so), or the last
    epoch.
    """
    eval_period: int = 5
    """Epochs between two evaluations during training."""
    log_period: int = 20
    """Steps between two log lines; metrics.jsonl has every step."""
    max_steps: int = 0
    """Stop after so many steps of a run whose schedule stays that of the whole; 0 = no limit. For trials and
    benchmarks.
    """
    ema: float = 0.0
    """Decay of a moving average of the weights, for instance 0.999, which is evaluated and saved beside them; 0 =
    none.
    """
    save_minutes: float = 10.0
    """Minutes between two saved states, from which --resume goes on; 0 = by the clock none."""
    save_steps: int = 0
    """Steps between two saved states; 0 = by steps none. One is saved at the end of every epoch in any case."""
    keep_states: int = 2
    """The newest states that are kept until the run has finished."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "eval_period", "log_period"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        require(self.batch_size >= 2, "train.batch_size", self.batch_size, "at least 2")
        require(self.instances >= 1, "train.instances", self.instances, "at least 1")
        require(
            self.sampler != "identity" or self.batch_size % self.instances == 0,
            "train.batch_size",
            self.batch_size,
            "a multiple of train.instances",
        )
        require(
            self.sampler != "modality" or self.batch_size % (2 * self.instances) == 0,
            "train.batch_size",
            self.batch_size,
            "a multiple of 2 x train.instances under the modality sampler",
        )
        for name, lowest in (("task_weights", 0), ("task_instances", 1)):
            table = getattr(self, name)
            require(
                set(table) <= {task.value for task in Task},
                f"train.{name}",
                table,
                f"by task: {', '.join(task.value for task in Task)}",
            )
            require(
                all(math.isfinite(value) and value >= lowest for value in table.values()),
                f"train.{name}",
                table,
                f"finite numbers, at least {lowest}",
            )
        require(self.clip_norm >= 0, "train.clip_norm", self.clip_norm, "0 (off) or larger")
        require(self.steps >= 0, "train.steps", self.steps, "0 (train.epochs decides) or larger")
        require(self.max_steps >= 0, "train.max_steps", self.max_steps, "0 (no limit) or larger")
        require(0 <= self.ema < 1, "train.ema", self.ema, "at least 0 (off) and below 1")
        for name in ("save_minutes", "save_steps"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 (off) or larger")
        require(self.keep_states >= 1, "train.keep_states", self.keep_states, "at least 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and the multipliers of the parameter policy."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-5
    eps: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 4e-5
    bias_weight_decay: float = 0.0
    new_module_lr_factor: float = 5.0
    """Multiplier for LoRA, fusion and classifier weights."""
    bias_lr_factor: float = 2.0
    """Multiplier for every bias; it replaces the factor for new modules, as released."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "larger than 0")
        require(self.eps > 0, "optimizer.eps", self.eps, "larger than 0")
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "at least 0 and below 1")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "at least 0 and below 1")
        for name in ("weight_decay", "bias_weight_decay", "new_module_lr_factor", "bias_lr_factor"):
            require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "0 or larger")


WITH_TARGET = ("cosine", "poly", "poly_released")
"""Shapes of the learning rate that approach a rate of their own."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time."""

    name: Literal["cosine", "linear", "exp", "poly", "poly_released", "step"] = "cosine"
    interval: Literal["epoch", "step"] = "epoch"
    """Change the rate once per epoch, as the reference, or at every optimiser step."""
    warmup_epochs: float = 5.0
    """Epochs of the warm-up."""
    warmup_steps: int = 0
    """Optimiser steps of the warm-up; 0 = warmup_epochs decides."""
    warmup: Literal["before", "during"] = "before"
    """The shape begins after the warm-up, or with the run and is multiplied by the warm-up's factor (Instruct-ReID)."""
    warmup_factor: float = 0.1
    """Share of the base rate at the start of the warm-up."""
    warmup_method: Literal["linear", "constant"] = "linear"
    """From the factor to the whole rate in a line, or the factor throughout."""
    target_lr: float = 0.0
    """Rate at the end, absolute, for every group; shapes cosine, poly and poly_released."""
    power: float = 0.9
    """Exponent of poly; base of exp and poly_released."""
    milestones: tuple[int, ...] = (20, 50)
    """Epochs, under train.steps optimiser steps, at which the shape `step` multiplies the rate by `gamma`."""
    gamma: float = 0.1

    def __post_init__(self) -> None:
        require(
            not self.target_lr or self.name in WITH_TARGET,
            "schedule.target_lr",
            self.target_lr,
            f"0 under {self.name}, where it has no effect; or choose one of {', '.join(WITH_TARGET)} (poly with power "
            "1 is a line to the target)",
        )
        for name in ("warmup_epochs", "warmup_steps", "warmup_factor", "target_lr", "power", "gamma"):
            require(getattr(self, name) >= 0, f"schedule.{name}", getattr(self, name), "0 or larger")
        require(
            all(epoch >= 0 for epoch in self.milestones) and list(self.milestones) == sorted(self.milestones),
            "schedule.milestones",
            self.milestones,
            "ascending numbers, 0 or larger",
        )
