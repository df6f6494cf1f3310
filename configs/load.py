"""YAML files and key=value overrides into one typed `ExperimentConfig`; every mistake is found before any work
starts.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.scalars import read_value, read_yaml
from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.evaluation import EvalConfig
from configs.schema.experiment import FAMILIES, ExperimentConfig
from configs.schema.published import PublishedFigures
from configs.schema.train import OptimizerConfig, ScheduleConfig, TrainConfig
from configs.vocabulary import Family
from utils.errors import UserError, first_line, home_expanded, nearest
from utils.files import real_path, write_text

SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "instruction": InstructionConfig,
    "augment": AugmentConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
SCALARS: dict[str, Any] = {"name": "", "output_dir": "runs", "seed": 0, "published_note": ""}
MAX_BYTES = 1_000_000
HOME_PATH = re.compile(r"(hf:|t_s:|t_s_centred:|albef:|pass:|bert:)?(~(?:/.*)?)", re.DOTALL)
TRUTH = frozenset("true false yes no on off y n 1 0".split())
"""What may be written for true or false; OmegaConf takes any other whole number for true."""
LARGEST = 2**31 - 1
"""Of a whole number."""


class _Entries(dict[str, Any]):
    """Values under dotted keys of the command line: single entries of a table, where a plain dictionary is a whole
    one.
    """


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read `path`, its chain of `base:` files, then the overrides `key.sub=value`.

    A child replaces its parent's value key by key; a table of free names (objective.losses) is replaced whole, unless
    an override names one entry of it (objective.losses.id=0.5).
    Raises UserError that lists every unknown key, wrong type and value out of range with its file and the nearest
    names.
    """
    layers = [*_file_layers(Path(path)), *(_override_layer(text) for text in overrides)]
    name = next((values["name"] for _, values in reversed(layers) if "name" in values), Path(path).stem)
    return build_experiment(layers, name=str(name))


def build_experiment(layers: Sequence[tuple[str, Mapping[str, Any]]], name: str = "unnamed") -> ExperimentConfig:
    """Merge layers of (where it stands, nested values), later ones first in rank, into a checked configuration."""
    family = _family(layers)
    sections = FAMILIES[family]
    kinds = {**SECTIONS, "model": sections.model, "objective": sections.objective}
    tree = copy.deepcopy(_defaults(*kinds.items()))
    tree["name"] = name
    problems = [problem for where, values in layers for problem in _apply(tree, where, values)]
    if problems:
        raise UserError("; ".join(problems))
    where = layers[-1][0] if layers else "defaults"
    scalars = _scalars(tree, where)
    try:
        built: dict[str, Any] = {section: OmegaConf.to_object(tree[section]) for section in kinds}
        built = {section: _with_home(value) for section, value in built.items()}
        _refuse_huge(where, {section: dataclasses.asdict(value) for section, value in built.items()})
        published: Any = OmegaConf.to_container(tree["published"])
        return ExperimentConfig(family=family, **scalars, **built, published=published)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {first_line(error)}") from error


@functools.cache
def _defaults(*kinds: tuple[str, type]) -> Any:
    """Return the typed tree of the defaults. Made once: it takes three quarters of the time that a file takes."""
    tree: Any = OmegaConf.create(SCALARS)
    for section, kind in kinds:
        tree[section] = OmegaConf.structured(kind())
        _unlock(tree[section])
    tree["published"] = OmegaConf.structured(PublishedFigures()).published
    _unlock(tree["published"])
    OmegaConf.set_struct(tree, True)
    return tree


def _with_home(options: Any) -> Any:
    """Return a section with `~` at the beginning of its paths replaced by the user's folder."""
    found = {
        field.name: f"{match[1] or ''}{home_expanded(match[2])}"
        for field in dataclasses.fields(options)
        if isinstance(value := getattr(options, field.name), str) and (match := HOME_PATH.fullmatch(value))
    }
    return dataclasses.replace(options, **found) if found else options


