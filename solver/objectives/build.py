"""Objectives by family."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import ObjectiveConfig
from configs.vocabulary import Family
from solver.objectives.base import Objective
from solver.objectives.reid5o import Reid5oObjective


def build_reid5o(config: ObjectiveConfig, seed: int) -> Reid5oObjective:
    """Build ReID5o's objective. Raises UserError for an unknown loss or a value out of range."""
    return Reid5oObjective(losses=config.losses, temperature=config.temperature,
                           combinations_per_step=config.combinations_per_step, seed=seed)


OBJECTIVES: dict[Family, Callable[[ObjectiveConfig, int], Objective]] = {Family.REID5O: build_reid5o}
"""Family -> builder from (section `objective`, seed)."""


def build_objective(family: Family, objective_config: ObjectiveConfig, seed: int) -> Objective:
    """Build the objective of a family."""
    return OBJECTIVES[family](objective_config, seed)
