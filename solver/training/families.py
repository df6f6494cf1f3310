"""What the training of each family is made of: its objective and the policy of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from configs.schema.experiment import ObjectiveConfig
from configs.schema.train import OptimizerConfig
from configs.vocabulary import Family
from solver.objectives.base import Objective, ObjectiveContext
from solver.objectives.irm import IrmObjective
from solver.objectives.irmpp import IrmppObjective
from solver.objectives.reid5o import Reid5oObjective
from solver.objectives.vireid import VireidObjective
from solver.training.param_groups import Rule, irm_rules, reid5o_rules, vireid_rules
from utils.errors import UserError

Config = TypeVar("Config", bound=ObjectiveConfig)


@dataclass(frozen=True)
class FamilyTraining(Generic[Config]):
    """How a family is trained."""

    objective: Callable[[Config, ObjectiveContext], Objective[Any]]
    """(section `objective`, seed, model and records) -> objective. Raises UserError for a loss that it lacks."""
    policy: Callable[[OptimizerConfig], tuple[Rule, ...]]
    """Section `optimizer` -> rules of the parameter policy, in order."""


FAMILIES: dict[Family, FamilyTraining[Any]] = {
    Family.REID5O: FamilyTraining(
        lambda config, context: Reid5oObjective(config, context.seed, context.modalities), reid5o_rules
    ),
    Family.VIREID: FamilyTraining(lambda config, context: VireidObjective(config), vireid_rules),
    Family.IRM: FamilyTraining(IrmObjective, irm_rules),
    Family.IRMPP: FamilyTraining(IrmppObjective, irm_rules),
}


def build_objective(family: Family, objective_config: ObjectiveConfig, context: ObjectiveContext) -> Objective[Any]:
    """Build the objective of a family. Raises UserError for a loss that it lacks."""
    objective = FAMILIES[family].objective(objective_config, context)
    learned = [name for name, value in objective.named_parameters() if value.requires_grad]
    if learned:
        raise UserError(
            f"the objective of {family.value} would learn {learned[0]}; whatever is learned lives in the model"
        )
    return objective