def _refuse_huge(where: str, sections: Mapping[str, Any]) -> None:
    """Raise UserError for a whole number that no array, loop or library takes."""
    for key, value in _leaves(sections):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(type(number) is int and abs(number) > LARGEST for number in numbers):
            raise UserError(f"{where}: {key} = {value!r}: whole numbers go to {LARGEST}")


def _scalars(tree: Any, where: str) -> dict[str, Any]:
    values = {key: tree[key] for key in SCALARS}
    if type(values["seed"]) is not int or not 0 <= values["seed"] <= LARGEST:
        raise UserError(f"{where}: seed = {values['seed']!r}: must be a whole number, 0 to {LARGEST}")
    if not isinstance(values["published_note"], str):
        raise UserError(f"{where}: published_note = {values['published_note']!r}: must be a text")
    for key in ("name", "output_dir"):
        if isinstance(values[key], bool) or not isinstance(values[key], (str, int)) or not str(values[key]):
            raise UserError(
                f"{where}: {key} = {values[key]!r}: must be a text that is not empty, if necessary in quotes"
            )
        values[key] = str(values[key])
    values["output_dir"] = home_expanded(values["output_dir"])
    if values["name"] in (".", "..") or re.search(r"[/\\\0]", values["name"]):
        raise UserError(f"{where}: name = {values['name']!r}: must be a plain name; folders go into output_dir")
    return values


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Return nested values of `key.sub=value` arguments. Raises UserError for an argument of another form."""
    merged: dict[str, Any] = {}
    for text in arguments:
        for key, value in _leaves(_override_layer(text)[1]):
            _insert(merged, key, value)
    return merged


def experiment_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return the configuration as plain nested values that YAML and JSON can hold."""
    return _plain(dataclasses.asdict(config))


