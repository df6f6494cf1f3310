"""Damaged configurations, and whether the one that a run says it has is the one that was written.

The oracle reads the damaged file by PyYAML's BaseLoader, for which every value is a text: whatever a run accepts must
mean that text, everything that is not written must be the default, and a key that stands twice must be refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mutation.damage import damage_text, instead_of_file
from configs.load import SCALARS, SECTIONS
from configs.schema.experiment import FAMILIES
from configs.vocabulary import Family

Tree = dict[str, Any]
ODD_TEXTS = (
    "",
    "é",
    "名前",
    "\u202egnp.exe",
    "１６",
    "16\u00a0",
    "a\tb",
    "\x1b[31m",
    "~/x",
    "../../x",
    "x" * 5000,
    "null",
    "none",
    "None",
    "-",
    "a/b",
    "%s",
    "{}",
    "${seed}",
    "sixteen",
    "True",
    "1,2",
)
NUMBERS = (0, -1, 1, 7, 2**31 - 1, 2**31, 2**63, 10**400, 0.5, -0.5, 1e-30, 1e30, 1e308, math.inf, -math.inf, math.nan)
OTHER_TYPES: tuple[Any, ...] = (None, True, False, [], {}, [1], [[1]], {"a": 1}, "16", "1e3", 3, 3.5, [None], [1, 2, 3])
TRAPS = (
    "010",
    "0o17",
    "0x10",
    "1_000",
    "12:30",
    "2024-01-15",
    "yes",
    "on",
    "~",
    "1e3",
    "1.e3",
    ".5",
    "+1",
    "!!python/object/apply:os.getcwd []",
    "!!float 3",
    "&anchor 3",
    "*anchor",
    "| \n      text",
    "'unclosed",
    "[1, 2",
    "{a: 1",
    "@x",
    "%x",
    "3 # comment",
    "a: b",
    "- 3",
    "<<",
)
FILES = (
    "data.root",
    "data.exclude",
    "train.init_from",
    "data.cache_dir",
    "output_dir",
    "model.tokenizer",
    "model.init",
)
LINES = re.compile(r"^( *)([\w.-]+):(.*)$")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of each entry that is no table, or an empty one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def defaults_of(family: str) -> Tree:
    """Return every option of a family as it is when nothing is written; together they need not be a configuration."""
    kinds = {**SECTIONS, "model": FAMILIES[Family(family)].model, "objective": FAMILIES[Family(family)].objective}
    sections = {name: dataclasses.asdict(kind()) for name, kind in kinds.items()}
    # Tuples become the lists that a file holds.
    found: Tree = json.loads(json.dumps({**SCALARS, **sections, "family": family}))
    return found


def place_of(tree: Tree, key: str) -> tuple[Tree, str]:
    """Return the table that holds a dotted key, and the key's last part."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[parent]
    return tree, last


def _misspelt(rng: random.Random, name: str) -> str:
    at = rng.randrange(len(name))
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz_éА")
    how = rng.randrange(4)
    if how == 0:
        return name[:at] + letter + name[at:]
    if how == 1 and len(name) > 1:
        return name[:at] + name[at + 1 :]
    if how == 2:
        return name[:at] + name[at : at + 2][::-1] + name[at + 2 :]
    return rng.choice((name.upper(), name.replace("_", "-"), f"{name} ", name + name))


def misspell(rng: random.Random, tree: Tree, key: str) -> str:
    """A key by another name."""
    table, last = place_of(tree, key)
    other = _misspelt(rng, last)
    table[other] = table.pop(last)
    return f"{key} -> {other!r}"


def remove(rng: random.Random, tree: Tree, key: str) -> str:
    """A key that is left out, or its whole section; models of full size take minutes, and are no hang."""
    if rng.random() < 0.2 and not key.startswith("model."):
        key = key.split(".")[0]
    table, last = place_of(tree, key)
    del table[last]
    return f"{key} removed"


def move(rng: random.Random, tree: Tree, key: str) -> str:
    """A key in another section, or at the top."""
    table, last = place_of(tree, key)
    value = table.pop(last)
    sections = [name for name, entry in tree.items() if isinstance(entry, dict)]
    target = rng.choice([*sections, ""])
    (tree[target] if target else tree)[last] = value
    return f"{key} moved to {target or 'the top'}"


