"""Covers: configs/irmpp. The rows of the paper's Tables VI and VII and the sweeps of Fig. 8: one file each, the printed
figures beside rows that the evaluation has, and nothing changed between them but what is compared.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from official_trees import TREES

from configs.load import experiment_to_dict, load_experiment
from configs.schema.experiment import ExperimentConfig
from configs.vocabulary import Family
from datasets.build import build_benchmark
from datasets.fitting import needs_of

ROOT = Path(__file__).resolve().parent.parent / "configs" / "irmpp"
FILES = sorted(ROOT.rglob("*.yaml"))

# Table VI, written down a second time: file -> row of the table -> IRM* and IRM++, mAP in percent, single-task.
SINGLE: dict[str, dict[str, tuple[float, float]]] = {
    "ctcc": {"task-free real2": (22.2, 32.2)},
    "li": {"task-free real2_attr": (28.7, 35.8)},
    "cuhk_pedes": {"task-free cuhk-pedes": (64.2, 64.3)},
    "llcm": {"task-free llcm-vis-to-ir": (64.6, 64.5), "task-free llcm-ir-to-vis": (66.5, 66.3)},
    "ltcc": {"task-free ltcc": (46.1, 46.2)},
    "prcc": {"task-free prcc-cc-multi": (46.3, 46.5)},
    "vc_clothes": {"task-free vc-clothes": (80.4, 80.3)},
    "market": {"task-free market1501": (92.4, 92.1)},
    "msmt17": {"task-free msmt17": (72.0, 72.2)},
    "cuhk03": {"task-free cuhk03": (83.5, 83.3)},
}
# Multi-task, and Table VII: joint, plain and at the thresholds .25, .5, .75.
MULTI: dict[str, tuple[float, float]] = {
    "real2": (26.3, 35.3),
    "real2_attr": (31.5, 37.3),
    "cuhk_pedes": (66.1, 66.4),
    "llcm": (66.0, 66.1),
    "llcm reversed": (66.8, 67.1),
    "ltcc general": (46.6, 46.7),
    "prcc": (47.3, 47.7),
    "vc_clothes": (78.2, 78.4),
    "market": (93.2, 93.3),
    "msmt": (72.4, 72.5),
    "cuhk03": (84.6, 84.7),
}
JOINT = {"irmstar": (56.2, 55.8, 55.4, 54.2), "mtl": (65.3, 64.7, 62.1, 60.5)}
METRICS = ("mAP", "mAP@0.25", "mAP@0.5", "mAP@0.75")


def load(name: str) -> ExperimentConfig:
    return load_experiment(ROOT / f"{name}.yaml")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        table = isinstance(value, dict) and f"{prefix}{key}" not in ("objective.losses", "published")
        found |= flat(value, f"{prefix}{key}.") if table else {f"{prefix}{key}": value}
    return found


def changed(one: str, other: str) -> set[str]:
    """The options that differ between two files, but for names and figures."""
    first, second = (flat(experiment_to_dict(load(name))) for name in (one, other))
    shared = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    return shared - {"name", "published", "published_note"}


@pytest.mark.parametrize("name", SINGLE)
def test_single_task_rows_differ_in_their_losses_alone(name: str) -> None:
    ours, star = load(name), load(f"irmstar/{name}")
    assert ours.published == {row: {"mAP": figures[1]} for row, figures in SINGLE[name].items()}
    assert star.published == {row: {"mAP": figures[0]} for row, figures in SINGLE[name].items()}
    assert changed(name, f"irmstar/{name}") == {"objective.losses"}
    assert ours.objective.losses["hard"] == 5.0
    assert not {"soft", "hard"} & star.objective.losses.keys()


def test_multi_task_rows_differ_in_their_losses_alone() -> None:
    for place, name in enumerate(("irmstar", "mtl")):
        table = {f"task-free {row}": {"mAP": figures[place]} for row, figures in MULTI.items()}
        joint = dict(zip(METRICS, JOINT[name]))
        assert load(name).published == {**table, "joint": joint}
    assert load("irmstar_literal").published == load("irmstar").published
    assert changed("mtl", "irmstar") == {"objective.losses"}
    assert load("irmstar").objective.losses == {"id": 1.0, "triplet": 3.0, "contrast": 1.0}
    literal = load("irmstar_literal")
    assert literal.family is Family.IRM and literal.instruction.typing == "all"
    assert literal.data.protocols == load("mtl").data.protocols == ("task-free", "joint")


def test_sweeps_change_one_weight() -> None:
    seen: dict[str, set[float]] = {}
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        kind, value, task = path.stem.split("_")
        base = task if kind == "beta" else f"../irm/{task}"
        assert changed(f"sweeps/{path.stem}", base) == {"objective.losses"}
        before, after = (load(name).objective.losses for name in (base, f"sweeps/{path.stem}"))
        other = {name: weight for name, weight in after.items() if weight != before[name]}
        assert other == dict.fromkeys(("hard",) if kind == "beta" else ("triplet", "triplet_out"), float(value))
        seen.setdefault(f"{kind} {task}", set()).add(float(value))
    assert seen.keys() == {f"{kind} {task}" for kind in ("alpha", "beta") for task in ("ctcc", "li")}
    assert all(values >= {0.5, 20.0} for name, values in seen.items() if name.startswith("beta"))


def test_every_run_has_a_name_of_its_own() -> None:
    names = [load_experiment(path).name for path in FILES]
    assert len(set(names)) == len(names) and load("mtl").name == "irmpp-mtl"


@pytest.mark.parametrize("name", [name for name in SINGLE if name not in ("ctcc", "li")])
def test_the_printed_figures_stand_beside_rows_that_there_are(name: str, tmp_path: Path) -> None:
    config = load(name)
    (member,) = config.data.members
    TREES[member](tmp_path)
    # The tree of CUHK03 has the other boxes.
    data = dataclasses.replace(config.data, root=str(tmp_path), variant="")
    split = build_benchmark(
        data, select="test", need_train=False, needs=needs_of(config.model, config.objective)
    ).splits["test"]
    assert set(config.published) <= {name for queries in split.query_lists for name in (queries.name, queries.group)}
