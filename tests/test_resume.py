"""Covers: solver/training/state, solver/training/engine, solver/training/averaging, solver/training/job. A run that is
killed and goes on is the run that was never killed, bit for bit: families, samplers, mixtures, loader processes,
accumulation, in the middle of an epoch and on its edge.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from instructed_family import register, write_captioned, write_data
from linear_training import IdentityObjective, linear_job, lines_of, same
from official_trees import sysu
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_orbench import write_orbench
from torch import Tensor, nn

from configs.load import load_experiment
from configs.schema.experiment import ExperimentConfig
from datasets.structures import Batch
from solver.commands.train import run_training
from solver.objectives.base import Objective, StepOutput
from solver.objectives.rows import WHOLE, Rows, Spread
from solver.training.engine import Trainer
from solver.training.state import newest_state
from utils.checkpoint_io import load_checkpoint, load_tensors

pytestmark = [pytest.mark.usefixtures("keep_logging"), pytest.mark.threads(2)]
ROOT = Path(__file__).resolve().parent.parent
TIMES = {"images_per_second"}


class Killed(BaseException):
    """Stands for kill -9 between two lines of the program."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in ("reid5o", "vireid", "told", "irm")}
    write_orbench(roots["reid5o"], identities=5)
    sysu(roots["vireid"])
    write_data(roots["told"])
    write_captioned(write_data(roots["irm"]))
    return roots


def experiment(family: str, root: Path, output: Path, overrides: tuple[str, ...]) -> ExperimentConfig:
    base = [f"data.root={root}", f"output_dir={output}", "name=run", "data.workers=0", "train.epochs=3"]
    if family == "told":
        base += ["data.dataset=omnireid", "model.image_size=[12,6]", "data.protocols=[lists]", "train.instances=2"]
        config = output.parent / "told.yaml"
        config.write_text("{family: vireid, augment: {pad_crop: 2, flip: 0.5}, train: {batch_size: 4}}")
        return load_experiment(config, [*base, *overrides])
    if family == "irm":
        base += [f"model.tokenizer=bert:{root / 'words'}", "model.vocab_size=200", "data.protocols=[lists]"]
    return load_experiment(ROOT / "configs" / family / "smoke.yaml", [*base, *overrides])


def numbers(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines_of(run)]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    # One process writes several files within a second here, told apart by a counter, ...9 and ...10: file by file.
    files = sorted(
        (run / "tensorboard").iterdir(), key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)]
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for file in files:
        board = EventAccumulator(str(file), purge_orphaned_data=False).Reload()
        for name in set(board.Tags()["scalars"]) - TIMES:
            found.setdefault(name, []).extend((event.step, event.value) for event in board.Scalars(name))
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every number and tensor of a nested state."""
    if isinstance(value, (Mapping, list, tuple)):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {key: leaf for place, entry in entries for key, leaf in flat(entry, f"{name}.{place}").items()}
    return {name: value}


def assert_equal(first: Any, second: Any) -> None:
    left, right = flat(first), flat(second)
    assert left.keys() == right.keys()
    for name, value in left.items():
        equal = torch.equal(value, right[name]) if isinstance(value, Tensor) else value == right[name]
        assert equal, name


@contextlib.contextmanager
def killed_in(patch: pytest.MonkeyPatch, method: str, call: int) -> Iterator[None]:
    """Kill the run when a method of the trainer has done its `call`-th work."""
    original, calls = getattr(Trainer, method), [0]

    def dying(self: Trainer, *arguments: Any, **named: Any) -> Any:
        found = original(self, *arguments, **named)
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return found

    with patch.context() as inner, pytest.raises(Killed):
        inner.setattr(Trainer, method, dying)
        yield


def final_state(run: Path, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr("solver.commands.train.remove_states", lambda directory: None)


CASES: dict[str, tuple[str, tuple[str, ...], tuple[tuple[str, int], ...]]] = {
    # Steps of an epoch: 5 micro-batches of 2 rows by two are three.
    "accumulation, random rows": (
        "reid5o",
        ("train.batch_size=2", "train.accumulate=2", "augment.erase=0.5", "train.save_steps=2", "train.epochs=2"),
        (("train_step", 3), ("train_step", 1)),
    ),
    "loader processes, identities": (
        "reid5o",
        ("train.batch_size=4", "train.sampler=identity", "train.instances=2", "data.workers=2", "train.save_steps=1"),
        (("train_step", 4), ("save", 2)),
    ),
    "both modalities, batch norms": (
        "vireid",
        ("train.batch_size=4", "train.instances=1", "train.save_steps=1", "train.select=test", "train.eval_period=1"),
        (("keep_best", 1), ("save", 1), ("train_step", 2)),
    ),
    "mixture in every batch, memory bank": (
        "told",
        ("train.sampler=tasks", "train.batch_size=12", "train.save_steps=1", "train.epochs=4", "train.select=test"),
        (("train_step", 2), ("save_state", 3), ("train_step", 1)),
    ),
    "mixture of batches": (
        "told",
        ("train.sampler=tasks", "train.mixture=step", "train.save_steps=3", "train.select=last"),
        (("train_step", 5), ("save_state", 1), ("save", 1)),
    ),
    "momentum copy, queues, masked words": (
        "irm",
        ("train.batch_size=16", "train.save_steps=1", "train.epochs=2"),
        (("train_step", 2),),
    ),
    "moving average, clipped, half precision": (
        "reid5o",
        ("train.batch_size=4", "train.ema=0.5", "train.precision=bf16", "train.select=test", "train.epochs=2"),
        (("train_step", 4), ("select", 1)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_bit_for_bit(
    case: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, overrides, kills = CASES[case]
    if family == "told":
        register(monkeypatch)
    if family == "told" or "ema" in str(overrides):
        overrides = (*overrides, "train.eval_period=1")
    # The last states are compared too.
    monkeypatch.setattr("solver.commands.train.remove_states", lambda directory: None)
    configs = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        configs[name] = experiment(family, roots[family], tmp_path / name / "runs", overrides)
    run_training(configs["whole"], device="cpu", overwrite=False)
    for method, call in kills:
        with killed_in(monkeypatch, method, call):
            torch.manual_seed(99)
            run_training(configs["killed"], device="cpu", overwrite=False, resume=True)
    torch.manual_seed(7)
    run_training(configs["killed"], device="cpu", overwrite=False, resume=True)
    whole, killed = (tmp_path / name / "runs" / "run" for name in ("whole", "killed"))
    files = {path.name for path in whole.iterdir()}
    assert {path.name for path in killed.iterdir()} == files and {"best.pth", "last.pth", "outcome.json"} <= files
    for name in sorted(file for file in files if file.endswith(".pth")):
        first, second = load_checkpoint(whole / name), load_checkpoint(killed / name)
        assert first.pop("config") and second.pop("config")
        assert_equal(first, second)
    assert numbers(killed) == numbers(whole) and events(killed) == events(whole)
    steps = [line["step"] for line in numbers(killed) if "lr" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert json.loads((killed / "outcome.json").read_text()) == json.loads((whole / "outcome.json").read_text())
    first, second = newest_state(whole), newest_state(killed)
    for state in (first, second):
        # The lengths of the logs hang on the times in them, and the seal on those.
        state.pop("config"), state.pop("metrics"), state.pop("seal")
    assert_equal(first, second)


class Drawing(IdentityObjective):
    """An objective that draws from every global generator, and remembers what it drew."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))

    def step(self, model: Any, batch: Batch, step: int) -> StepOutput:
        output = super().step(model, batch, step)
        draws = [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]
        self.seen += torch.tensor(draws, dtype=torch.float64)
        scaled = {name: value * (1 + self.seen.square().sum()) for name, value in output.losses.items()}
        return StepOutput(losses=scaled, diagnostics=output.diagnostics)


