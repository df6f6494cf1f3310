"""Model folders in Hugging Face's form, and ids of its hub: what their config.json states, read as values."""

from __future__ import annotations

from typing import Any

from utils.errors import UserError


def read_configuration(kind: Any, place: str, where: str, example: str) -> Any:
    """Return the configuration of a folder or hub id; kind: the library's class of the expected model.

    The library's Auto classes would offer to run code that a folder brings with it; this reads values. Raises UserError
    for another model, and whatever damage makes the library raise. where: how the place is called in messages.
    """
    stated, _ = kind.get_config_dict(place)
    if not stated:
        raise OSError("no config.json")
    if stated.get("model_type") != kind.model_type:
        raise UserError(
            f"{where} is a {stated.get('model_type') or 'nameless'} model, not {kind.model_type.upper()}; give a "
            f"{kind.model_type.upper()} such as {example}"
        )
    return kind.from_dict(stated)
