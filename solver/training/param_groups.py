"""Which parameter is trained, at what rate, with what weight decay: one ordered table, the first match wins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from configs.schema.train import OptimizerConfig
from utils.errors import UserError

DECLARED = "(frozen by the model)"
"""Stands for a pattern in the row of parameters that the model itself does not train."""


@dataclass(frozen=True)
class Rule:
    """Parameters whose whole name matches `pattern` get lr_factor x the base rate; None = they are not trained."""

    pattern: str
    lr_factor: float | None
    weight_decay: float = 0.0


def reid5o_rules(rates: OptimizerConfig) -> tuple[Rule, ...]:
    """The released policy. The rule for biases overrides that for new modules; the fusion's outer norms are not new."""
    decay, new = rates.weight_decay, rates.new_module_lr_factor
    return (
        Rule(r".*\.bias", rates.bias_lr_factor, rates.bias_weight_decay),
        Rule(r"vision\..*\.lora_(down|up)\.\d+", new, decay),
        Rule(r"fusion\.(attention|blocks|head)\..*", new, decay),
        Rule(r"classifier\.weight", new, decay),
        Rule(r"fusion\.ln_(pre|post)\.weight", 1.0, decay),
        Rule(r"(text|tokenizers|vision)\..*", 1.0, decay),
    )


def vireid_rules(rates: OptimizerConfig) -> tuple[Rule, ...]:
    """Everything at the base rate and decayed; the modality heads at `new_module_lr_factor` of it. Source: IV-REID, two
    Adams.
    """
    decay, new = rates.weight_decay, rates.new_module_lr_factor
    return (
        Rule(r"heads\..*\.bias", new * rates.bias_lr_factor, rates.bias_weight_decay),
        Rule(r"heads\..*", new, decay),
        Rule(r".*\.bias", rates.bias_lr_factor, rates.bias_weight_decay),
        Rule(r"(backbone|neck|classifier)\..*", 1.0, decay),
    )


def irm_rules(rates: OptimizerConfig) -> tuple[Rule, ...]:
    """Everything decayed; what no published weights exist for at `new_module_lr_factor` of the base rate. The release
    has one rate and one weight decay for all, biases, norms and the temperature included: its configurations set both
    factors to 1 and bias_weight_decay to weight_decay.
    """
    decay, new = rates.weight_decay, rates.new_module_lr_factor
    return (
        Rule(r".*\.bias", rates.bias_lr_factor, rates.bias_weight_decay),
        Rule(r"(attention|neck|out_neck|classifier|out_classifiers|match_head|replaced_head)\..*", new, decay),
        Rule(r"image\..*\.(gate|instruction_kv\.weight)", new, decay),
        Rule(r"(image|clothes|text_encoder|image_projection|text_projection)\..*|temperature", 1.0, decay),
    )


@dataclass(frozen=True)
class Setting:
    """What the policy decided for one parameter. lr: None = not trained."""

    rule: int
    lr: float | None
    weight_decay: float


@dataclass(frozen=True)
class PolicyRow:
    """One line of the logged table: how many tensors and numbers a rule was the first to match."""

    pattern: str
    lr_factor: float | None
    weight_decay: float
    tensors: int
    parameters: int


@dataclass(frozen=True)
class ParameterPolicy:
    """The outcome: rows in the order of the rules, the setting of every parameter by name, groups for the optimiser.

    A group is a dict with params, names, lr, base_lr (what a schedule scales) and weight_decay; one for each distinct
    (lr, weight decay), in order of first appearance.
    """

    rows: tuple[PolicyRow, ...]
    settings: dict[str, Setting]
    groups: list[dict[str, Any]]

    def count(self, trained: bool) -> int:
        """Return the number of trainable (or of frozen) parameters."""
        return sum(row.parameters for row in self.rows if (row.lr_factor is not None) == trained)

    def __str__(self) -> str:
        """The table as aligned text."""
        width = max(len(row.pattern) for row in self.rows)
        lines = [f"{'parameters':<{width}}  lr factor  weight decay  tensors  numbers"]
        for row in self.rows:
            factor, decay = ("frozen", "") if row.lr_factor is None else (f"{row.lr_factor:g}", f"{row.weight_decay:g}")
            lines.append(f"{row.pattern:<{width}}  {factor:>9}  {decay:>12}  {row.tensors:>7}  {row.parameters:,}")
        return "\n".join(lines)


def apply_policy(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    rules: Sequence[Rule],
    *,
    lr: float,
    freeze: Sequence[str] = (),
) -> ParameterPolicy:
    """Decide on every parameter and switch off the gradient of those that are not trained.

    Order: the user's `freeze` patterns, then what the model froze itself, then `rules`.
    Raises: UserError for a freeze pattern that is no regular expression or matches nothing, when no rule covers a
    parameter, or when nothing is left to train.
    """
    parameters = dict(named_parameters)
    _check_freeze(freeze, parameters)
    table = (*(Rule(pattern, None) for pattern in freeze), Rule(DECLARED, None), *rules)
    settings = {name: _setting(name, parameter, table, lr) for name, parameter in parameters.items()}
    for name, setting in settings.items():
        if setting.lr is None:
            parameters[name].requires_grad_(False)
    if all(setting.lr is None for setting in settings.values()):
        raise UserError("train.freeze leaves no parameter to train: remove a pattern")
    return ParameterPolicy(_rows(table, settings, parameters), settings, _groups(settings, parameters))


def _check_freeze(freeze: Sequence[str], parameters: dict[str, nn.Parameter]) -> None:
    for pattern in freeze:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(f"train.freeze pattern {pattern!r} is not a regular expression: {error}") from error
        if not any(expression.fullmatch(name) for name in parameters):
            parts = list(dict.fromkeys(name.partition(".")[0] for name in parameters))
            raise UserError(
                f"train.freeze pattern {pattern!r} matches no parameter: it must match the whole name, for instance "
                f"'{parts[0]}\\..*'; the parts of this model are {', '.join(parts)}"
            )


def _setting(name: str, parameter: nn.Parameter, table: Sequence[Rule], lr: float) -> Setting:
    for index, rule in enumerate(table):
        declared = rule.pattern == DECLARED
        if (declared and not parameter.requires_grad) or (not declared and re.fullmatch(rule.pattern, name)):
            return Setting(index, None if rule.lr_factor is None else lr * rule.lr_factor, rule.weight_decay)
    raise UserError(f"no rule of the parameter policy covers {name!r}: add one to solver/training/param_groups.py")


def _rows(
    table: Sequence[Rule], settings: dict[str, Setting], parameters: dict[str, nn.Parameter]
) -> tuple[PolicyRow, ...]:
    rows = []
    for index, rule in enumerate(table):
        sizes = [parameters[name].numel() for name, setting in settings.items() if setting.rule == index]
        rows.append(PolicyRow(rule.pattern, rule.lr_factor, rule.weight_decay, len(sizes), sum(sizes)))
    return tuple(rows)


def _groups(settings: dict[str, Setting], parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, setting in settings.items():
        if setting.lr is None:
            continue
        empty = {
            "params": [],
            "names": [],
            "lr": setting.lr,
            "base_lr": setting.lr,
            "weight_decay": setting.weight_decay,
        }
        group = groups.setdefault((setting.lr, setting.weight_decay), empty)
        group["params"].append(parameters[name])
        group["names"].append(name)
    return list(groups.values())