def number(rng: random.Random, tree: Tree, key: str) -> str:
    """Any number, in range or not."""
    return _set(tree, key, rng.choice(NUMBERS))


def kind(rng: random.Random, tree: Tree, key: str) -> str:
    """A value of another type."""
    return _set(tree, key, rng.choice(OTHER_TYPES))


def text(rng: random.Random, tree: Tree, key: str) -> str:
    """An odd text."""
    return _set(tree, key, rng.choice(ODD_TEXTS))


def entry_of_list(rng: random.Random, tree: Tree, key: str) -> str:
    """A list with one entry more, less or of another type."""
    lists = [name for name, value in leaves(tree) if isinstance(value, list)]
    key = rng.choice(lists)
    table, last = place_of(tree, key)
    value = list(table[last])
    extra = rng.choice((*NUMBERS, *OTHER_TYPES, *ODD_TEXTS))
    value = rng.choice(([*value, extra], value[:-1], [extra, *value[1:]]))
    return _set(tree, key, value)


def missing_file(rng: random.Random, tree: Tree, key: str) -> str:
    """A file or folder that is not there, or is something else."""
    key = rng.choice([name for name in FILES if name in dict(leaves(tree))])
    prefix = rng.choice(("", "hf:", "bert:", "pass:", "clip:")) if key.startswith("model.") else ""
    return _set(
        tree, key, prefix + rng.choice(("absent/file", "/dev/null", "/proc/self/mem", ".", "config.yaml", ".."))
    )


def _set(tree: Tree, key: str, value: Any) -> str:
    table, last = place_of(tree, key)
    table[last] = value
    return f"{key} = {value!r}"[:200]


OF_TREES: dict[str, Callable[[random.Random, Tree, str], str]] = {
    "key misspelt": misspell,
    "key removed": remove,
    "key moved": move,
    "number": number,
    "other type": kind,
    "odd text": text,
    "list": entry_of_list,
    "file that is not there": missing_file,
}


def duplicate(rng: random.Random, lines: list[str]) -> list[str]:
    """A key that stands twice."""
    at = rng.choice([number for number, line in enumerate(lines) if LINES.match(line)])
    match = LINES.match(lines[at])
    assert match is not None
    if match[3].strip():
        other = rng.choice((lines[at], f"{match[1]}{match[2]}: {rng.choice(NUMBERS)}"))
        return [*lines[: at + 1], other, *lines[at + 1 :]]
    return [*lines, f"{match[2]}:", f"{'  ' if not match[1] else match[1]}  x: 1"] if not match[1] else [*lines, *lines]


def trap(rng: random.Random, lines: list[str]) -> list[str]:
    """A value that versions of YAML read in different ways, or that is none."""
    at = rng.choice([number for number, line in enumerate(lines) if (match := LINES.match(line)) and match[3].strip()])
    match = LINES.match(lines[at])
    assert match is not None
    return [*lines[:at], f"{match[1]}{match[2]}: {rng.choice(TRAPS)}", *lines[at + 1 :]]


def indent(rng: random.Random, lines: list[str]) -> list[str]:
    """A line that is indented in another way, or by a tab."""
    at = rng.randrange(len(lines))
    changed = rng.choice((f"  {lines[at]}", lines[at].lstrip(), f"\t{lines[at]}", f" {lines[at]}"))
    return [*lines[:at], changed, *lines[at + 1 :]]


def swap(rng: random.Random, lines: list[str]) -> list[str]:
    """Two lines that have changed places, or one that is gone."""
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines = list(lines)
    lines[first], lines[second] = lines[second], lines[first]
    return lines if rng.random() < 0.5 else lines[:first] + lines[first + 1 :]


