"""TorchScript archives, read for their tensors without compiling or running what is written in them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoint_io import DAMAGE_ERRORS
from utils.errors import UserError

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: str | Path) -> bool:
    """Return whether the file is a TorchScript archive (a zip that holds code). A damaged zip is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except DAMAGE_ERRORS:
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive by their attribute path; its code is neither compiled nor run.

    Parameters, buffers and other tensor attributes are returned alike. Raises UserError when the archive is damaged
    or its data hold anything but modules and tensors.
    """
    file = _existing_file(path, "TorchScript archive")
    try:
        with zipfile.ZipFile(file) as archive:
            record = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            with archive.open(record) as stream:
                root = _TensorUnpickler(stream, archive, record[: -len(".pkl")], file).load()
    except UserError:
        raise
    except (StopIteration, *DAMAGE_ERRORS) as error:
        raise UserError(f"{file} is not a readable TorchScript archive: {error}; copy it again") from error
    if not isinstance(root, _Module):
        raise UserError(f"{file} holds no module; give an archive of a CLIP model")
    return dict(_named_tensors(root, ""))


def _existing_file(path: str | Path, what: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no such file: {file} ({what})")
    if not file.stat().st_size:
        raise UserError(f"{file} ({what}) is empty; copy it again")
    return file


class _Module:
    """A scripted module of an archive: attributes without behaviour."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError("a module's state is not a dictionary")
        self.attributes = dict(state)


def _named_tensors(module: _Module, prefix: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, _Module):
            found.extend(_named_tensors(value, f"{prefix}{name}."))
    return found


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without storage")
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _first(value: Any, *_: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and attribute holders; every other global of the stream is refused, not imported."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str, file: Path) -> None:
        super().__init__(stream)
        self._archive, self._folder, self._file = archive, folder, file
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`; nothing is imported. Raises UserError for anything but tensors and
        modules.
        """
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) in _ALLOWED:
            return _ALLOWED[(module, name)]
        raise UserError(
            f"{self._file} refers to {module}.{name}, which is not a tensor; it was not run and the file was not "
            "loaded; get the archive from its publisher"
        )

    def persistent_load(self, identity: Any) -> Tensor:
        """Return the storage that an entry refers to, as a flat tensor."""
        _, dtype, key, _, count = identity
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of unknown type")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/{key}"))
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]
