"""Covers: configs/reid5o, configs/vireid, model/build, solver/training/families. The shipped configurations: each
loads, says what it is, and builds everything that it names.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import build_experiment, experiment_to_dict, load_experiment
from datasets.catalogue import CATALOGUE
from datasets.loading.loaders import SAMPLERS
from model.build import build_model
from solver.objectives.base import ObjectiveContext
from solver.training.families import FAMILIES, build_objective
from solver.training.lr_schedule import SHAPES
from solver.training.param_groups import apply_policy

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "reid5o"
VIREID = ROOT / "configs" / "vireid"
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
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

# The recipe of IV-REID on SYSU-MM01, written down a second time; its optimiser: golden/vi/optimizer_facts.json.
VIREID_RECIPE: dict[str, Any] = {
    "data": {"dataset": "sysu"},
    "augment": {"flip": 0.5, "pad_crop": 10, "erase": 0.0},
    "objective": {
        "losses": {"id": 1.0, "modality_id": 1.0, "imitation": 1.0, "triplet": 1.0},
        "margin": 0.3,
        "imitation_reduction": "batchmean",
    },
    "optimizer": {
        "name": "adam",
        "lr": 1e-4,
        "eps": 1e-8,
        "betas": [0.9, 0.999],
        "weight_decay": 5e-4,
        "bias_weight_decay": 5e-4,
        "bias_lr_factor": 1.0,
        "new_module_lr_factor": 10.0,
    },
    "schedule": {"name": "step", "warmup_epochs": 0.0, "milestones": []},
    "train": {
        "epochs": 100,
        "batch_size": 64,
        "accumulate": 1,
        "sampler": "modality",
        "instances": 4,
        "precision": "fp32",
        "clip_norm": 0.0,
        "select": "test",
        "eval_period": 2,
    },
    "model": {
        "init": "imagenet",
        "image_size": [384, 128],
        "depth": 50,
        "blocks": None,
        "width": 64,
        "conv_bias": True,
        "stem_relu": False,
        "stem": "shared",
        "non_local": False,
        "last_stride": 1,
        "neck": "bn",
        "neck_bias": True,
        "classifier_bias": True,
        "pooling": "avg",
        "feature": "neck",
        "head_width": 512,
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


@pytest.mark.parametrize(
    ("path", "recipe"),
    [(FOLDER / "orbench.yaml", RECIPE), (VIREID / "sysu.yaml", VIREID_RECIPE)],
    ids=["orbench", "sysu"],
)
def test_recipe_of_the_paper(path: Path, recipe: dict[str, Any]) -> None:
    values = flat(experiment_to_dict(load_experiment(path)))
    for name, expected in flat(recipe).items():
        assert values[name] == expected, name


def test_defaults_are_the_paper_s_recipe() -> None:
    """A user's own file states what it changes; the rest is the recipe of ReID5o, but that pictures and captions are
    changed only where it is asked for.
    """
    values = flat(experiment_to_dict(build_experiment([("own", {"family": "reid5o"})])))
    unchanged = {"augment.pad_crop": 0, "augment.erase": 0.0, "augment.caption_mask": 0.0}
    assert {name: values[name] for name in flat(RECIPE)} == flat(RECIPE) | unchanged


def test_adapters_and_selection_of_the_paper() -> None:
    values = flat(experiment_to_dict(load_experiment(FOLDER / "orbench.yaml")))
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


# Of ReID5o: as its authors count. Of IV-REID: its backbone (golden/vi/resnet50_state_dict_shapes.json), the norm, the
# classifier of 395 persons, and two heads of a norm and two layers.
HEAD = 2 * 2048 + (2048 + 1) * 512 + (512 + 1) * 395
IV_REID = 23_534_592 + 2 * 2048 + (2048 + 1) * 395 + 2 * HEAD


@pytest.mark.parametrize(
    ("path", "persons", "size", "trainable"),
    [
        (FOLDER / "orbench.yaml", 1000, 166_786_024, 157_348_840),
        (VIREID / "sysu.yaml", 395, IV_REID, IV_REID),
    ],
    ids=["orbench", "sysu"],
)
def test_recipe_has_the_published_size(path: Path, persons: int, size: int, trainable: int) -> None:
    config = load_experiment(path)
    with torch.device("meta"):
        model = build_model(config.family, config.model, persons)
    parameters = list(model.parameters())
    assert sum(value.numel() for value in parameters) == size
    assert sum(value.numel() for value in parameters if value.requires_grad) == trainable


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
    ("base", "name", "expected"),
    [
        (FOLDER / "orbench.yaml", "orbench_parity", {"train.select": "test", "augment.keep_eot": False}),
        (FOLDER / "orbench.yaml", "24gb", {"train.precision": "bf16", "eval.precision": "bf16"}),
        (VIREID / "sysu.yaml", "llcm", {"data.dataset": "llcm", "train.select": "val"}),
        (
            VIREID / "sysu.yaml",
            "regdb",
            {
                "data.dataset": "regdb",
                "objective.margin": 0.2,
                "objective.imitation_reduction": "mean",
            },
        ),
    ],
)
def test_variants_of_the_recipe(base: Path, name: str, expected: dict[str, Any]) -> None:
    recipe = flat(experiment_to_dict(load_experiment(base)))
    values = flat(experiment_to_dict(load_experiment(base.with_name(f"{name}.yaml"))))
    assert {key: value for key, value in values.items() if value != recipe[key] and key != "name"} == expected
