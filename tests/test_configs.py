"""The shipped configurations: each loads, says what it is, and builds everything that it names."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import experiment_to_dict, load_experiment
from datasets.catalogue import CATALOGUE
from datasets.loading.loaders import SAMPLERS
from model.build import build_model
from solver.objectives.base import ObjectiveContext
from solver.training.families import FAMILIES, build_objective
from solver.training.lr_schedule import SHAPES
from solver.training.param_groups import apply_policy

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "reid5o"
FILES = sorted(FOLDER.rglob("*.yaml"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# The paper's recipe, written down a second time.
RECIPE: dict[str, Any] = {
    "augment": {"flip": 0.5, "pad_crop": 10, "erase": 0.5, "caption_mask": 0.15},
    "objective": {"losses": {"mm_sdm": 1.0, "id": 1.0}, "temperature": 0.02, "combinations_per_step": 11},
    "optimizer": {
        "name": "adam",
        "lr": 1e-5,
        "eps": 1e-3,
        "betas": [0.9, 0.999],
        "weight_decay": 4e-5,
        "bias_weight_decay": 0.0,
        "new_module_lr_factor": 5.0,
        "bias_lr_factor": 2.0,
    },
    "schedule": {
        "name": "cosine",
        "interval": "epoch",
        "warmup_epochs": 5.0,
        "warmup_factor": 0.1,
        "warmup_method": "linear",
        "target_lr": 0.0,
    },
    "train": {
        "epochs": 60,
        "batch_size": 64,
        "accumulate": 1,
        "sampler": "random",
        "drop_last": False,
        "precision": "fp32",
        "clip_norm": 0.0,
        "eval_period": 5,
    },
    "model": {
        "image_size": [384, 128],
        "patch_size": 16,
        "stride": 16,
        "embed_dim": 512,
        "vision_width": 768,
        "vision_layers": 12,
        "vision_heads": None,
        "text_width": 512,
        "text_layers": 12,
        "text_length": 77,
        "vocab_size": 49408,
        "mmt_depth": 4,
        "position_resize": "bilinear",
    },
}

# What each ablation changes: dotted key -> value; nothing else may differ.
ABLATIONS: dict[str, dict[str, Any]] = {
    "lora_off": {"model.lora.enabled": False},
    "lora_rank_2": {"model.lora.rank": 2},
    "lora_rank_8": {"model.lora.rank": 8},
    "lora_rank_16": {"model.lora.rank": 16},
    "lora_all": {"model.lora.mode": "all"},
    "loss_mm_itc": {"objective.losses": {"mm_itc": 1.0, "id": 1.0}},
    "loss_mm_supitc": {"objective.losses": {"mm_supitc": 1.0, "id": 1.0}},
    "loss_mm_cmpm": {"objective.losses": {"mm_cmpm": 1.0, "id": 1.0}},
    "loss_no_id": {"objective.losses": {"mm_sdm": 1.0}},
    "loss_sdm_single": {"objective.losses": {"sdm": 0.25, "id": 1.0}},
    "loss_itc_single": {"objective.losses": {"itc": 0.25, "id": 1.0}},
    "fusion_depth_1": {"model.mmt_depth": 1},
    "fusion_depth_2": {"model.mmt_depth": 2},
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; a table of losses is one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict) and name != "objective.losses":
            found |= flat(value, name + ".")
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_header_tells_its_command(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    relative = path.relative_to(ROOT).as_posix()
    assert re.search(rf"^# Command:\s+python train\.py --config {re.escape(relative)}", header, re.MULTILINE)
    assert "data" in header


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_everything_named_exists_and_every_parameter_has_a_rule(path: Path) -> None:
    config = load_experiment(path)
    assert config.data.dataset in CATALOGUE and config.train.sampler in SAMPLERS and config.schedule.name in SHAPES
    with torch.device("meta"):
        model = build_model(config.family, config.model, 7)
    build_objective(config.family, config.objective, ObjectiveContext(seed=config.seed, model=model, records=()))
    policy = apply_policy(
        model.named_parameters(),
        FAMILIES[config.family].policy(config.optimizer),
        lr=config.optimizer.lr,
        freeze=config.train.freeze,
    )
    assert policy.count(True) > 0


def test_recipe_of_the_paper() -> None:
    values = flat(experiment_to_dict(load_experiment(FOLDER / "orbench.yaml")))
    for name, expected in flat(RECIPE).items():
        assert values[name] == expected, name
    lora = {name.removeprefix("model.lora."): value for name, value in values.items() if name.startswith("model.lora.")}
    assert lora == {
        "enabled": True,
        "mode": "mlp",
        "layers": 2,
        "rank": 4,
        "num_experts": 4,
        "scale": None,
        "train_base": False,
    }
    assert (values["train.select"], values["data.val_fraction"]) == ("val", 0.1)


def test_recipe_has_the_published_size() -> None:
    config = load_experiment(FOLDER / "orbench.yaml")
    with torch.device("meta"):
        model = build_model(config.family, config.model, 1000)
    parameters = list(model.parameters())
    assert sum(value.numel() for value in parameters) == 166_786_024
    assert sum(value.numel() for value in parameters if value.requires_grad) == 157_348_840


def test_ablations_change_one_thing() -> None:
    paths = {path.stem: path for path in (FOLDER / "ablations").glob("*.yaml")}
    assert paths.keys() == ABLATIONS.keys()
    base = flat(experiment_to_dict(load_experiment(FOLDER / "orbench.yaml")))
    for name, path in paths.items():
        values = flat(experiment_to_dict(load_experiment(path)))
        changed = {key: value for key, value in values.items() if value != base[key] and key != "name"}
        assert changed == ABLATIONS[name], name
        assert "ublished" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("orbench_parity", {"train.select": "test", "augment.keep_eot": False}),
        ("24gb", {"train.precision": "bf16", "eval.precision": "bf16"}),
    ],
)
def test_variants_of_the_recipe(name: str, expected: dict[str, Any]) -> None:
    base = flat(experiment_to_dict(load_experiment(FOLDER / "orbench.yaml")))
    values = flat(experiment_to_dict(load_experiment(FOLDER / f"{name}.yaml")))
    assert {key: value for key, value in values.items() if value != base[key] and key != "name"} == expected
