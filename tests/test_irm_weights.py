"""Covers: model/weights/irm, model/weights/irm_sources. First weights of IRM's towers, from PASS, ALBEF, BERT and timm;
files of another kind or size are refused in a sentence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_irm import tiny_config
from torch import Tensor, nn

from model.irm import IRM
from model.weights.clip import InitialWeights
from model.weights.irm import initialise_irm
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "irm"
SIZES = dict(width=64, heads=4, layers=3, clothes_layers=2, text_layers=2, fusion_layers=2, text_mlp_ratio=2.0)
TEXTS = dict(vocab_size=500, text_positions=40, caption_dim=16)


def build(**options: Any) -> tuple[IRM, InitialWeights]:
    config = tiny_config(**{**SIZES, **TEXTS, **options})
    model = IRM(config, 7).eval()
    return model, initialise_irm(model, config)


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as archive:
        return {key[2:]: torch.from_numpy(archive[key]) for key in archive.files if key.startswith("w.")}


def pass_state() -> dict[str, Tensor]:
    """PASS of 3 layers, 64 channels, 4x2 patches."""
    return {name: value for name, value in golden("e_passvit_1.npz").items() if not name.startswith("fc.")}


def albef_state() -> dict[str, Tensor]:
    """ALBEF with 2 + 2 text layers and a clothes encoder of 2 layers and 4x4 patches."""
    state = {
        name: value
        for name, value in golden("j_irm_eval_1.npz").items()
        if not name.startswith(("visual_encoder.", "feat_bn", "fusion_feat_bn", "classifier"))
    }
    fresh = torch.Generator().manual_seed(1)
    state["visual_encoder_m.pos_embed"] = torch.randn(1, 17, 64, generator=fresh)
    state["visual_encoder.cls_token"] = torch.zeros(1, 1, 64)
    state["image_queue"] = torch.zeros(16, 8)
    state["temp"] = torch.tensor(0.03)
    head = {"transform.dense.weight": (64, 64), "transform.dense.bias": (64,), "bias": (500,)}
    head |= {"transform.LayerNorm.weight": (64,), "transform.LayerNorm.bias": (64,)}
    for name, shape in head.items():
        state[f"text_encoder.cls.predictions.{name}"] = torch.randn(shape, generator=fresh)
    state["text_encoder.cls.predictions.decoder.weight"] = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    return state


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def actions(report: InitialWeights, action: str) -> set[str]:
    return {row.name for row in report.rows if row.action == action}


@pytest.mark.parametrize("layout", ["flat", "model", "teacher"])
def test_pass_gives_the_image_tower(tmp_path: Path, layout: str) -> None:
    state = pass_state()
    teacher = {f"module.backbone.{name}": value for name, value in state.items()} | {
        "module.head.mlp.0.weight": torch.ones(1)
    }
    content = {"flat": state, "model": {"model": state}, "teacher": {"student": {}, "teacher": teacher, "epoch": 3}}
    model, report = build(init=f"pass:{save(tmp_path / 'pass.pth', content[layout])}")
    image: Any = model.image
    assert torch.equal(image.embed.part_tokens[1], state["part_token2"])
    assert torch.equal(image.embed.part_positions[2], state["part3_pos"])
    assert torch.equal(image.embed.class_position, state["cls_pos"])
    assert torch.equal(image.blocks[2].mlp.fc2.weight, state["blocks.2.mlp.fc2.weight"])
    new = {name for name in actions(report, "new") if name.startswith("image.")}
    assert new == {
        f"image.blocks.{i}.attn.{part}"
        for i in range(3)
        for part in ("gate", "instruction_kv.weight", "instruction_kv.bias")
    }
    assert actions(report, "ignored") == ({"head (1 tensors) of model.init"} if layout == "teacher" else set())
    # The tower then computes what the golden says of these weights, as long as nothing is said.
    with np.load(GOLDEN / "e_passvit_1.npz") as archive:
        cls = model.encode_images(torch.from_numpy(archive["x"])).cls
        torch.testing.assert_close(cls, torch.from_numpy(archive["global_f32"]), atol=1e-5, rtol=1e-5)
    assert "pass:" in report.format() and "| image " in report.format()


def test_positions_of_pass_are_resized_bilinearly(tmp_path: Path) -> None:
    state = pass_state()
    model, report = build(init=f"pass:{save(tmp_path / 'pass.pth', state)}", image_size=(96, 64))
    old = state["pos_embed"].reshape(1, 4, 2, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(old, size=(6, 4), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).reshape(24, 64)
    torch.testing.assert_close(model.image.embed.patch_positions[0], expected)
    (row,) = [row for row in report.rows if row.action == "resized"]
    assert (row.name, row.detail) == ("image.embed.patch_positions", "4x2 -> 6x4, bilinear")


def test_albef_gives_texts_clothes_projections_and_temperature(tmp_path: Path) -> None:
    state = albef_state()
    file = save(tmp_path / "albef.pth", {"model": state})
    model, report = build(text_init=f"albef:{file}", clothes_init=f"albef:{file}", matching="fusion", text_positions=30)
    text: Any = model.text_encoder
    crossed = "crossattention.self.query.weight"
    assert torch.equal(
        text.layers[1].intermediate.dense.weight, state["text_encoder.bert.encoder.layer.1.intermediate.dense.weight"]
    )
    assert torch.equal(text.fusion[1].get_parameter(crossed), state[f"text_encoder.bert.encoder.layer.3.{crossed}"])
    assert torch.equal(text.bias, state["text_encoder.cls.predictions.bias"])
    assert torch.equal(model.text_projection.weight, state["text_proj.weight"])
    assert torch.equal(model.image_projection.bias, state["vision_proj.bias"])
    assert torch.equal(model.match_head.weight, state["itm_head.weight"]) and model.temperature.item() == pytest.approx(
        0.03
    )
    positions = text.embeddings.position_embeddings.weight
    assert torch.equal(positions, state["text_encoder.bert.embeddings.position_embeddings.weight"][:30])
    assert actions(report, "cut") == {"text_encoder.embeddings.position_embeddings.weight"}
    old = state["visual_encoder_m.pos_embed"]
    patches = F.interpolate(
        old[:, 1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2), size=(2, 2), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(model.clothes.embed.patch_positions[0], patches[0].permute(1, 2, 0).reshape(4, 64))
    assert torch.equal(model.clothes.embed.class_position, old[:, :1])
    assert not {name for name in actions(report, "new") if name.startswith(("text_encoder.", "clothes."))}
    assert all(
        name in actions(report, "new") for name in ("image.embed.class_token", "neck.weight", "classifier.weight")
    )
    assert "image_queue (1 tensors) of model.text_init" in actions(report, "ignored")


def test_what_the_model_lacks_of_albef_is_left_out(tmp_path: Path) -> None:
    file = save(tmp_path / "albef.pth", {"model": albef_state()})
    model, _ = build(text_init=f"albef:{file}", fusion_layers=0)
    assert not hasattr(model.text_encoder, "transform")
    drawn = build(text_init=f"albef:{file}", attention="dual")[0].match_head
    assert drawn.weight.shape == (2, 128), "the paper's matching head reads something else and is new"


def bert_folder(folder: Path, **options: Any) -> str:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(3)
    sizes: dict[str, Any] = dict(hidden_size=64, num_attention_heads=4, intermediate_size=128, num_hidden_layers=4)
    config = BertConfig(vocab_size=500, max_position_embeddings=40, **{**sizes, **options})
    BertForMaskedLM(config).save_pretrained(folder)
    return f"bert:{folder}"


def test_bert_gives_the_text_encoder_and_no_cross_attention(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    place = bert_folder(tmp_path / "bert")
    model, report = build(text_init=place, dropout=0.0)
    theirs: Any = BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    ids = torch.tensor([[101, 7, 8, 9, 0, 0], [3, 4, 5, 6, 7, 8]])
    hidden = theirs.bert(ids, attention_mask=ids > 0, output_hidden_states=True).hidden_states
    said = model.text_encoder(ids)
    torch.testing.assert_close(said.tokens[1], hidden[2][1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said.tokens[0, :4], hidden[2][0, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.text_encoder.language_logits(hidden[4]), theirs.cls(hidden[4]), atol=1e-5, rtol=1e-5
    )
    new = {name for name in actions(report, "new") if name.startswith("text_encoder.")}
    assert new and all(name.startswith("text_encoder.fusion.") and ".crossattention." in name for name in new)
    shallow = build(text_init=place, text_layers=1, fusion_layers=1)[1]
    assert "layers 2 to 3 of model.text_init" in actions(shallow, "ignored")


def timm_folder(folder: Path, **options: Any) -> str:
    torch.manual_seed(4)
    sizes: dict[str, Any] = dict(img_size=(32, 16), patch_size=16, embed_dim=64, depth=3, num_heads=4) | options
    twin = timm.models.vision_transformer.VisionTransformer(num_classes=0, **sizes)
    for value in twin.parameters():
        nn.init.normal_(value, std=0.1)
    folder.mkdir()
    save_file(twin.state_dict(), folder / "model.safetensors")
    stated = {"input_size": [3, *sizes["img_size"]], "license": "cc-by-nc-4.0", "num_classes": 0}
    config = {"architecture": "vit_base_patch16_224", "num_classes": 0, "model_args": sizes, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"timm:local-dir:{folder}"


@pytest.mark.parametrize("tokens", [{}, {"reg_tokens": 3}, {"reg_tokens": 3, "no_embed_class": True}])
def test_a_transformer_of_timm_is_that_transformer(tmp_path: Path, tokens: dict[str, Any]) -> None:
    place = timm_folder(tmp_path / "vit", **tokens)
    parts = tokens.get("reg_tokens", 0)
    model, report = build(init=place, clothes_init="random", image_size=(32, 16), part_tokens=parts)
    theirs: Any = timm.create_model(place.removeprefix("timm:"), pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(
        model.encode_images(images).cls, theirs.forward_features(images)[:, 0], atol=1e-5, rtol=1e-5
    )
    assert f"licence of {place}: cc-by-nc-4.0" in report.format()
    resized = build(init=place, part_tokens=parts)[1]
    assert actions(resized, "resized") == {"image.embed.patch_positions"}
    # A tower with part tokens may start from one without.
    assert {"image.embed.part_tokens.0"} <= actions(build(init=timm_folder(tmp_path / "b"), part_tokens=2)[1], "new")


def test_a_transformer_of_timm_encodes_clothes_too(tmp_path: Path) -> None:
    place = timm_folder(tmp_path / "vit", img_size=(48, 48), depth=2)
    model, report = build(clothes_init=place)
    theirs: Any = timm.create_model(
        place.removeprefix("timm:"), pretrained=True, num_classes=0, img_size=(32, 32)
    ).eval()
    pictures = torch.randn(1, 3, 32, 32)
    expected = theirs.forward_features(pictures)
    torch.testing.assert_close(model.clothes(pictures).tokens, expected, atol=1e-4, rtol=1e-4)
    assert "image.norm.weight" in actions(report, "new") and "clothes.norm.weight" in actions(report, "loaded")


REFUSED = [
    ("init", "vit", {}, "init = 'vit' names no source of weights: give random or pass:... or timm:..."),
    ("text_init", "timm:x", {}, "text_init = 'timm:x' names no source"),
    ("init", "pass:absent.pth", {}, "model.init: no such checkpoint"),
    ("init", "timm:vit_bass_patch16", {}, "timm has no such model"),
    ("init", "pass:albef.pth", {}, "is no transformer of PASS"),
    ("text_init", "albef:pass.pth", {}, "is no ALBEF"),
    ("clothes_init", "albef:pass.pth", {}, "is no ALBEF"),
    ("text_init", "bert:absent", {}, "cannot be read as a Hugging Face BERT"),
    ("text_init", "bert:bert", {"vocab_size": 501}, "vocab_size 500 (the model: 501); choose other weights or set"),
    ("text_init", "bert:bert", {"heads": 8}, "heads 4 (the model: 8)"),
    ("text_init", "bert:bert", {"fusion_layers": 3}, "has 4 layers and the model 5"),
    ("text_init", "bert:relu", {}, "computes relu"),
    ("text_init", "bert:bert", {"text_mlp_ratio": 4.0}, "intermediate.dense.weight is missing, unknown or of another"),
    ("text_init", "bert:bert", {"text_positions": 41}, "position_embeddings.weight is missing, unknown or of another"),
    ("text_init", "albef:albef.pth", {"caption_dim": 8}, "caption_dim 16 (the model: 8)"),
    ("text_init", "albef:albef.pth", {"text_layers": 3}, "text_layers 2 (the model: 3)"),
    ("clothes_init", "albef:albef.pth", {"clothes_layers": 3}, "clothes_layers 2 (the model: 3)"),
    ("init", "pass:pass.pth", {"width": 32}, "width 64 (the model: 32)"),
    ("init", "pass:pass.pth", {"layers": 2}, "layers 3 (the model: 2)"),
    ("init", "pass:pass.pth", {"part_tokens": 2}, "part_tokens 3 (the model: 2)"),
    ("init", "pass:pass.pth", {"stem": "residual"}, "set model.stem=patch"),
    ("init", "timm:local-dir:vit", {"width": 96}, "width 64 (the model: 96)"),
    ("init", "timm:local-dir:scaled", {}, "ls1.gamma first"),
    ("init", "timm:local-dir:relu", {}, "computes ReLU"),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save(folder / "pass.pth", pass_state())
    save(folder / "albef.pth", {"model": albef_state()})
    bert_folder(folder / "bert")
    bert_folder(folder / "relu_bert", hidden_act="relu")
    timm_folder(folder / "vit")
    timm_folder(folder / "scaled", init_values=0.1)
    timm_folder(folder / "relu", act_layer="relu")
    return folder


@pytest.mark.parametrize(("option", "value", "sizes", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_weights_of_another_kind_or_size_are_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, sizes: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError) as caught:
        build(**{option: value.replace("bert:relu", "bert:relu_bert"), **sizes})
    assert said in str(caught.value) and f"model.{option}" in str(caught.value) and "\n" not in str(caught.value)
