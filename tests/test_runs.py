"""Covers: solver/runs. Trained models from files: run directories, our checkpoints, released checkpoints, and files
that are neither.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import build_experiment, save_experiment
from configs.schema.experiment import ExperimentConfig
from configs.schema.reid5o import Reid5oConfig
from configs.vocabulary import Modality
from model.build import build_model, initialise
from solver.run_names import find_checkpoint
from solver.runs import open_checkpoint, open_run
from utils.checkpoint_io import fingerprint_state, save_checkpoint
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "reid5o" / "caseA"
TINY = {
    "family": "reid5o",
    "model": {
        "image_size": [32, 16],
        "embed_dim": 64,
        "vision_width": 64,
        "vision_layers": 1,
        "text_width": 64,
        "text_layers": 1,
        "text_length": 8,
        "vocab_size": 600,
        "mmt_depth": 1,
        "lora": {"layers": 1},
    },
}


def make_run(
    directory: Path, files: tuple[str, ...] = ("best.pth", "last.pth")
) -> tuple[ExperimentConfig, dict[str, torch.Tensor]]:
    """Write a run directory with the tiny model; `last` differs from `best` by its epoch only."""
    directory.mkdir(exist_ok=True)
    config = build_experiment([("test", TINY)], name="tiny")
    save_experiment(config, directory / "config.yaml")
    torch.manual_seed(0)
    model = build_model(config.family, config.model, 7)
    initialise(config.family, model, config.model)
    state = model.state_dict()
    for epoch, name in enumerate(files, start=1):
        save_checkpoint(
            directory / name,
            {
                "model": state,
                "config": {},
                "family": "reid5o",
                "num_identities": 7,
                "epoch": epoch,
                "step": 10 * epoch,
                "selected_on": "val",
                "data_fingerprint": "abc",
            },
        )
    return config, state


def test_a_run_comes_back_with_its_weights(tmp_path: Path) -> None:
    config, state = make_run(tmp_path)
    trained = open_run(tmp_path)
    assert trained.config == config and trained.fingerprint == fingerprint_state(state)
    assert (trained.epoch, trained.step, trained.selected_on) == (1, 10, "val")
    assert not trained.model.training and trained.model.num_identities == 7
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, state[name])
    assert open_run(tmp_path, "last").epoch == 2
    assert open_run(tmp_path, str(tmp_path / "last.pth")).epoch == 2
    assert open_run(tmp_path, overrides=["eval.batch_size=3", "data.root=elsewhere"]).config.eval.batch_size == 3


def test_last_stands_in_for_best(tmp_path: Path) -> None:
    make_run(tmp_path, ("last.pth",))
    assert find_checkpoint(tmp_path, "").name == "last.pth"
    with pytest.raises(UserError, match="no checkpoint best.*there: last.pth"):
        open_run(tmp_path, "best")


def test_a_released_checkpoint_gives_the_reference_s_features() -> None:
    trained = open_checkpoint(
        GOLDEN / "configs.yaml", GOLDEN / "best.pth", ["data.root=somewhere", "eval.batch_size=9"]
    )
    assert trained.config.data.root == "somewhere" and trained.config.eval.batch_size == 9 and trained.selected_on == ""
    inputs, outputs = np.load(GOLDEN / "inputs.npz"), np.load(GOLDEN / "outputs.npz")
    with torch.no_grad():
        pooled = trained.model.encode(Modality.NIR, torch.from_numpy(inputs["in.nirs"])).pooled
    assert torch.allclose(pooled, torch.from_numpy(outputs["nir_cls"]).float(), atol=1e-4)


def test_overrides_reach_the_released_model() -> None:
    plain = open_checkpoint(GOLDEN / "configs.yaml", GOLDEN / "best.pth")
    assert isinstance(plain.config.model, Reid5oConfig)
    width = plain.config.model.vision_width
    changed = open_checkpoint(GOLDEN / "configs.yaml", GOLDEN / "best.pth", [f"model.vision_heads={width // 16}"])
    assert changed.config.model == dataclasses.replace(plain.config.model, vision_heads=width // 16)
    images = torch.from_numpy(np.load(GOLDEN / "inputs.npz")["in.nirs"])
    with torch.no_grad():
        difference = changed.model.encode("nir", images).pooled - plain.model.encode("nir", images).pooled
    assert difference.abs().max() > 0.01 and changed.fingerprint == plain.fingerprint


def test_wrong_files_are_one_sentence(tmp_path: Path) -> None:
    _, state = make_run(tmp_path)
    with pytest.raises(UserError, match="no such run directory"):
        open_run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run directory"):
        open_run(tmp_path / "empty")
    with pytest.raises(UserError, match="entries of another shape"):
        open_run(tmp_path, overrides=["model.mmt_depth=1", "model.text_length=9"])
    with pytest.raises(UserError, match="entries missing: fusion.blocks.1"):
        open_run(tmp_path, overrides=["model.mmt_depth=2"])
    with pytest.raises(UserError, match="checkpoint of this project"):
        open_checkpoint(GOLDEN / "configs.yaml", tmp_path / "best.pth")
    save_checkpoint(tmp_path / "best.pth", {"model": state, "config": {}, "family": "other", "num_identities": 7})
    with pytest.raises(UserError, match="is of family other"):
        open_run(tmp_path)
    (tmp_path / "best.pth").write_bytes(b"cut")
    with pytest.raises(UserError, match="truncated or damaged|refused"):
        open_run(tmp_path)