def joined(rng: random.Random, lines: list[str]) -> list[str]:
    """Two documents, a merge key, a base, or a section of a text editor's making."""
    extra = rng.choice(
        (
            "---",
            "--- {}",
            "...",
            "<<: {seed: 5}",
            "base: absent.yaml",
            "base: config.yaml",
            "base: [a, b]",
            "base:",
            "? [1, 2]\n: 3",
            "1: 2",
            "null: 3",
            "<<<<<<< HEAD",
            "published: {ONE_AVER: {R1: 500}}",
            "published: {ONE_AVER: 3}",
            "family: reid6o",
            "family: [reid5o]",
        )
    )
    at = rng.choice((0, len(lines)))
    return [*lines[:at], extra, *lines[at:]]


OF_LINES: dict[str, Callable[[random.Random, list[str]], list[str]]] = {
    "key twice": duplicate,
    "YAML trap": trap,
    "indentation": indent,
    "lines exchanged": swap,
    "odd line": joined,
}


GROUPS = (*OF_TREES, *OF_LINES, "bytes", "something else in its place")


def damaged(rng: random.Random, group: str, options: Tree, path: Path) -> str:
    """Write a configuration damaged in one way; return what was done."""
    if group in OF_TREES:
        keys = [key for key, _ in leaves(options) if key != "family"]
        what = OF_TREES[group](rng, options, rng.choice(keys))
        path.write_text(yaml.safe_dump(options, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return what
    lines = yaml.safe_dump(options, sort_keys=False).splitlines()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if group in OF_LINES:
        changed = OF_LINES[group](rng, lines)
        path.write_text("\n".join(changed) + "\n", encoding="utf-8")
        return "; ".join(line.strip() for line in changed if line not in lines)[:200] or "lines"
    if group == "bytes":
        path.write_bytes(damage_text(rng, path.read_bytes()))
        return "bytes"
    return instead_of_file(rng, path)


def twice(node: Any) -> str:
    """Return a key that stands twice in one table of a YAML document, empty for none."""
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        return next((key for key in keys if keys.count(key) > 1), "") or next(
            filter(None, (twice(value) for _, value in node.value)), ""
        )
    return next(filter(None, map(twice, node.value)), "") if isinstance(node, yaml.SequenceNode) else ""


def same_meaning(written: Any, taken: Any) -> bool:
    """Return whether a value of a run means what was written. written: texts, lists and tables of texts."""
    if taken is None:
        return written in ("null", "Null", "NULL", "~", "")
    if isinstance(taken, bool):
        words = ("true", "yes", "on", "y", "1") if taken else ("false", "no", "off", "n", "0")
        return isinstance(written, str) and written.lower() in words
    if isinstance(taken, (int, float)):
        try:
            # 1_000 is a thousand to every reader that takes it for a number, 010 ten to YAML 1.2.
            return float(written) == float(taken)
        except (TypeError, ValueError):
            return False
    if isinstance(taken, list):
        return isinstance(written, list) and len(written) == len(taken) and all(map(same_meaning, written, taken))
    if isinstance(taken, dict):
        return (written == {} or isinstance(written, dict)) and set(written) == set(map(str, taken))
    return bool(written == str(taken))


def unlike(file: Path, resolved: Tree, defaults: Tree, homes: tuple[str, ...] = ()) -> str:
    """Return in what a run's configuration is not what its file says; empty = nowhere. homes: options whose text may
    have been completed.
    """
    data = file.read_text(encoding="utf-8-sig")
    # One reader may take what another refuses; what is no YAML at all cannot have been accepted.
    try:
        written, repeated = yaml.load(data, yaml.BaseLoader), twice(yaml.compose(data, yaml.BaseLoader))  # noqa: S506
    except yaml.YAMLError as error:
        return f"accepted, and it is no YAML: {str(error).splitlines()[0]}"
    if repeated:
        return f"accepted although {repeated!r} stands twice"
    taken, usual, asked = dict(leaves(resolved)), dict(leaves(defaults)), dict(leaves(written))
    whole = {key for key, value in taken.items() if isinstance(value, dict)}
    for key, value in asked.items():
        if key not in taken and key not in whole:
            return f"{key} is not in the run's configuration"
        if not same_meaning(value, taken[key]) and key not in homes:
            return f"{key} = {value!r} became {taken[key]!r}"
    for key, value in taken.items():
        if key not in asked and usual.get(key, value) != value and key.split(".")[-1] != "name":
            return f"{key} is {value!r}, which was not written (the default is {usual[key]!r})"
    return ""
