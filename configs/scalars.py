"""YAML as it is written: numbers only in the form in which they are printed, no anchors, nothing that is dropped.

Source: the core schema of YAML 1.2. Departure from PyYAML, which reads YAML 1.1: 010 is no 8, 1:30 no 90, 2024_01 no
202401 and `on` no true, but texts; an option that is a number takes or refuses them by itself.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

FLOW_STARTS = ("[", "{", "'", '"')
"""What begins a value of the command line that is YAML and not plain text."""
REFUSED_STARTS = ("!", "&", "*")
"""Tags, anchors and aliases."""

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars above; no anchors, no key twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse what stands for something that is written elsewhere."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors (&) and aliases (*) are off", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice."""
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_yaml(text: str) -> Any:
    """Return the values of a YAML text. Raises yaml.YAMLError, RecursionError, and ValueError for what is none."""
    return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def read_value(raw: str) -> Any:
    """Return the value of `key=raw` on the command line: a list, table or quoted text in YAML, else what is written.

    A plain value is a number, true, false or null where it is printed so, else the whole text, whatever signs are in
    it. Raises yaml.YAMLError for YAML that is none or is followed by something, for a second line, and for the
    beginning of a tag, an anchor or an alias.
    """
    plain = raw.strip()
    if "\n" in plain or "\r" in plain:
        raise yaml.YAMLError("the value must stand on one line")
    if plain.startswith(REFUSED_STARTS):
        raise yaml.YAMLError(f"{plain[0]} begins a tag, an anchor or an alias")
    if not plain.startswith(FLOW_STARTS):
        loader = _Loader("")
        try:
            tag = loader.resolve(yaml.ScalarNode, plain, (True, False))
            return loader.construct_object(yaml.ScalarNode(tag, plain))
        finally:
            loader.dispose()
    node = yaml.compose(plain, _Loader)
    if node is None or plain[node.end_mark.index :].strip():
        raise yaml.YAMLError("something follows the value")
    return read_yaml(plain)
