"""Covers: configs/schema/irm. The options of IRM that cannot hold together are refused, each by its key."""

from __future__ import annotations

from typing import Any

import pytest

from configs.schema.irm import IrmConfig, IrmObjectiveConfig

Case = tuple[dict[str, Any], str]
MODELS: tuple[Case, ...] = (
    ({"width": 65, "heads": 4}, "model.width"),
    ({"image_size": (250, 128)}, "model.image_size"),
    ({"instruction_size": (8, 128)}, "model.instruction_size"),
    ({"stem": "residual", "patch_size": 8}, "model.patch_size"),
    ({"text_positions": 60}, "model.text_positions"),
    ({"fusion_layers": 0, "matching": "fusion"}, "model.fusion_layers"),
    ({"dropout": 1.0}, "model.dropout"),
    ({"drop_path": -0.1}, "model.drop_path"),
    ({"layers": 0}, "model.layers"),
    ({"caption_dim": 0}, "model.caption_dim"),
    ({"part_tokens": -1}, "model.part_tokens"),
    ({"text_mlp_ratio": 0.0}, "model.text_mlp_ratio"),
    ({"attention_weights": "image", "attention_layers": 3}, "model.attention_layers"),
)
OBJECTIVES: tuple[Case, ...] = (
    ({"losses": {}}, "objective.losses"),
    ({"margin": -1.0}, "objective.margin"),
    ({"queue": -1}, "objective.queue"),
    ({"momentum": 1.0}, "objective.momentum"),
    ({"distillation": 1.5}, "objective.distillation"),
    ({"mask_share": 0.0}, "objective.mask_share"),
    ({"replace_share": 2.0}, "objective.replace_share"),
)


@pytest.mark.parametrize(("given", "key"), MODELS, ids=lambda value: str(value)[:40])
def test_a_model_section_that_cannot_be_is_refused_by_its_key(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        IrmConfig(**given)


@pytest.mark.parametrize(("given", "key"), OBJECTIVES, ids=lambda value: str(value)[:40])
def test_an_objective_section_that_cannot_be_is_refused_by_its_key(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        IrmObjectiveConfig(**given)


def test_the_defaults_are_the_papers() -> None:
    model, objective = IrmConfig(), IrmObjectiveConfig()
    assert (model.image_size, model.width, model.layers, model.part_tokens) == ((256, 128), 768, 12, 3)
    assert (model.text_layers + model.fusion_layers, model.text_length, model.instruction_size) == (12, 70, (128, 128))
    assert objective.losses["triplet"] == objective.losses["triplet_out"] == 3.0
