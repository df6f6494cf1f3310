"""Objectives by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs.schema.reid5o import Reid5oObjectiveConfig
from configs.schema.vireid import VireidObjectiveConfig
from configs.vocabulary import Family
from solver.objectives.base import Objective
from solver.objectives.reid5o import Reid5oObjective
from solver.objectives.vireid import VireidObjective


def build_reid5o(config: Reid5oObjectiveConfig, seed: int) -> Reid5oObjective:
    """Build ReID5o's objective. Raises UserError for an unknown loss or a value out of range."""
    return Reid5oObjective(
        losses=config.losses,
        temperature=config.temperature,
        combinations_per_step=config.combinations_per_step,
        seed=seed,
    )


def build_vireid(config: VireidObjectiveConfig, seed: int) -> VireidObjective:
    """Build the visible-infrared objective; it draws nothing. Raises UserError for an unknown loss or weight."""
    return VireidObjective(losses=config.losses, margin=config.margin, reduction=config.imitation_reduction)


OBJECTIVES: dict[Family, Callable[[Any, int], Objective]] = {Family.REID5O: build_reid5o, Family.VIREID: build_vireid}
"""Family -> builder from (section `objective`, seed)."""


def build_objective(family: Family, objective_config: Any, seed: int) -> Objective:
    """Build the objective of a family."""
    return OBJECTIVES[family](objective_config, seed)
