"""Pickles that torch wrote, read for their tensors alone: no class of theirs is imported and nothing is called.

A reader of one form of file says what stands for the other names of the stream, in `TensorUnpickler.other_class`.
"""

from __future__ import annotations

import pickle
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

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


class Storage:
    """A storage by key, filled after the object is built; tensors are views of it."""

    def __init__(self, key: str, dtype: torch.dtype, count: int, most_bytes: int) -> None:
        # torch stores without compression: what claims more than the whole file is damaged or crafted.
        if not 0 <= count * dtype.itemsize <= most_bytes:
            raise pickle.UnpicklingError(f"storage {key} claims {count} elements")
        self.key, self.data = key, torch.empty(count, dtype=dtype)

    def fill(self, stream: IO[bytes]) -> None:
        """Take the bytes of all elements from a stream, and no more: what is packed may unpack to any size.

        Raises UnpicklingError for fewer bytes.
        """
        content = stream.read(self.data.numel() * self.data.element_size())
        if len(content) != self.data.numel() * self.data.element_size():
            raise pickle.UnpicklingError(f"storage {self.key} has another size than stated")
        if content:
            self.data.copy_(torch.frombuffer(bytearray(content), dtype=self.data.dtype))


def first(value: Any, *_: Any) -> Any:
    """Return the first argument: what a call of the stream that wraps a value becomes."""
    return value


def _rebuild_tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return storage.data.as_strided(size, stride, offset)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): first,
    ("torch._utils", "_rebuild_parameter_with_state"): first,
}


class TensorUnpickler(pickle.Unpickler, ABC):
    """Builds tensors and plain containers; `other_class` says what stands for every other name of the stream."""

    def __init__(self, stream: IO[bytes], most_bytes: int = 0) -> None:
        """most_bytes: of a storage, the size of the file."""
        super().__init__(stream)
        self._most_bytes = most_bytes
        self.storages: dict[str, Storage] = {}

    @abstractmethod
    def other_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`, without importing it, or raise."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for `module.name`; nothing is imported."""
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        return self.other_class(module, name)

    def persistent_load(self, identity: Any) -> Any:
        """Return the storage (or, in older files, the class) that an entry refers to."""
        if identity[0] == "module":
            return identity[1]
        _, dtype, key, _, count, *view = identity
        if identity[0] != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError("a storage of unknown form")
        if str(key) not in self.storages:
            self.storages[str(key)] = Storage(str(key), dtype, int(count), self._most_bytes)
        return self.storages[str(key)]


def read_zip(file: Path, unpickler_of: Callable[[IO[bytes], int], TensorUnpickler]) -> Any:
    """Return the object of a zip of torch. Raises UnpicklingError where it has none, and what damage raises."""
    with zipfile.ZipFile(file) as archive:
        record = next((name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"), None)
        if record is None:
            raise pickle.UnpicklingError("it has no data.pkl")
        # torch stores without packing: what unpacks to more than the file is crafted.
        if archive.getinfo(record).file_size > file.stat().st_size:
            raise pickle.UnpicklingError("its data.pkl unpacks to more than the file")
        with archive.open(record) as stream:
            unpickler = unpickler_of(stream, file.stat().st_size)
            root = unpickler.load()
        for storage in unpickler.storages.values():
            with archive.open(f"{record.removesuffix('.pkl')}/{storage.key}") as stream:
                storage.fill(stream)
                if stream.read(1):
                    raise pickle.UnpicklingError(f"storage {storage.key} has another size than stated")
    return root
