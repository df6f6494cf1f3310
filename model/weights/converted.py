"""Published checkpoints written as ours: a checkpoint, and its configuration beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from configs.load import build_experiment, experiment_to_dict
from utils.checkpoint_io import FORMAT_VERSION, save_checkpoint
from utils.errors import UserError
from utils.files import real_path, write_text


def require_new_target(source: str | Path, target: str | Path) -> None:
    """Raise UserError where writing the target and the .yaml beside it would take the place of any file."""
    yaml_file = Path(target).with_suffix(".yaml")
    if Path(target) == yaml_file or real_path(target) == real_path(source):
        raise UserError(
            f"OUT = {target} would be overwritten by its own configuration, or overwrite {source}; name another file "
            "that ends in .pth"
        )
    for file in (Path(target), yaml_file):
        if os.path.lexists(file):
            raise UserError(f"OUT = {target}: {file} exists and is not replaced; name another file or move that one")


def write_converted(
    target: str | Path, state: Mapping[str, Tensor], options: Mapping[str, Any], identities: int, where: str
) -> Path:
    """Write a checkpoint of ours and its configuration; return the place of the second.

    options: the experiment of the checkpoint, by section. where: what its errors name.
    """
    config = build_experiment([(where, dict(options))], name=Path(target).stem)
    payload = {
        "format_version": FORMAT_VERSION,
        "model": dict(state),
        "config": experiment_to_dict(config),
        "family": config.family.value,
        "num_identities": identities,
        "epoch": None,
        "step": None,
        "selected_on": "test",
        "metrics": {},
        "data_fingerprint": "",
    }
    save_checkpoint(target, payload)
    yaml_file = Path(target).with_suffix(".yaml")
    write_text(yaml_file, yaml.safe_dump(experiment_to_dict(config), sort_keys=False))
    return yaml_file
