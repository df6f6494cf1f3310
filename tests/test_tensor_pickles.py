"""Covers: model/weights/tensor_pickles, model/weights/pickled_modules. Pickled tensors that share their storage, and
files whose storages are not what the pickle says.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.weights.pickled_modules import read_pickled_module
from utils.errors import UserError


@pytest.mark.parametrize("zipped", [True, False])
def test_parts_of_one_storage_keep_their_places(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    module = nn.Module()
    module.register_buffer("row", whole[1])
    module.register_buffer("column", whole[:, 2])
    module.register_buffer("single", torch.tensor([7], dtype=torch.int64))
    torch.save(module, tmp_path / "model.pkl", _use_new_zipfile_serialization=zipped)
    state = read_pickled_module(tmp_path / "model.pkl")
    assert state["row"].tolist() == [4, 5, 6, 7] and state["column"].tolist() == [2, 6, 10]
    assert state["single"].tolist() == [7] and state["single"].dtype == torch.int64


class Root:
    """Stands for a module: one buffer of two numbers in a storage of the file."""

    def __init__(self) -> None:
        self._buffers = {"values": Values()}


class Values:
    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Reference(), 0, (2,), (1,), False, {})


class Reference:
    """What the pickler writes as a reference to a storage."""


class Writer(pickle.Pickler):
    identity: tuple[Any, ...] = ()

    def persistent_id(self, obj: Any) -> Any:
        return self.identity if isinstance(obj, Reference) else None


def write(path: Path, identity: tuple[Any, ...], content: bytes) -> Path:
    """Write a zip of torch's form: a pickle that refers to one storage by `identity`, and the storage `content`."""
    stream = io.BytesIO()
    writer = Writer(stream, 2)
    writer.identity = identity
    writer.dump(Root())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", stream.getvalue())
        archive.writestr("model/data/0", content)
    return path


def test_a_storage_is_what_the_pickle_says(tmp_path: Path) -> None:
    two = torch.tensor([1.5, -2.0]).numpy().tobytes()
    good = ("storage", torch.FloatStorage, "0", "cpu", 2)
    assert read_pickled_module(write(tmp_path / "good.pkl", good, two))["values"].tolist() == [1.5, -2.0]
    for name, identity, content, reason in (
        ("huge", (*good[:4], 10**13), two, "claims"),
        ("negative", (*good[:4], -1), two, "claims"),
        ("short", good, two[:4], "another size"),
        ("long", good, two + two, "another size"),
        ("view", (*good, ("0", 1, 2)), two, "unknown form"),
        ("typeless", ("storage", "float", "0", "cpu", 2), two, "unknown form"),
        ("other", ("place", *good[1:]), two, "unknown form"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_pickled_module(write(tmp_path / f"{name}.pkl", identity, content))
        assert f"{name}.pkl" in str(caught.value), name
