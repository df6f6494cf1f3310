"""Checkpoints as files: written whole or not at all, read without running code."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, first_line
from utils.files import DISK_FULL, atomic_path
from utils.foreign import DAMAGE_ERRORS
from utils.numpy_pickles import STAND_INS

FORMAT_VERSION = 1
"""Of the checkpoints that are written and read."""
SHOWN = 80
"""Letters of a wrong value that an error shows."""
DISK_FULL_WORDS = ("no space left", "unexpected pos", "enforce fail", "file write failed", "disk quota")


def save_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` (tensors and plain values) atomically: the previous file survives a full disk.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save(dict(payload), temporary)
    except (RuntimeError, OSError) as error:
        # torch's zip writer reports a full disk as a RuntimeError with a text of its own.
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if full or any(word in str(error).lower() for word in DISK_FULL_WORDS):
            raise UserError(
                f"cannot write {path}: no space left on the device; the previous file is unchanged, free some space "
                "and start again"
            ) from error
        raise


def load_tensors(path: str | Path) -> Any:
    """Read a file of torch.save with tensors, plain values and NumPy's numbers only; nothing in it is executed.

    Raises UserError when it is absent, truncated, or holds anything else (a pickle with code in it).
    """
    if not Path(path).is_file():
        raise UserError(f"no such checkpoint: {path}")
    try:
        _check_unpacked(Path(path))
        check_sums(path)
        with torch.serialization.safe_globals([(function, name) for name, function in STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values ({_foreign(error)}); nothing in it was "
            "executed; save the state dict alone"
        ) from error
    except DAMAGE_ERRORS as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({first_line(error)}); it is truncated or damaged, copy it again"
        ) from error


def check_sums(path: str | Path) -> None:
    """Raise UserError when a member of a zip archive has another checksum than its directory says: torch reads such
    tensors without a word. Other files have none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of {damaged!r} in it is wrong; copy it again")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours: keys model, config, family, num_identities, epoch, step, and what the run recorded.

    What is returned can be trusted: see `_check_fields`. Raises UserError when the file is not one.
    """
    payload = load_tensors(path)
    missing = [
        key
        for key in ("model", "config", "family", "num_identities")
        if not isinstance(payload, dict) or key not in payload
    ]
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of this project (no {', '.join(missing)}); for an official ReID5o checkpoint "
            "pass the flat configs.yaml beside it as --config"
        )
    _check_weights(path, payload["model"])
    _check_fields(path, payload)
    return payload


def _check_weights(path: str | Path, state: Any) -> None:
    """Raise UserError for weights that are no table of plain, finite-sized tensors in memory."""
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(
            f"{path} is not a checkpoint of this project: its weights are no table of named tensors; copy it again"
        )
    if not state:
        raise UserError(f"{path} is not a checkpoint of this project: its weights are missing; copy it again")
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise UserError(
                f"{path} is not a checkpoint of this project: {name} is a {value.dtype} tensor on {value.device} with "
                f"layout {value.layout}, not plain numbers; copy it again"
            )


def _check_fields(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Raise UserError for a field beside the weights that is not what a run of this version writes.

    num_identities is no more than the rows of some weight; epoch and step are whole numbers, selected_on a text, score
    a finite number, trials a table of names and numbers, where they are given.
    """
    version = payload.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(
            f"{path} has format_version {_shown(version)} and this code reads {FORMAT_VERSION}; use the version of the "
            "code that wrote it"
        )
    rows = max((len(value) for value in payload["model"].values() if value.ndim), default=0)
    trials, score = payload.get("trials"), payload.get("score")
    problems = {
        "num_identities": not _counts(payload["num_identities"]) or not 1 <= payload["num_identities"] <= rows,
        "epoch": payload.get("epoch") is not None and not _counts(payload["epoch"]),
        "step": payload.get("step") is not None and not _counts(payload["step"]),
        "selected_on": payload.get("selected_on") is not None and not _is_text(payload["selected_on"]),
        "score": score is not None and not (isinstance(score, float) and math.isfinite(score)),
        "trials": trials is not None
        and not (isinstance(trials, dict) and all(_is_text(name) and _counts(trial) for name, trial in trials.items())),
    }
    for name, wrong in problems.items():
        if wrong:
            raise UserError(
                f"{path} is not a checkpoint of this project: its {name} is {_shown(payload[name])}; copy it again"
            )


def _counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Tensor) else repr(value)[:SHOWN]


def fingerprint_state(state: Mapping[str, Tensor]) -> str:
    """Return a 16-digit digest of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_unpacked(path: Path) -> None:
    """Raise BadZipFile for a zip that unpacks to more than it is: torch.save does not pack, a bomb does."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile("it unpacks to more than the file, which torch.save never writes")


def _foreign(error: pickle.UnpicklingError) -> str:
    """Return what the pickle asked for, without torch's advice to load it all the same."""
    name = re.search(r"(?:GLOBAL|class|type) ([\w.]+\.[\w.]+)", str(error))
    return name[1] if name else "or it is no pickle"
