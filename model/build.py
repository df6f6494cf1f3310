"""Models by family, built from the section `model` of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from configs.schema.experiment import ModelConfig
from configs.vocabulary import Family
from model.interface import RetrievalModel
from model.irm import IRM
from model.reid5o import ReID5o
from model.vireid import Vireid
from model.weights.clip import InitialWeights, initialise_reid5o
from model.weights.irm import initialise_irm
from model.weights.vireid import initialise_vireid

Model = TypeVar("Model", bound=RetrievalModel)
Config = TypeVar("Config", bound=ModelConfig)


@dataclass(frozen=True)
class FamilyModel(Generic[Model, Config]):
    """How a family's model comes into being."""

    build: Callable[[Config, int], Model]
    """(section `model`, number of training identities) -> model, its parameters not yet initialised. Raises UserError
    for sizes that do not fit together."""
    initialise: Callable[[Model, Config], InitialWeights]
    """Give every parameter its first value by the section's `init`; report where each came from. Raises UserError."""


FAMILIES: dict[Family, FamilyModel[Any, Any]] = {
    Family.REID5O: FamilyModel(ReID5o, initialise_reid5o),
    Family.VIREID: FamilyModel(Vireid, initialise_vireid),
    Family.IRM: FamilyModel(IRM, initialise_irm),
    Family.IRMPP: FamilyModel(IRM, initialise_irm),
}


def build_model(family: Family, model_config: ModelConfig, num_identities: int) -> RetrievalModel:
    """Build the model of a family; `initialise` or a checkpoint gives it its weights."""
    return FAMILIES[family].build(model_config, num_identities)


def initialise(family: Family, model: RetrievalModel, model_config: ModelConfig) -> InitialWeights:
    """Initialise a model in place and report where every tensor came from. Raises UserError before training."""
    return FAMILIES[family].initialise(model, model_config)
