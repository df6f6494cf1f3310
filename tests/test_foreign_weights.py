"""Covers: utils/foreign, utils/numpy_pickles, model/weights/archives, model/weights/clip_sources,
model/weights/model_folders. Weights from elsewhere: model folders whose code is not run, crafted archives,
NumPy's numbers beside weights.
"""

import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from trees import Bomb

from model.weights.archives import read_torchscript
from model.weights.clip_sources import read_clip
from model.weights.pickled_modules import read_pickled_module
from solver.evaluation.annotation_choice import text_encoder
from utils.checkpoint_io import load_tensors
from utils.errors import UserError
from utils.foreign import foreign_file

CODE = 'open({!r}, "w")\nfrom transformers import PretrainedConfig\nclass C(PretrainedConfig): model_type = "evil"\n'


@pytest.mark.parametrize("kind", ["evil", "clip", "bert"])
def test_a_model_folder_s_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    automatic = {name: "evil.C" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": automatic}))
    (tmp_path / "evil.py").write_text(CODE.format(str(tmp_path / "ran")))
    for read in (lambda: read_clip(f"hf:{tmp_path}"), lambda: text_encoder(f"t_s:{tmp_path}")):
        with pytest.raises(UserError) as caught:
            read()
        assert "trust_remote_code" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_no_module_uses_the_classes_that_choose_by_the_folder() -> None:
    root = Path(__file__).parents[1]
    rooms = [root / name for name in ("utils", "configs", "datasets", "model", "solver")]
    found = [
        path for room in rooms for path in room.rglob("*.py") if re.search(r"import.*\bAuto[A-Z]", path.read_text())
    ]
    assert not found, "transformers' Auto classes run code of a folder"


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "7", '{"model_type": "clip", "vision_config": 5}', '{"model_type": "clip", "text_config": []}'],
)
def test_damaged_model_folders_are_one_sentence(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    for read in (lambda: read_clip(f"hf:{tmp_path}"), lambda: text_encoder(f"t_s:{tmp_path}")):
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            read()


@pytest.mark.parametrize("content", [{"a": 1}, [1], {}, {"state_dict": 5}])
def test_files_that_open_clip_stumbles_over(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="open_clip"):
        read_clip(f"open_clip:ViT-B-32-quickgelu/{tmp_path / 'weights.pt'}")


def archive(path: Path, data: bytes, storage: int = 0) -> Path:
    """Write a zip of torch's form; storage: MB of zeros that it unpacks to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a/data.pkl", data)
        written.writestr("a/constants.pkl", b"\x80\x02).")
        written.writestr("a/version", "3\n")
        written.writestr("a/data/0", bytes(storage << 20))
    return path


MODULE = b"c__torch__\nM\n)\x81"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
CRAFTED = {
    "holds itself": b"\x80\x02" + MODULE + b"q\x00}X\x01\x00\x00\x00ah\x00sb.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "long array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "unpacks without end": b"\x80\x02" + MODULE + b"}X\x01\x00\x00\x00w" + TENSOR + b"sb.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_archives_are_one_sentence(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.pt", CRAFTED[name], storage=64)
    for read in (read_torchscript, read_pickled_module, load_tensors):
        with pytest.raises(UserError, match="a.pt"):
            read(path)


def test_weights_that_unpack_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    """torch.save does not pack: a small file of many numbers is crafted, whatever stands in it."""
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "plain.pt")
    assert load_tensors(tmp_path / "plain.pt")["w"].shape == (1 << 16,)
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"packed\.pt .*unpacks to more than the file"):
        load_tensors(tmp_path / "packed.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_values_beside_weights_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {
        "net": {"w": torch.arange(3.0)},
        "cmc": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "mAP": np.float64(0.44),
        "large": np.dtype(">i4").type(7),
        "flag": np.bool_(True),
        "name": np.str_("sysu"),
    }
    torch.save(content, tmp_path / "a.t", _use_new_zipfile_serialization=zipped)
    found = load_tensors(tmp_path / "a.t")
    assert found["net"]["w"].tolist() == [0, 1, 2] and found["mAP"] == 0.44 and found["large"] == 7
    assert found["flag"] is True and found["name"] == "sysu" and type(found["mAP"]) is float
    assert found["cmc"].values.tolist() == [[0, 1, 2], [3, 4, 5]] == found["turned"].values.tolist()


def test_numpy_objects_are_refused_and_nothing_is_run(tmp_path: Path) -> None:
    hidden = np.empty(1, dtype=object)
    hidden[0] = Bomb(tmp_path / "ran")
    for number, value in enumerate((hidden, np.array([{"a": 1}], dtype=object))):
        torch.save({"w": torch.zeros(1), "value": value}, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match="pt"):
            load_tensors(tmp_path / f"{number}.pt")
    assert not (tmp_path / "ran").exists()


def test_one_place_turns_what_a_reader_raises_into_a_sentence() -> None:
    for error in (
        MemoryError(),
        RecursionError("deep\nin it"),
        StopIteration(),
        pickle.PicklingError("x"),
        KeyError("k"),
    ):
        with pytest.raises(UserError, match=r"^a.pt is damaged \(.+\); copy it again$") as caught:
            with foreign_file("a.pt is damaged", "copy it again"):
                raise error
        assert caught.value.__cause__ is error
    with pytest.raises(KeyboardInterrupt), foreign_file("a.pt is damaged", "copy it again"):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="^said before$"), foreign_file("a.pt is damaged", "copy it again"):
        raise UserError("said before")
