"""The state of a run on the disk: all that its next step depends on, so that a stopped run goes on bit for bit.

A state is a file of its own, `states/step-000000120.pth`, beside the checkpoints, which stay files for inference.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from configs.changes import MACHINERY, differences
from configs.load import build_experiment, experiment_to_dict
from configs.schema.experiment import ExperimentConfig
from solver.run_directory import STATES_FOLDER, remove_artefact, state_files
from utils.checkpoint_io import load_tensors, save_checkpoint
from utils.errors import UserError, shortened
from utils.foreign import foreign_file
from utils.log import library_versions
from utils.processes import ALONE, Processes
from utils.seeding import restore_generators

logger = logging.getLogger(__name__)

STATE_FORMAT = 1
"""Of the states that are written and read. A change of the code after which a run would go on differently raises it."""
SHOWN = 8
"""Differences that an error lists."""
HARMLESS = {**MACHINERY, "name": ("",), "data": (*MACHINERY["data"], "root")}
"""Options that may change: the data is known by its fingerprint, the run by its directory."""
FIELDS: Mapping[str, type] = {
    "config": dict,
    "data_fingerprint": str,
    "trials": dict,
    "epoch": int,
    "epoch_step": int,
    "step": int,
    "parts": dict,
    "generators": dict,
    "metrics": dict,
    "device": str,
    "threads": int,
    "versions": dict,
}


SEALED = ("parts", "generators", "others", "epoch", "epoch_step", "step", "metrics", "trials")
"""What the next step depends on: nothing in it may have changed since it was written."""
SMALL = 1 << 14
"""Tensors up to so many bytes (states of generators, counts) are part of the seal with their numbers, larger ones, of
whose bytes the file holds checksums, with their shapes.
"""


class Stateful(Protocol):
    """A part of a run that remembers something between two steps."""

    def state_dict(self) -> Any:
        """Return what it remembers, as tensors and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go back to what was remembered."""


class StateFiles:
    """The newest states of a run that is being trained, and when the next one is due."""

    def __init__(self, folder: Path, *, minutes: float, steps: int, keep: int) -> None:
        """minutes, steps: between two states, 0 = never by that count. keep: how many stay."""
        self.folder, self.minutes, self.steps, self.keep = folder, minutes, steps, keep
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether a state is to be saved after so many steps of the run."""
        by_clock = self.minutes > 0 and time.monotonic() - self._saved >= 60 * self.minutes
        return by_clock or (self.steps > 0 and step % self.steps == 0)

    def save(self, payload: Mapping[str, Any]) -> Path:
        """Write a state whole or not at all, then remove the oldest, and newer ones: the run did not go on from them,
        since they cannot be read. Raises UserError when the disk is full.
        """
        path = self.folder / f"step-{payload['step']:09d}.pth"
        save_checkpoint(path, payload)
        with contextlib.suppress(OSError):
            _flush_folder(self.folder)
        known = state_files(self.folder.parent)
        first = known.index(path)
        for old in (*known[:first], *known[first + self.keep :]):
            remove_artefact(old)
        self._saved = time.monotonic()
        return path


