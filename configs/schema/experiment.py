"""One experiment, complete, and the sections of each family."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.checks import require
from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.irm import IrmConfig, IrmObjectiveConfig
from configs.schema.irmpp import IrmppObjectiveConfig
from configs.schema.published import check_published
from configs.schema.reid5o import Reid5oConfig, Reid5oObjectiveConfig
from configs.schema.train import OptimizerConfig, ScheduleConfig, TrainConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Family

ModelConfig = Reid5oConfig | VireidConfig | IrmConfig
ObjectiveConfig = Reid5oObjectiveConfig | VireidObjectiveConfig | IrmObjectiveConfig | IrmppObjectiveConfig


@dataclass(frozen=True)
class FamilySections:
    """The sections that a family has of its own."""

    model: type[ModelConfig]
    objective: type[ObjectiveConfig]


FAMILIES: dict[Family, FamilySections] = {
    Family.REID5O: FamilySections(Reid5oConfig, Reid5oObjectiveConfig),
    Family.VIREID: FamilySections(VireidConfig, VireidObjectiveConfig),
    Family.IRM: FamilySections(IrmConfig, IrmObjectiveConfig),
    Family.IRMPP: FamilySections(IrmConfig, IrmppObjectiveConfig),
}
"""A new family has a row here, in model.build.FAMILIES and in solver.training.families.FAMILIES."""


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, complete."""

    family: Family
    name: str
    """Name of the run; its folder is output_dir/name."""
    output_dir: str
    seed: int
    """Of initial weights, draws and augmentation."""
    data: DataConfig
    instruction: InstructionConfig
    augment: AugmentConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalConfig
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figures of a paper by row of the result table and metric; see PublishedFigures."""
    published_note: str = ""
    """Whose figures they are, and by which protocol, or that the paper does not say."""

    def __post_init__(self) -> None:
        self.model.check(self)
        self.objective.check(self)
        check_published(self.published)
        require(
            self.train.init_banks == "same" or (bool(self.train.init_from) and self.objective.remembers_identities),
            "train.init_banks",
            self.train.init_banks,
            "same where train.init_from is not given or the losses have no memory banks",
        )
