"""Covers: solver/training/lr_schedule. Learning rates against the reference's lists and hand-worked values."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest

from configs.load import build_experiment, parse_overrides
from configs.schema.train import ScheduleConfig
from solver.training.lr_schedule import SHAPES, Timeline, learning_rate
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden/reid5o/schedules.json").read_text(encoding="utf-8"))["schedules"]
OPTIONS: dict[str, dict] = {
    "cosine": {"name": "cosine"},
    "step": {"name": "step"},
    "linear": {"name": "linear"},
    "exp": {"name": "exp"},
    "poly": {"name": "poly_released"},
    "cosine_constant_warmup": {"name": "cosine", "warmup_method": "constant"},
    "cosine_target_lr_1e-6": {"name": "cosine", "target_lr": 1e-6},
    "poly_target_lr_1e-6": {"name": "poly_released", "target_lr": 1e-6},
}


@pytest.mark.parametrize("key", GOLDEN)
def test_golden(key: str) -> None:
    spec = ScheduleConfig(**OPTIONS[key])
    rates = [learning_rate(epoch, 1e-5, spec, 60, spec.warmup_epochs) for epoch in range(61)]
    assert rates == pytest.approx(GOLDEN[key], rel=1e-12, abs=1e-22)


def test_poly_falls_to_the_target() -> None:
    spec = ScheduleConfig(name="poly", warmup_epochs=0, power=2.0, target_lr=1.0)
    assert [learning_rate(epoch, 5.0, spec, 10, spec.warmup_epochs) for epoch in (0, 5, 9, 10)] == pytest.approx(
        [5.0, 2.0, 1.04, 1.0]
    )


def test_the_released_poly_rises() -> None:
    spec = ScheduleConfig(name="poly_released")
    rates = [learning_rate(epoch, 1.0, spec, 60, spec.warmup_epochs) for epoch in range(5, 61)]
    assert rates == sorted(rates) and rates[0] == pytest.approx(0.9) and rates[-1] == pytest.approx(1.0)


def test_fractions_of_an_epoch_lie_between_its_ends() -> None:
    spec = ScheduleConfig(name="cosine", warmup_epochs=2, warmup_factor=0.5)
    assert learning_rate(0.0, 8.0, spec, 12, spec.warmup_epochs) == 4.0
    assert learning_rate(1.0, 8.0, spec, 12, spec.warmup_epochs) == 6.0
    assert learning_rate(1.5, 8.0, spec, 12, spec.warmup_epochs) == 7.0
    assert learning_rate(2.0, 8.0, spec, 12, spec.warmup_epochs) == 8.0
    assert learning_rate(7.0, 8.0, spec, 12, spec.warmup_epochs) == pytest.approx(4.0)
    assert learning_rate(11.9, 8.0, spec, 12, spec.warmup_epochs) < learning_rate(
        11.5, 8.0, spec, 12, spec.warmup_epochs
    )


def test_time_of_a_step() -> None:
    for interval, steps, expected in (
        ("epoch", 0, [0, 0, 1, 2]),
        ("step", 0, [0, 0.75, 1, 2.75]),
        ("epoch", 30, [0, 0, 4, 8]),
        ("step", 30, [0, 3, 4, 11]),
    ):
        timeline = Timeline(ScheduleConfig(interval=interval), 4, epochs=3, steps=steps)  # type: ignore[arg-type]
        assert [timeline.time(step) for step in (0, 3, 4, 11)] == expected
        assert (timeline.steps, timeline.epochs, timeline.end) == ((30, 8, 30) if steps else (12, 3, 3))


def test_a_run_by_steps_has_its_warm_up_and_milestones_in_steps() -> None:
    spec = ScheduleConfig(name="step", interval="step", warmup_steps=4, warmup_factor=0.5, milestones=(6, 9), gamma=0.1)
    timeline = Timeline(spec, 5, epochs=60, steps=11)
    expected = [0.5, 0.625, 0.75, 0.875, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert [timeline.rate(step, 1.0) for step in range(11)] == pytest.approx(expected) and timeline.epochs == 3
    # Two epochs of five steps, where no number of steps is given.
    spec = ScheduleConfig(name="step", interval="step", warmup_epochs=2, warmup_factor=0.5, milestones=())
    rates = [Timeline(spec, 5, epochs=60, steps=20).rate(step, 1.0) for step in (0, 5, 9, 10)]
    assert rates == pytest.approx([0.5, 0.75, 0.95, 1])
    # A warm-up in steps within a run in epochs: six steps are one and a half.
    spec = ScheduleConfig(name="linear", interval="step", warmup_steps=6, warmup_factor=0.1)
    rates = [Timeline(spec, 4, epochs=3).rate(step, 1.0) for step in (0, 3, 6, 9, 11)]
    assert rates == pytest.approx([0.1, 0.55, 1, 0.5, 1 / 6])


def test_a_warm_up_during_the_shape_multiplies_it() -> None:
    spec = ScheduleConfig(name="linear", interval="step", warmup="during", warmup_steps=4, warmup_factor=0.2)
    timeline = Timeline(spec, 3, epochs=1, steps=10)
    expected = [0.2, 0.4 * 0.9, 0.6 * 0.8, 0.8 * 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [timeline.rate(step, 1.0) for step in range(10)] == pytest.approx(expected)
    spec = ScheduleConfig(
        name="step", interval="step", warmup="during", warmup_steps=3, warmup_method="constant", milestones=(2,)
    )
    # A milestone within the warm-up counts.
    rates = [Timeline(spec, 3, epochs=1, steps=5).rate(step, 1.0) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.1, 0.1])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_defined_without_and_within_and_beyond_the_run(name: str) -> None:
    for epochs, warmup in ((3, 0), (3, 5), (5, 5), (8, 2.5)):
        spec = ScheduleConfig(name=name, warmup_epochs=warmup)  # type: ignore[arg-type]
        rates = [
            learning_rate(quarter / 4, 1e-3, spec, epochs, spec.warmup_epochs) for quarter in range(4 * epochs + 8)
        ]
        assert all(0.0 <= rate <= 1e-3 * (1 + 1e-12) for rate in rates)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.name=cosin", "cosine"),
        ("schedule.warmup_method=linaer", "linear"),
        ("schedule.target_lr=1e-6", "no effect"),
        ("schedule.warmup=durng", "during"),
        ("schedule.warmup_steps=-1", "0 or larger"),
        ("train.steps=-3", "train.epochs decides"),
        ("schedule.milestones=[5,2]", "ascending"),
    ],
)
def test_wrong_options_are_refused_before_any_work(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_experiment(
            [("here", {"family": "reid5o", "schedule": {"name": "step"}}), ("more", parse_overrides([override]))]
        )


def test_the_schema_names_exactly_these_shapes() -> None:
    assert set(typing.get_args(typing.get_type_hints(ScheduleConfig)["name"])) == set(SHAPES)
