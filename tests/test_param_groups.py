"""Covers: solver/training/param_groups, solver/training/optimizer. The parameter policy against the released rule (by
substring of the released names), and the optimisers.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny_reid5o import tiny_reid5o_config
from torch import nn

from configs.load import build_experiment
from configs.schema.train import OptimizerConfig
from configs.vocabulary import Family
from model.reid5o import ReID5o
from model.weights.reid5o_names import official_names
from solver.training.families import FAMILIES
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import DECLARED, ParameterPolicy, Rule, apply_policy, reid5o_rules, vireid_rules
from utils.errors import UserError

RATES = OptimizerConfig(lr=1e-5, weight_decay=4e-5, bias_weight_decay=0.0, new_module_lr_factor=5.0, bias_lr_factor=2.0)


def tiny_model(**lora: Any) -> nn.Module:
    config = tiny_reid5o_config(**lora)
    return ReID5o(config, num_identities=4)


def policy_of(model: nn.Module, **options: Any) -> ParameterPolicy:
    return apply_policy(model.named_parameters(), reid5o_rules(RATES), lr=RATES.lr, **options)


def released_rate(name: str) -> tuple[float, float]:
    """The released rule, word for word: substrings of the released name, the bias last."""
    factor, decay = 1.0, 4e-5
    if any(part in name for part in ("lora", "mm_head", "cross", "classifier")):
        factor = 5.0
    if "bias" in name:
        factor, decay = 2.0, 0.0
    return 1e-5 * factor, decay


@pytest.mark.parametrize(
    "lora", [{}, {"mode": "all"}, {"enabled": False}, {"train_base": True}, {"mode": "all", "layers": 2}]
)
def test_rates_equal_the_released_rule(lora: dict) -> None:
    model = tiny_model(**lora)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == (lora.get("enabled", True) and not lora.get("train_base", False))
    policy = policy_of(model)
    names = official_names(model)
    assert set(policy.settings) == set(names)
    for name, setting in policy.settings.items():
        if name in frozen:
            assert setting.lr is None
        else:
            assert (setting.lr, setting.weight_decay) == pytest.approx(released_rate(names[name])), name


def test_groups_hold_every_trained_parameter_once() -> None:
    model = tiny_model()
    policy = policy_of(model)
    by_name = dict(model.named_parameters())
    listed = [name for group in policy.groups for name in group["names"]]
    assert sorted(listed) == sorted(name for name, setting in policy.settings.items() if setting.lr is not None)
    for group in policy.groups:
        assert all(by_name[name] is parameter for name, parameter in zip(group["names"], group["params"], strict=True))
        assert {policy.settings[name].lr for name in group["names"]} == {group["lr"]} == {group["base_lr"]}
        assert {policy.settings[name].weight_decay for name in group["names"]} == {group["weight_decay"]}
    assert sorted(group["lr"] for group in policy.groups) == pytest.approx([1e-5, 2e-5, 5e-5])


def test_freeze_comes_first_and_switches_the_gradient_off() -> None:
    model = tiny_model()
    policy = policy_of(model, freeze=(r"text\..*", r".*norm.*"))
    for name, parameter in model.named_parameters():
        frozen = (
            name.startswith("text.") or "norm" in name or re.fullmatch(r"vision\.blocks\.1\.mlp\.fc\d\.weight", name)
        )
        assert parameter.requires_grad == (not frozen), name
        assert (policy.settings[name].lr is None) == bool(frozen), name
    tensors = {row.pattern: row.tensors for row in policy.rows}
    assert tensors[r"text\..*"] == sum(name.startswith("text.") for name in policy.settings)
    assert tensors[DECLARED] == 2
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert policy.count(trained=True) == trained and policy.count(trained=False) == total - trained


def test_the_table_is_readable() -> None:
    lines = str(policy_of(tiny_model(), freeze=(r"classifier\..*",))).splitlines()
    assert lines[0].split() == ["parameters", "lr", "factor", "weight", "decay", "tensors", "numbers"]
    assert lines[1].split() == [r"classifier\..*", "frozen", "2", "260"]
    assert lines[2].startswith(DECLARED) and lines[3].split()[:3] == [r".*\.bias", "2", "0"]
    assert len(lines) == 3 + len(reid5o_rules(RATES))


def test_first_match_wins_and_a_gap_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    rules = (Rule(r"0\.weight", 4.0, 0.5), Rule(r".*weight", 1.0, 0.25), Rule(r"0\.bias", None))
    with pytest.raises(UserError, match="covers '1.bias'"):
        apply_policy(model.named_parameters(), rules, lr=1.0)
    policy = apply_policy(model.named_parameters(), (*rules, Rule(r"1\.bias", 0.0)), lr=2.0)
    assert {name: (setting.lr, setting.weight_decay) for name, setting in policy.settings.items()} == {
        "0.weight": (8.0, 0.5),
        "0.bias": (None, 0.0),
        "1.weight": (2.0, 0.25),
        "1.bias": (0.0, 0.0),
    }
    assert not model[0].bias.requires_grad


def test_equal_rates_with_other_decays_are_other_groups() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    policy = apply_policy(model.named_parameters(), (Rule(r".*weight", 1.0, 0.5), Rule(r".*bias", 1.0)), lr=0.1)
    assert [(group["names"], group["lr"], group["weight_decay"]) for group in policy.groups] == [
        (["0.weight", "1.weight"], 0.1, 0.5),
        (["0.bias", "1.bias"], 0.1, 0.0),
    ]


def test_the_residual_family_has_faster_heads_and_its_factor_for_every_bias() -> None:
    rates = OptimizerConfig(weight_decay=0.5, bias_weight_decay=0.25, new_module_lr_factor=10.0, bias_lr_factor=3.0)
    names = ("heads.rgb.fc1.weight", "heads.rgb.fc1.bias", "backbone.stems.rgb.bn1.bias", "neck.weight")
    parameters = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    settings = apply_policy(parameters, vireid_rules(rates), lr=0.1).settings
    found = [(round(settings[name].lr or 0.0, 6), settings[name].weight_decay) for name in names]
    assert found == [(1.0, 0.5), (3.0, 0.25), (0.3, 0.25), (0.1, 0.5)]


def test_patterns_match_whole_names() -> None:
    with pytest.raises(UserError, match="covers '0.weight'"):
        apply_policy(nn.Sequential(nn.Linear(2, 3)).named_parameters(), (Rule("0", 1.0), Rule("weight", 1.0)), lr=1.0)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("text",), r"'text' matches no parameter.*text, tokenizers, vision, fusion, classifier"),
        (("(text",), "not a regular expression"),
        ((".*",), "no parameter to train"),
    ],
)
def test_wrong_freeze_patterns_are_refused(freeze: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy_of(tiny_model(), freeze=freeze)


def test_every_family_has_a_policy() -> None:
    assert set(FAMILIES) == set(Family)


def one_step(name: Any, decay: float, **options: Any) -> tuple[float, float]:
    """Return a weight 2 with gradients 0.5, then -1, after one and two steps at rate 0.1."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = build_optimizer(
        [{"params": [weight], "lr": 0.1, "weight_decay": decay}], OptimizerConfig(name=name, **options)
    )
    seen = []
    for gradient in (0.5, -1.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(weight.item())
    return seen[0], seen[1]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_two_steps_by_hand(name: str) -> None:
    decay, eps, (beta1, beta2), momentum, lr = 0.2, 0.01, (0.8, 0.9), 0.7, 0.1
    weight, first, second, expected = 2.0, 0.0, 0.0, []
    for count, gradient in enumerate((0.5, -1.0), start=1):
        if name == "adamw":
            weight -= lr * decay * weight
        else:
            gradient += decay * weight
        if name == "sgd":
            first = momentum * first + gradient
            weight -= lr * first
        else:
            first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
            weight -= lr * (first / (1 - beta1**count)) / ((second / (1 - beta2**count)) ** 0.5 + eps)
        expected.append(weight)
    options: dict[str, Any] = {"eps": eps, "betas": (beta1, beta2), "momentum": momentum}
    assert one_step(name, decay, **options) == pytest.approx(tuple(expected), rel=1e-9)


def test_an_unknown_optimizer_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match="optimizer.name = 'adamx'.*adam"):
        build_experiment([("here", {"family": "reid5o", "optimizer": {"name": "adamx"}})])
