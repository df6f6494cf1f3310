"""Whole pickled modules (`torch.save(model)`), read for their tensors; no class of theirs is imported and nothing is
called.

Both forms of file are read: the zip of torch 1.6 and later, and the older stream in which the storages follow the
object.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.weights.tensor_pickles import TensorUnpickler, read_zip
from utils.errors import UserError
from utils.foreign import foreign_file

MAGIC = 0x1950A86A20F9469CFC6C


class Inert:
    """What every class and function of the file becomes: it keeps a state and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Take whatever arguments the file gives."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = dict(state) if isinstance(state, Mapping) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of dictionaries of a foreign class are not tensors of a module; they are dropped."""

    def append(self, value: Any) -> None:
        """Entries of lists of a foreign class are dropped likewise."""

    def extend(self, values: Any) -> None:
        """As `append`."""


def read_pickled_module(path: str | Path) -> dict[str, Tensor]:
    """Return parameters and buffers of a pickled module by name, as its state_dict would.

    Raises UserError when the file is damaged or holds no module.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no such file: {file} (a pickled module); correct the path")
    with foreign_file(f"{file} cannot be read as a pickled module", "it is truncated or damaged, copy it again"):
        root = read_zip(file, _ModuleUnpickler) if zipfile.is_zipfile(file) else _read_stream(file)
        state = OrderedDict(_named_tensors(root, ""))
    if not state:
        raise UserError(f"{file} holds no module with parameters; give the file that torch.save(model) wrote")
    return state


def _named_tensors(node: Any, prefix: str) -> list[tuple[str, Tensor]]:
    if not isinstance(node, Inert):
        return []
    found: list[tuple[str, Tensor]] = []
    for group in ("_parameters", "_buffers"):
        entries = node.attributes.get(group) or {}
        found += [(f"{prefix}{name}", value) for name, value in entries.items() if isinstance(value, Tensor)]
    for name, child in (node.attributes.get("_modules") or {}).items():
        found += _named_tensors(child, f"{prefix}{name}.")
    return found


def _read_stream(file: Path) -> Any:
    with file.open("rb") as stream:
        magic = _ModuleUnpickler(stream).load()
        if magic != MAGIC:
            raise UserError(f"{file} is no file of torch.save; give the file that torch.save(model) wrote")
        # Version of the form and facts about the machine that wrote it.
        _ModuleUnpickler(stream).load()
        _ModuleUnpickler(stream).load()
        unpickler = _ModuleUnpickler(stream, file.stat().st_size)
        root = unpickler.load()
        for key in _ModuleUnpickler(stream).load():
            storage = unpickler.storages[str(key)]
            (count,) = struct.unpack("<q", stream.read(8))
            if count != storage.data.numel():
                raise pickle.UnpicklingError(f"storage {key} has another size than stated")
            storage.fill(stream)
    return root


class _ModuleUnpickler(TensorUnpickler):
    """Every name of the stream that is no tensor's becomes a class without behaviour."""

    def other_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`; nothing is imported."""
        return type(name, (Inert,), {})
