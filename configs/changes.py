"""What differs between two configurations, and which options cannot change what is learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from configs.load import experiment_to_dict
from configs.schema.experiment import ExperimentConfig

MACHINERY: Mapping[str, Collection[str]] = {
    "output_dir": ("",),
    "data": ("workers", "cache_dir"),
    "train": ("log_period", "save_minutes", "save_steps", "keep_states"),
}
"""Section -> options that do not change what is learned; an empty name is the section itself."""


def differences(
    before: ExperimentConfig, after: ExperimentConfig, harmless: Mapping[str, Collection[str]] = MACHINERY
) -> list[str]:
    """Return `key: before, now` for each option that differs and is not among the harmless ones."""
    found = []
    first, second = experiment_to_dict(before), experiment_to_dict(after)
    for section, value in second.items():
        left, right = (entry if isinstance(entry, dict) else {"": entry} for entry in (first.get(section), value))
        for key in dict.fromkeys([*left, *right]):
            if left.get(key) != right.get(key) and key not in harmless.get(section, ()):
                found.append(f"{section}{'.' if key else ''}{key}: {left.get(key)!r} there, {right.get(key)!r} now")
    return found


def shared_options(config: ExperimentConfig) -> dict[str, str]:
    """Return `section.key` -> value of the options that all processes of a run must have alike: neither those of
    MACHINERY nor the folder of the data, whose content has a fingerprint.
    """
    found = {}
    for section, value in experiment_to_dict(config).items():
        for key, entry in (value if isinstance(value, dict) else {"": value}).items():
            if key not in MACHINERY.get(section, ()) and (section, key) != ("data", "root"):
                found[f"{section}{'.' if key else ''}{key}"] = str(entry)
    return found
