"""Models by family, built from the section `model` of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from configs.schema.reid5o import Reid5oConfig
from configs.vocabulary import Family
from model.interface import RetrievalModel
from model.layers import head_count
from model.lora import LoraSpec
from model.reid5o import ReID5o
from model.text import TextSpec
from model.vision import VisionSpec
from model.weights.clip import InitialWeights, initialise_from
from model.weights.reid5o_names import reference_name
from model.weights.vireid import initialise_vireid, vireid_from


def build_reid5o(config: Reid5oConfig, num_identities: int) -> ReID5o:
    """Build ReID5o, its parameters not yet initialised. Raises UserError for sizes that do not fit together."""
    options = config.lora
    lora = LoraSpec(
        mode=options.mode,
        layers=options.layers,
        rank=options.rank,
        num_experts=options.num_experts,
        scale=1 / options.rank if options.scale is None else options.scale,
        train_base=options.train_base,
    )
    vision = VisionSpec(
        image_size=(int(config.image_size[0]), int(config.image_size[1])),
        patch_size=config.patch_size,
        stride=config.stride,
        width=config.vision_width,
        layers=config.vision_layers,
        heads=head_count(config.vision_width, config.vision_heads, "vision transformer (model.vision_heads)"),
        lora=lora if options.enabled else None,
    )
    text = TextSpec(
        length=config.text_length,
        vocab_size=config.vocab_size,
        width=config.text_width,
        layers=config.text_layers,
        heads=head_count(config.text_width, config.text_heads, "text transformer (model.text_heads)"),
    )
    return ReID5o(
        vision=vision,
        text=text,
        embed_dim=config.embed_dim,
        mmt_depth=config.mmt_depth,
        mmt_heads=head_count(config.embed_dim, config.mmt_heads, "fusion (model.mmt_heads)"),
        num_identities=num_identities,
    )


def initialise_reid5o(model: ReID5o, config: Reid5oConfig) -> InitialWeights:
    """Give every parameter its first value by `config.init`."""
    return initialise_from(model, config.init, config.position_resize)


MODELS: dict[Family, Callable[[Any, int], RetrievalModel]] = {Family.REID5O: build_reid5o, Family.VIREID: vireid_from}
"""Family -> builder from (section `model`, number of training identities)."""

INITIALISERS: dict[Family, Callable[[Any, Any], InitialWeights]] = {
    Family.REID5O: initialise_reid5o,
    Family.VIREID: initialise_vireid,
}
"""Family -> initialiser of (model, section `model`)."""


def build_model(family: Family, model_config: Any, num_identities: int) -> RetrievalModel:
    """Build the model of a family; `initialise` or a checkpoint gives it its weights."""
    return MODELS[family](model_config, num_identities)


def initialise(family: Family, model: RetrievalModel, model_config: Any) -> InitialWeights:
    """Initialise a model in place and report where every tensor came from. Raises UserError before training."""
    return INITIALISERS[family](model, model_config)


def official_names(model: nn.Module) -> dict[str, str]:
    """Return the released code's name of each parameter of a ReID5o model: ours -> reference."""
    return {name: reference_name(name).name for name, _ in model.named_parameters()}