def _flush_folder(folder: Path) -> None:
    """Bring a renamed file's name to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def state_payload(parts: Mapping[str, Stateful], config: ExperimentConfig, **fields: Any) -> dict[str, Any]:
    """Return what a state file holds: tensors and plain values only. fields: the others of `FIELDS`, and `others`, the
    generators of the processes beside the first.
    """
    payload = {
        "format_version": STATE_FORMAT,
        "config": experiment_to_dict(config),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
        **fields,
    }
    return {**payload, "seal": _seal(payload)}


def _seal(payload: Mapping[str, Any]) -> str:
    """Return a digest of what a state holds; `seal` in the file says what it was when it was written."""
    digest = hashlib.sha256()
    for line in _lines([payload.get(name) for name in SEALED]):
        digest.update(line)
    return digest.hexdigest()


def _lines(value: Any) -> Iterator[bytes]:
    """Yield nested plain values and tensors, in order, as bytes."""
    if isinstance(value, Mapping):
        yield b"{%d" % len(value)
        for key, entry in value.items():
            yield from _lines(key)
            yield from _lines(entry)
    elif isinstance(value, (list, tuple)):
        yield b"[%d" % len(value)
        for entry in value:
            yield from _lines(entry)
    elif isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype} {value.layout}".encode()
        if value.layout is torch.strided and value.numel() * value.element_size() <= SMALL:
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        kind = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), type(value))
        yield f"{kind.__name__} {value if value is None else kind(value)!r}\n".encode("utf-8", "backslashreplace")


def newest_state(directory: Path) -> dict[str, Any]:
    """Return the newest state of a run that can be read; one that cannot is told. Raises UserError when there is
    none.
    """
    files = state_files(directory)
    for path in files:
        try:
            return _read_state(path)
        except UserError as error:
            logger.warning("%s; the state before it is taken", error)
    have = f"none of its {len(files)} states can be read" if files else f"it has checkpoints and no {STATES_FOLDER}"
    raise UserError(
        f"{directory} cannot go on: {have}; start again with --overwrite, or another run (name=...) from its weights "
        f"with train.init_from={directory}"
    )


def _read_state(path: Path) -> dict[str, Any]:
    payload = load_tensors(path)
    version = payload.get("format_version") if isinstance(payload, dict) else None
    if type(version) is int and version != STATE_FORMAT:
        return payload
    wrong = [name for name, kind in FIELDS.items() if version is None or type(payload.get(name)) is not kind]
    if wrong:
        raise UserError(f"{path} is no state of a run ({shortened(wrong, 3)} missing); remove it")
    return payload


def config_of(state: Mapping[str, Any], directory: Path) -> ExperimentConfig:
    """Return the configuration that a state was saved under. Raises UserError for a state of another format."""
    if state["format_version"] != STATE_FORMAT:
        raise _refused(directory, [f"format of states: {state['format_version']} there, {STATE_FORMAT} in this code"])
    return build_experiment([(f"the state in {directory}", state["config"])])


def check_unchanged(before: ExperimentConfig, now: ExperimentConfig, directory: Path) -> None:
    """Raise UserError that lists which options of a run are not as they were; those without effect may change."""
    found = differences(before, now, HARMLESS)
    if found:
        raise _refused(directory, [*found, *_length_note(before, now)])


def _length_note(before: ExperimentConfig, now: ExperimentConfig) -> Iterator[str]:
    for unit in ("steps", "epochs"):
        planned, wanted = (getattr(config.train, unit) for config in (before, now))
        if wanted > planned > 0:
            yield f"the learning rate was planned for {planned} {unit} and would have been another for more"


def _refused(directory: Path, found: list[str]) -> UserError:
    return UserError(
        f"{directory} cannot go on as another run: {shortened(found, SHOWN)}; go back to what it was, or start another "
        f"run (name=...) from its weights with train.init_from={directory}"
    )


def restore_parts(
    state: Mapping[str, Any],
    parts: Mapping[str, Stateful],
    data_fingerprint: str,
    directory: Path,
    processes: Processes = ALONE,
) -> None:
    """Bring the parts of a run, and the global generators, back to a state; in a process that it did not have they go
    on as they are.

    Raises UserError that lists the differences when the data or the shape of a part is another.
    """
    saved = state["parts"]
    found = [f"data fingerprint: {state['data_fingerprint']} there, {data_fingerprint} now"] * (
        state["data_fingerprint"] != data_fingerprint
    )
    with foreign_file(f"a state of {directory} is damaged", f"remove the newest file in its {STATES_FOLDER}"):
        for name, part in parts.items():
            found.extend(f"{name}.{line}" for line in _misfits(part.state_dict(), saved.get(name)))
        if found:
            raise _refused(directory, found)
        # A state of before the seal has none.
        if "seal" in state and state["seal"] != _seal(state):
            raise ValueError("it is not what was written")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generators = [state["generators"], *state.get("others", ())]
        if processes.rank < len(generators):
            restore_generators(generators[processes.rank])


def _misfits(own: Any, saved: Any) -> list[str]:
    """Return `name: there, now` for the tensors of a module, or the groups of an optimiser, that do not fit."""
    first, second = _shapes(saved), _shapes(own)
    return [
        f"{name}: {first.get(name, 'absent')} there, {second.get(name, 'absent')} now"
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _shapes(state: Any) -> dict[str, str]:
    if not isinstance(state, dict):
        return {}
    found = {name: str(tuple(value.shape)) for name, value in state.items() if isinstance(value, Tensor)}
    for number, group in enumerate(state.get("param_groups", ())):
        found[f"group {number}"] = shortened(list(group["names"]), 2)
    return found


def notes_of_change(state: Mapping[str, Any], device: str, processes: int = 1) -> list[str]:
    """Return a line for whatever may change the last bits of a sum: device, threads, processes, versions."""
    now = {"device": device, "compute threads": torch.get_num_threads(), "processes": processes, **library_versions()}
    before = {
        "device": state["device"],
        "compute threads": state["threads"],
        "processes": 1 + len(state.get("others", ())),
        **state["versions"],
    }
    changed = [f"{name} {before.get(name)} before, {now[name]} now" for name in now if before.get(name) != now[name]]
    return [
        f"the run goes on with {line}: sums may run in another order and differ in the last bits" for line in changed
    ]
