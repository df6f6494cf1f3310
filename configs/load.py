"""YAML files and key=value overrides into one typed `ExperimentConfig`; every mistake is found before any work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import schema
from configs.vocabulary import Family
from utils.errors import UserError, nearest
from utils.files import write_text

SECTIONS: dict[str, type] = {
    "data": schema.DataConfig, "augment": schema.AugmentConfig, "objective": schema.ObjectiveConfig,
    "optimizer": schema.OptimizerConfig, "schedule": schema.ScheduleConfig, "train": schema.TrainConfig,
    "eval": schema.EvalConfig,
}
SCALARS: dict[str, Any] = {"name": "", "output_dir": "runs", "seed": 0}
MAX_BYTES = 1_000_000


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> schema.ExperimentConfig:
    """Read `path`, its chain of `base:` files, then the overrides `key.sub=value`.

    A child replaces its parent's value key by key; a table of free names (objective.losses) is replaced whole.
    Raises UserError that lists every unknown key, wrong type and value out of range with its file and the nearest names.
    """
    layers = [*_file_layers(Path(path)), *(_override_layer(text) for text in overrides)]
    name = next((values["name"] for _, values in reversed(layers) if "name" in values), Path(path).stem)
    return build_experiment(layers, name=str(name))


def build_experiment(layers: Sequence[tuple[str, Mapping[str, Any]]], name: str = "unnamed") -> schema.ExperimentConfig:
    """Merge layers of (where it stands, nested values), later ones first in rank, into a checked configuration."""
    family = _family(layers)
    tree = OmegaConf.create({**SCALARS, "name": name})
    for section, kind in {**SECTIONS, "model": schema.MODEL_CONFIGS[family]}.items():
        tree[section] = OmegaConf.structured(kind())
        _unlock(tree[section])
    OmegaConf.set_struct(tree, True)
    problems = [problem for where, values in layers for problem in _apply(tree, where, values)]
    if problems:
        raise UserError("; ".join(problems))
    where = layers[-1][0] if layers else "defaults"
    try:
        built = {section: OmegaConf.to_object(tree[section]) for section in (*SECTIONS, "model")}
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_first_line(error)}") from error
    return schema.ExperimentConfig(family=family, **_scalars(tree, where), **built)


def _scalars(tree: Any, where: str) -> dict[str, Any]:
    values = {key: tree[key] for key in SCALARS}
    if type(values["seed"]) is not int or values["seed"] < 0:
        raise UserError(f"{where}: seed = {values['seed']!r}: must be a whole number, 0 or larger")
    for key in ("name", "output_dir"):
        if not isinstance(values[key], (str, int)) or not str(values[key]):
            raise UserError(f"{where}: {key} = {values[key]!r}: must be a text")
        values[key] = str(values[key])
    if Path(values["name"]).name != values["name"]:
        raise UserError(f"{where}: name = {values['name']!r}: must be a plain name; folders go into output_dir")
    return values


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Return nested values of `key.sub=value` arguments. Raises UserError for an argument of another form."""
    merged: dict[str, Any] = {}
    for text in arguments:
        for key, value in _leaves(_override_layer(text)[1]):
            _insert(merged, key, value)
    return merged


def experiment_to_dict(config: schema.ExperimentConfig) -> dict[str, Any]:
    """Return the configuration as plain nested values that YAML and JSON can hold."""
    return _plain(dataclasses.asdict(config))


def save_experiment(config: schema.ExperimentConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML, atomically; `load_experiment` reads it back unchanged."""
    write_text(path, yaml.safe_dump(experiment_to_dict(config), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` leads back to a file that is already being read")
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return [(str(path), values)]
    if not isinstance(base, str):
        raise UserError(f"{path}: base = {base!r}: must be the name of one YAML file")
    return [*_file_layers(path.parent / base, (*seen, path.resolve())), (str(path), values)]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [entry.name for entry in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else "no YAML files there"
        raise UserError(f"no such configuration: {path}; {hint}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes: not a configuration")
    try:
        # OmegaConf's loader is safe (no tags) and refuses duplicate keys and alias bombs.
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: must be a table of `key: value` lines")
    for key, value in _leaves(values):
        _refuse_interpolation(str(path), key, value)
    return values  # type: ignore[return-value]


def _refuse_interpolation(where: str, key: str, value: Any) -> None:
    if "${" in str(value):
        raise UserError(f"{where}: {key} = {value!r}: interpolations are off; write the value itself")


def _override_layer(text: str) -> tuple[str, dict[str, Any]]:
    key, equals, raw = text.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"override {text!r}: write key.sub=value, for instance train.epochs=10")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UserError(f"override {text!r}: the value is not valid YAML") from error
    _refuse_interpolation("command line", key, raw)
    layer: dict[str, Any] = {}
    _insert(layer, key, "" if raw == "" else value)
    return "command line", layer


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        tree = child if isinstance(child, dict) else tree.__setitem__(parent, {}) or tree[parent]
    tree[last] = value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _family(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Family:
    where, word = next(((where, values["family"]) for where, values in reversed(layers) if "family" in values),
                       ("defaults", Family.REID5O.value))
    if word not in [member.value for member in Family]:
        raise UserError(f"{where}: family = {word!r}: {nearest(str(word), [member.value for member in Family])}")
    return Family(word)


def _unlock(node: Any) -> None:
    # Frozen dataclasses become read-only nodes; they are frozen again once every layer is in.
    OmegaConf.set_readonly(node, False)
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            _unlock(node[key])


def _apply(tree: Any, where: str, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Write `values` into the typed tree; return one sentence per problem."""
    problems: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name == "family":
            continue
        node = OmegaConf.select(tree, prefix.rstrip(".")) if prefix else tree
        if str(key) not in node:
            problems.append(f"{where}: unknown key {name!r}, {nearest(str(key), [*map(str, node), *(['family', 'base'] if not prefix else [])])}")
        elif OmegaConf.is_dict(node[key]) and OmegaConf.get_type(node, key) is not dict:
            if isinstance(value, Mapping):
                problems.extend(_apply(tree, where, value, f"{name}."))
            else:
                problems.append(f"{where}: {name} = {value!r}: must be a table with keys {', '.join(map(str, node[key]))}")
        else:
            problems.extend(_assign(tree, where, name, value))
    return problems


def _assign(tree: Any, where: str, name: str, value: Any) -> list[str]:
    try:
        OmegaConf.update(tree, name, value, merge=False)
    except OmegaConfBaseException as error:
        return [f"{where}: {name} = {value!r}: {_first_line(error)}"]
    return []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
