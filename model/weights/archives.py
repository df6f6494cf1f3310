"""TorchScript archives, read for their tensors without compiling or running what is written in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from model.weights.tensor_pickles import TensorUnpickler, first, read_zip
from utils.errors import UserError
from utils.foreign import DAMAGE_ERRORS, foreign_file

MOST_CODE = 10_000_000
"""Bytes of a code file that is looked at."""
_ACTIVATIONS = {"GELU": re.compile(r"\bgelu_?\("), "QuickGELU": re.compile(r"\bsigmoid_?\(|QuickGELU")}


def is_torchscript(path: str | Path) -> bool:
    """Return whether the file is a TorchScript archive (a zip that holds code). A damaged zip is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except DAMAGE_ERRORS:
        return False


def scripted_activations(path: str | Path) -> set[str]:
    """Return which of GELU and QuickGELU the code of a TorchScript archive computes, as far as its text says.

    The text is looked at and not run. OpenAI writes x * sigmoid(1.702 x). A damaged archive says nothing.
    """
    found: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.partition("/")[2].startswith("code/") and member.file_size <= MOST_CODE:
                    text = archive.read(member).decode("utf-8", "replace")
                    found |= {name for name, pattern in _ACTIVATIONS.items() if pattern.search(text)}
    except DAMAGE_ERRORS:
        return set()
    return found


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive by their attribute path; its code is neither compiled nor run.

    Parameters, buffers and other tensor attributes are returned alike. Raises UserError when the archive is damaged
    or its data hold anything but modules and tensors.
    """
    file = _existing_file(path, "TorchScript archive")
    with foreign_file(f"{file} is not a readable TorchScript archive", "copy it again"):
        root = read_zip(file, lambda stream, most_bytes: _ArchiveUnpickler(stream, most_bytes, file))
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


_WRAPPERS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
"""Calls of torch.jit._pickle that give a list a type."""


class _ArchiveUnpickler(TensorUnpickler):
    """Builds tensors and attribute holders; every other name of the stream is refused."""

    def __init__(self, stream: IO[bytes], most_bytes: int, file: Path) -> None:
        super().__init__(stream, most_bytes)
        self._file = file

    def other_class(self, module: str, name: str) -> Any:
        """Return the holder of a module's attributes. Raises UserError for anything but tensors and modules."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch.jit._pickle" and name in _WRAPPERS:
            return first
        raise UserError(
            f"{self._file} refers to {module}.{name}, which is not a tensor; it was not run and the file was not "
            "loaded; get the archive from its publisher"
        )