@pytest.mark.parametrize("kill", [2, 3, 6, 8])
def test_generators_and_buffers_go_on_wherever_it_is_killed(
    kill: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 4, "save_steps": 1, "ema": 0.9}

    def trainer(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        job = linear_job((4, 4), options, Drawing())
        return Trainer(job, tmp_path / name)

    for name in ("whole", "killed"):
        random.seed(1), np.random.seed(1)
        made = trainer(name)
        torch.manual_seed(1)
        if name == "whole":
            made.fit()
            continue
        # An odd number of normal draws leaves half of a pair in Python's and NumPy's generators.
        with killed_in(monkeypatch, "train_step", kill):
            made.fit()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    made = trainer("killed")
    made.restore(newest_state(tmp_path / "killed"))
    made.fit()
    first, second = (load_tensors(tmp_path / name / "last.pth") for name in ("whole", "killed"))
    assert_equal({**first, "versions": 0}, {**second, "versions": 0})
    assert first["objective"]["seen"].abs().min() > 0
    average = [load_checkpoint(tmp_path / name / "last-ema.pth")["model"] for name in ("whole", "killed")]
    assert same(*average) and not same(average[0], first["model"])
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


def test_the_average_is_that_of_its_definition(tmp_path: Path) -> None:
    job = linear_job((8,), {"epochs": 4, "ema": 0.75})
    weights: list[Tensor] = []
    trainer = Trainer(job, tmp_path)
    original = trainer.train_step

    def step(batches: Any) -> dict[str, float]:
        found = original(batches)
        weights.append(job.model.get_parameter("classifier.weight").detach().clone())
        return found

    trainer.train_step = step  # type: ignore[method-assign]
    outcome = trainer.fit()
    expected = weights[0]
    for later in weights[1:]:
        expected = 0.75 * expected + 0.25 * later
    for name in ("last-ema.pth", "best-ema.pth"):
        torch.testing.assert_close(load_checkpoint(tmp_path / name)["model"]["classifier.weight"], expected)
    assert torch.equal(load_checkpoint(tmp_path / "best.pth")["model"]["classifier.weight"], weights[-1])
    assert outcome.ema is not None and outcome.ema.best.name == "best-ema.pth" and outcome.best.name == "best.pth"


class Normed(Objective[Any]):
    """Nothing but a step for a model with a batch norm."""

    def encode(self, model: Any, batch: Batch, step: int) -> Rows:
        return Rows(features={"rows": next(iter(batch.inputs.values()))})

    def terms(self, model: Any, rows: Rows, step: int, spread: Spread = WHOLE) -> StepOutput:
        return StepOutput(losses={"id": model.classifier(model.norm(rows.features["rows"])).square().mean()})


def test_statistics_of_norms_are_those_of_the_model(tmp_path: Path) -> None:
    job = linear_job((4, 4), {"epochs": 2, "ema": 0.9}, Normed())
    job.model.norm = nn.BatchNorm1d(5)
    Trainer(job, tmp_path).fit()
    plain, average = (load_tensors(tmp_path / name)["model"] for name in ("last.pth", "last-ema.pth"))
    assert torch.equal(plain["norm.running_mean"], average["norm.running_mean"]) and plain["norm.running_mean"].any()
    assert not torch.equal(plain["classifier.weight"], average["classifier.weight"])
