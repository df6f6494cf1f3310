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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from model.weights.archives import STORAGE_DTYPES
from utils.checkpoint_io import DAMAGE_ERRORS
from utils.errors import UserError

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
    try:
        root = _read_zip(file) if zipfile.is_zipfile(file) else _read_stream(file)
        state = OrderedDict(_named_tensors(root, ""))
    except UserError:
        raise
    except (
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        struct.error,
        StopIteration,
        RecursionError,
        *DAMAGE_ERRORS,
    ) as error:
        raise UserError(
            f"{file} cannot be read as a pickled module ({type(error).__name__}: {error}); it is truncated or damaged, "
            "copy it again"
        ) from error
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


def _read_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        record = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        folder = record[: -len("data.pkl")]

        def fill(storage: _Storage) -> None:
            content = archive.read(f"{folder}data/{storage.key}")
            if len(content) != storage.data.numel() * storage.data.element_size():
                raise pickle.UnpicklingError(f"storage {storage.key} has another size than stated")
            _copy(storage.data, content)

        with archive.open(record) as stream:
            unpickler = _Unpickler(stream, file.stat().st_size)
            root = unpickler.load()
        for storage in unpickler.storages.values():
            fill(storage)
    return root


def _read_stream(file: Path) -> Any:
    with file.open("rb") as stream:
        magic = _Unpickler(stream).load()
        if magic != MAGIC:
            raise UserError(f"{file} is no file of torch.save; give the file that torch.save(model) wrote")
        # Version of the form and facts about the machine that wrote it.
        _Unpickler(stream).load()
        _Unpickler(stream).load()
        unpickler = _Unpickler(stream, file.stat().st_size)
        root = unpickler.load()
        for key in _Unpickler(stream).load():
            storage = unpickler.storages[str(key)]
            (count,) = struct.unpack("<q", stream.read(8))
            if count != storage.data.numel():
                raise pickle.UnpicklingError(f"storage {key} has another size than stated")
            _copy(storage.data, _exactly(stream, count * storage.data.element_size()))
    return root


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        raise EOFError("the file ends inside a storage")
    return content


def _copy(target: Tensor, content: bytes) -> None:
    if content:
        target.copy_(torch.frombuffer(bytearray(content), dtype=target.dtype))


class _Storage:
    """A storage by key, filled after the object is built; tensors are views of it."""

    def __init__(self, key: str, dtype: torch.dtype, count: int, most_bytes: int) -> None:
        # torch stores without compression: what claims more than the whole file is damaged or crafted.
        if not 0 <= count * dtype.itemsize <= most_bytes:
            raise pickle.UnpicklingError(f"storage {key} claims {count} elements")
        self.key, self.data = key, torch.empty(count, dtype=dtype)


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return storage.data.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other name of the stream becomes a class without behaviour."""

    def __init__(self, stream: Any, most_bytes: int = 0) -> None:
        super().__init__(stream)
        self._most_bytes = most_bytes
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`; nothing is imported."""
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        return type(name, (Inert,), {})

    def persistent_load(self, identity: Any) -> Any:
        """Return the storage (or, in older files, the class) that an entry refers to."""
        if identity[0] == "module":
            return identity[1]
        _, dtype, key, _, count, *view = identity
        if identity[0] != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError("a storage of unknown form")
        return self.storages.setdefault(str(key), _Storage(str(key), dtype, int(count), self._most_bytes))
