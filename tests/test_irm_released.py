"""Covers: model/official, model/weights/converted, model/weights/irm_names, model/weights/irm_released,
model/weights/positions. Released checkpoints of IRM:
what becomes of every entry, and what is refused. Their features are compared by tests/test_parity.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.load import load_experiment
from configs.schema.irm import IrmConfig
from configs.vocabulary import Family, Modality
from model import official
from model.build import build_model
from model.interface import Instruction
from model.irm import IRM
from model.weights.irm_names import rename_released
from model.weights.irm_released import left_out, our_state, read_released, released_sizes
from model.weights.positions import resize_grid
from utils.checkpoint_io import load_checkpoint
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "irm"


def released() -> dict[str, Tensor]:
    """A tiny released state: 64 channels, 3 layers, 2 + 2 text layers, 9 identities."""
    with np.load(GOLDEN / "j_irm_eval_1.npz") as archive:
        return {name[2:]: torch.from_numpy(archive[name]) for name in archive.files if name.startswith("w.")}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_sizes_are_those_of_the_tensors_and_the_form_is_the_releases() -> None:
    sizes = released_sizes(released(), heads=4)
    assert sizes == IrmConfig(
        image_size=(64, 32), instruction_size=(32, 32), width=64, heads=4, layers=3, clothes_layers=2, text_layers=2,
        fusion_layers=2, vocab_size=500, text_positions=40, text_length=40, text_mlp_ratio=2.0, caption_dim=16,
        tokenizer="bert:bert-base-uncased", editing="none", attention="dual", attention_weights="image",
        mask_padding=False, feature="neck", similarity="euclidean", matching="fusion",
    )  # fmt: skip
    assert released_sizes(released()).heads == 1, "one for each 64 channels"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_is_read_with_and_without_its_wrapping(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in released().items()}
    wrapped = {"state_dict": state, "epoch": 7, "best_mAP": 0.4} if prefix else state
    found = read_released(save(tmp_path / "a.pth", wrapped))
    assert found.keys() == released().keys()
    assert all(torch.equal(found[name], value) for name, value in released().items())


def test_what_training_alone_reads_is_drawn_always_alike_and_left_alone_where_given() -> None:
    state = released()
    sizes = released_sizes(state, heads=4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, lacking = our_state(state, sizes, "a file")
    assert torch.equal(torch.get_rng_state(), before)
    assert {name.rpartition(".")[0] for name in lacking} == {
        "replaced_head", "text_encoder", "text_encoder.transform.dense", "text_encoder.transform.LayerNorm",
    }  # fmt: skip
    second = our_state(state, sizes, "a file")[0]
    assert all(torch.equal(first[name], second[name]) for name in lacking)
    head = {"mrtd_head.weight": torch.ones(2, 64), "mrtd_head.bias": torch.ones(2), "temp": torch.tensor(0.05)}
    given, lacking = our_state({**state, **head}, sizes, "a file")
    assert torch.equal(given["replaced_head.weight"], torch.ones(2, 64)) and given["temperature"] == 0.05
    assert not [name for name in lacking if name.startswith("replaced")]
    IRM(sizes, 9).load_state_dict(given)


def test_every_kind_of_entry_that_is_left_out_has_a_reason() -> None:
    state = released()
    more = {
        "image_queue": torch.zeros(16, 8),
        "queue_ptr": torch.zeros(1),
        "text_encoder_m.cls.predictions.bias": torch.zeros(5),
        "text_proj_m.bias": torch.zeros(16),
        "fusion.1.norm1.bias": torch.zeros(64),
        "project.weight": torch.zeros(64, 64),
    }
    assert rename_released({**state, **more}, "a file").keys() == rename_released(state, "a file").keys()
    reasons = left_out({**state, **more})
    assert sum(reasons.values()) == len(more) + 2, "visual_encoder.fc has a weight and a bias"
    assert any("never run" in reason for reason in reasons) and any("momentum" in reason for reason in reasons)


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {**state, "visual_encoder.surprise": torch.zeros(1)}, "'visual_encoder.surprise' belongs to no"),
        (lambda state: {**state, "text_encoder.bert.pooler.dense.bias": torch.zeros(1)}, "bert.pooler.dense.bias"),
        (lambda state: {**state, "head.weight": torch.zeros(1)}, "'head.weight' belongs to no"),
        (lambda state: without(state, "classifier_c.weight"), "out_classifiers.1.weight"),
        (lambda state: {**state, "feat_bn.weight": torch.zeros(3)}, "neck.weight"),
        (lambda state: without(state, "visual_encoder_m.norm.bias"), "clothes.norm.bias"),
        (lambda state: {**state, "text_encoder.cls.predictions.decoder.weight": torch.zeros(500, 64)}, "which the rel"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused(change: Any, said: str) -> None:
    state = change(released())
    with pytest.raises(UserError, match=said):
        our_state(state, released_sizes(state, heads=4), "a file")


def test_a_head_of_the_word_embedding_itself_is_taken() -> None:
    state = released()
    words = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    tied = {**state, "text_encoder.cls.predictions.decoder.weight": words.clone()}
    assert our_state(tied, released_sizes(tied, heads=4), "a file")[0].keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual_encoder.pos_embed": torch.zeros(1, 9, 64)}, "twice as high as wide"),
        ({"visual_encoder_m.pos_embed": torch.zeros(1, 4, 64)}, "of no square one"),
        ({"text_encoder.bert.embeddings.position_embeddings.weight": torch.zeros(2, 64)}, "at least 3"),
    ],
)
def test_sizes_of_no_such_model_are_refused(change: dict[str, Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        released_sizes({**released(), **change}, heads=4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no visual_encoder\.cls_token"):
        read_released(save(tmp_path / "a.pth", {"state_dict": {"weight": torch.zeros(1)}}))
    with pytest.raises(UserError, match="no released checkpoint"):
        read_released(save(tmp_path / "b.pth", [1, 2]))


def test_positions_on_another_grid() -> None:
    rows = torch.arange(8.0)[:, None].repeat(1, 2)
    # Rows of a 4x2 grid hold 0 1, 2 3, 4 5, 6 7; halved in height, corners not aligned, each is the mean of two.
    assert resize_grid(rows, (4, 2), (2, 2), "bilinear").tolist() == [[1.0] * 2, [2.0] * 2, [5.0] * 2, [6.0] * 2]
    assert torch.equal(resize_grid(rows, (4, 2), (4, 2), "bicubic"), rows)


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["model.official", "convert-irm", *map(str, arguments)])
    return official.main()


def test_a_released_checkpoint_becomes_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "released.pth", {"state_dict": {f"module.{n}": v for n, v in released().items()}})
    assert convert(monkeypatch, source, tmp_path / "ours.pth", "--heads", 4) == 0
    printed = capsys.readouterr().out
    assert "9 identities" in printed and "built and never used" in printed and "drawn anew, 7 tensors" in printed
    config = load_experiment(tmp_path / "ours.yaml", [])
    assert config.model == released_sizes(released(), 4) and config.family is Family.IRM
    payload = load_checkpoint(tmp_path / "ours.pth")
    model = build_model(config.family, config.model, payload["num_identities"]).eval()
    model.load_state_dict(payload["model"])
    with np.load(GOLDEN / "j_irm_eval_1.npz") as archive, torch.no_grad():
        ids, images = torch.from_numpy(archive["input_ids"]), torch.from_numpy(archive["x"])
        told = Instruction(modality=Modality.TEXT, inputs=ids, rows=torch.arange(3))
        found = model.encode(Modality.RGB, images, (told,)).pooled[:, model.compared((Modality.RGB,))]
        assert np.abs(found.numpy() - archive["retr_feat_text_instr"]).max() < 2e-5
    with pytest.raises(UserError, match="exists and is not replaced"):
        convert(monkeypatch, source, tmp_path / "ours.pth")
    with pytest.raises(UserError, match=r"model\.heads"):
        convert(monkeypatch, source, tmp_path / "other.pth", "--heads", 5)
    assert not (tmp_path / "other.pth").exists() and not (tmp_path / "other.yaml").exists()
