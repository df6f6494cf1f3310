"""One experiment, complete, and the sections of each family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.schema.checks import require
from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.reid5o import Reid5oConfig, Reid5oObjectiveConfig
from configs.schema.train import OptimizerConfig, ScheduleConfig, TrainConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family

MODEL_CONFIGS: dict[Family, type] = {Family.REID5O: Reid5oConfig, Family.VIREID: VireidConfig}
"""Section `model` of each family."""

OBJECTIVE_CONFIGS: dict[Family, type] = {Family.REID5O: Reid5oObjectiveConfig, Family.VIREID: VireidObjectiveConfig}
"""Section `objective` of each family."""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, complete. Sections are dataclasses of this module."""

    family: Family
    name: str
    output_dir: str
    seed: int
    data: DataConfig
    instruction: InstructionConfig
    augment: AugmentConfig
    model: Any
    objective: Any
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalConfig

    def __post_init__(self) -> None:
        if self.family is not Family.VIREID:
            return
        require(
            self.train.sampler in ("modality", "tasks"),
            "train.sampler",
            self.train.sampler,
            "modality (or tasks) for the family vireid, whose batches need visible and infrared images of each "
            "identity",
        )
        by_heads = [name for name in ("modality_id", "imitation") if self.objective.losses.get(name)]
        require(
            self.model.head_width > 0 or not by_heads,
            "model.head_width",
            self.model.head_width,
            f"above 0 with the losses {' and '.join(by_heads)}, which are those of the modality heads",
        )