def save_experiment(config: ExperimentConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML, atomically; `load_experiment` reads it back unchanged."""
    write_text(path, yaml.safe_dump(experiment_to_dict(config), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    if real_path(path) in seen:
        raise UserError(
            f"{path}: `base` leads back to a file that is already being read; take the line out of one of them"
        )
    values = _read_yaml(path)
    if "base" not in values:
        return [(str(path), values)]
    base = values.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{path}: base = {base!r}: must be the name of one YAML file")
    return [*_file_layers(path.parent / base, (*seen, real_path(path))), (str(path), values)]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [entry.name for entry in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else "no YAML files there"
        raise UserError(f"no such configuration: {path}; {hint}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES} bytes: not a configuration; give a YAML file of options")
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise UserError(f"{path}: not a configuration: its brackets are nested too deeply, correct them") from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a readable YAML file: {' '.join(str(error).split())}; correct it there"
        ) from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: must be a table of `key: value` lines; write them, for instance `name: run`")
    table = {str(key): value for key, value in values.items()}
    for key, value in _leaves(table):
        _refuse_odd_text(str(path), key, value)
    return table


def _refuse_odd_text(where: str, key: str, value: Any) -> None:
    if _holds_nul(value):
        raise UserError(f"{where}: {key} = {value!r}: no text or path can hold a NUL, remove it")
    if "${" in str(value):
        raise UserError(f"{where}: {key} = {value!r}: interpolations are off; write the value itself")


def _holds_nul(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_nul, (*value, *value.values())))
    return any(map(_holds_nul, value)) if isinstance(value, (list, tuple)) else isinstance(value, str) and "\0" in value


def _override_layer(text: str) -> tuple[str, dict[str, Any]]:
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")) or key.startswith("-"):
        raise UserError(f"override {text!r}: write key.sub=value, for instance train.epochs=10")
    _refuse_odd_text("command line", key, raw)
    layer = _Entries()
    value = _override_value(text, raw)
    _refuse_odd_text("command line", key, value)
    _insert(layer, key, value)
    return "command line", layer


def _override_value(text: str, raw: str) -> Any:
    if raw == "":
        return ""
    try:
        return read_value(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"override {text!r}: the value is not valid YAML ({first_line(error)}); put a text that begins with "
            "[ { ! & * or quotes into quotes"
        ) from error


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = _Entries()
        tree = tree[parent]
    tree[last] = value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _family(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Family:
    where, word = next(
        ((where, values["family"]) for where, values in reversed(layers) if "family" in values),
        ("defaults", Family.REID5O.value),
    )
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
            problems.append(f"{where}: unknown key {name!r}, {_suggested(tree, node, prefix, str(key))}")
        elif OmegaConf.is_dict(node[key]) and OmegaConf.get_type(node, key) is not dict:
            if isinstance(value, Mapping):
                problems.extend(_apply(tree, where, value, f"{name}."))
            else:
                problems.append(
                    f"{where}: {name} = {value!r}: must be a table with keys {', '.join(map(str, node[key]))}"
                )
        elif isinstance(value, _Entries) and OmegaConf.is_dict(node[key]):
            problems.extend(_assign(tree, where, name, {**node[key], **value}))
        else:
            problems.extend(_assign(tree, where, name, value))
    return problems


def _suggested(tree: Any, node: Any, prefix: str, key: str) -> str:
    """Return what a key may have meant: the same one in a section, else the nearest beside it."""
    elsewhere = [f"{section}.{key}" for section in tree if OmegaConf.is_dict(tree[section]) and key in tree[section]]
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    return nearest(key, [*map(str, node), *(["family", "base"] if not prefix else [])])


def _assign(tree: Any, where: str, name: str, value: Any) -> list[str]:
    if not _finite(value):
        return [f"{where}: {name} = {value!r}: must be finite"]
    try:
        OmegaConf.update(tree, name, value, merge=False)
    except OmegaConfBaseException as error:
        return [f"{where}: {name} = {value!r}: {_reason(error, value)}"]
    stored = OmegaConf.select(tree, name)
    changed = _changed(value, OmegaConf.to_container(stored) if OmegaConf.is_config(stored) else stored)
    return [f"{where}: {name} = {value!r}: {changed}"] if changed else []


def _changed(value: Any, stored: Any) -> str:
    """Return what is wrong when OmegaConf made something else of a value than what was written, else nothing."""
    if isinstance(value, Mapping) and isinstance(stored, Mapping):
        return next(filter(None, (_changed(entry, stored.get(key)) for key, entry in value.items())), "")
    if isinstance(value, (list, tuple)) and isinstance(stored, (list, tuple)):
        return next(filter(None, map(_changed, value, stored)), "")
    if isinstance(stored, str) and isinstance(value, (bool, float)):
        return "must be a text; put it into quotes"
    if isinstance(stored, bool) and str(value).strip().lower() not in TRUTH:
        return "must be true or false"
    return ""


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    if isinstance(value, str):
        return value.strip().lower().lstrip("+-") not in ("inf", "infinity", "nan")
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max  # a whole number can be larger than any float
    return not isinstance(value, float) or math.isfinite(value)


def _reason(error: Exception, value: Any) -> str:
    """Say what OmegaConf expects, in words of a configuration file."""
    text = first_line(error)
    if found := re.search(r"expected one of (\[.*\])", text):
        names = ast.literal_eval(found[1])
        close = nearest(str(value), names)
        return f"{close} valid: {', '.join(map(str, names))}" if close.startswith("did") else close
    if found := re.search(r"length (\d+) does not match type hint length (\d+)", text):
        return f"must be a list of {found[2]} values, has {found[1]}"
    if "is not a TupleConfig" in text:
        return f"must be a list, for instance [{value}]"
    if found := re.search(r"field '(.*)' is not Optional", text):
        return f"{found[1]} must have a value, not null; leave it out for its default"
    if found := re.search(r"Value ('.*') of type '.*' could not be converted to (Float|Integer)", text):
        return f"{found[1]} must be a {'number' if found[2] == 'Float' else 'whole number'}"
    if "is not a valid bool" in text:
        return "must be true or false"
    if "Dict[" in text:
        return "must be a table, for instance {name: 1.0}"
    return text
