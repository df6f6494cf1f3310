"""Names of published visible-infrared checkpoints -> ours: IV-REID's Baseline and AGW's embed_net."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from utils.errors import UserError

IV_REID_RULES: tuple[tuple[str, str], ...] = (
    (r"base\.(conv1|bn1)\.(.*)", r"backbone.stems.shared.\1.\2"),
    (r"base\.layer([1-4])\.(.*)", r"backbone.stages.layer\1.\2"),
    (r"bottleneck\.(.*)", r"neck.\1"),
    (r"share_classifier\.(.*)", r"classifier.\1"),
)
"""IV-REID. Its modality heads are not saved; where a state has them, they stand under `rgb_` and `ir_`."""

AGW_RULES: tuple[tuple[str, str], ...] = (
    (r"visible_module\.visible\.(conv1|bn1)\.(.*)", r"backbone.stems.rgb.\1.\2"),
    (r"thermal_module\.thermal\.(conv1|bn1)\.(.*)", r"backbone.stems.nir.\1.\2"),
    (r"base_resnet\.base\.layer([1-4])\.(.*)", r"backbone.stages.layer\1.\2"),
    (r"bottleneck\.(.*)", r"neck.\1"),
    (r"classifier\.(.*)", r"classifier.\1"),
)
AGW_UNUSED = (
    r"(visible_module\.visible|thermal_module\.thermal)\.(layer[1-4]|fc)\..*|base_resnet\.base\.(conv1|bn1|fc)\..*"
)
"""Parts that AGW's code builds and never runs."""

HEAD_RULES: tuple[tuple[str, str], ...] = (
    (r"rgb_(bn|fc1|fc2)\.(.*)", r"heads.rgb.\1.\2"),
    (r"ir_(bn|fc1|fc2)\.(.*)", r"heads.nir.\1.\2"),
)
"""IV-REID's identity heads (IDENet)."""

NON_LOCAL_LAYERS = {"g.0": "value", "theta": "query", "phi": "key", "W.0": "project", "W.1": "norm"}


def is_agw(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is that of AGW's network."""
    return "visible_module.visible.conv1.weight" in state


def our_name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Return our name of an entry, empty when no rule knows it."""
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return re.sub(r"stages\.layer(\d)", lambda stage: f"stages.{int(stage[1]) - 1}", found.expand(replacement))
    return ""


def rename(state: Mapping[str, Tensor], blocks: tuple[int, ...], where: str) -> dict[str, Tensor]:
    """Return a published state under our names; entries that its code never runs are left out.

    blocks: number of blocks of each stage, by which AGW's non-local blocks are placed. Raises UserError for an entry
    that is not known.
    """
    agw = is_agw(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if agw and re.fullmatch(AGW_UNUSED, name):
            continue
        ours = _non_local_name(name, blocks) or our_name(name, AGW_RULES if agw else (*IV_REID_RULES, *HEAD_RULES))
        if not ours:
            raise UserError(
                f"{where}: entry {name!r} belongs to no visible-infrared model known here (IV-REID, AGW); give another "
                "file"
            )
        renamed[ours] = value
    return renamed


def _non_local_name(name: str, blocks: tuple[int, ...]) -> str:
    found = re.fullmatch(r"NL_([1-4])\.(\d+)\.(g\.0|theta|phi|W\.0|W\.1)\.(.*)", name)
    if not found:
        return ""
    stage, place = int(found[1]) - 1, int(found[2])
    count = {1: 2, 2: 3}.get(stage, 0)
    return f"backbone.non_local.{stage}_{blocks[stage] - count + place}.{NON_LOCAL_LAYERS[found[3]]}.{found[4]}"
