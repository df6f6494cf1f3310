"""Covers: model/weights/clip, model/weights/clip_sources, model/weights/archives, model/weights/initialise. Initial
weights: every kind of source, checked against the libraries that define it; wrong sources are refused.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trees import Bomb

from configs.schema.reid5o import LoraConfig, Reid5oConfig
from configs.vocabulary import Family, Modality
from model.build import build_model, initialise
from model.reid5o import ReID5o
from model.weights.archives import is_torchscript, read_torchscript
from model.weights.clip import InitialWeights, resize_positions
from utils.errors import UserError

SIZES = dict(
    image_size=(64, 64),
    patch_size=16,
    stride=16,
    vision_width=128,
    vision_layers=2,
    text_width=64,
    text_layers=2,
    embed_dim=64,
    text_length=9,
    vocab_size=50,
    mmt_depth=1,
    lora=LoraConfig(layers=1),
)


def build(init: str, **options: Any) -> tuple[ReID5o, InitialWeights]:
    config = Reid5oConfig(**{**SIZES, "init": init, **options})
    model = build_model(Family.REID5O, config, 4).eval()
    assert isinstance(model, ReID5o)
    return model, initialise(Family.REID5O, model, config)


def clip_state(seed: int = 0) -> dict[str, Tensor]:
    """Random weights in OpenAI's layout and its mix of types."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "positional_embedding": (9, 64),
        "text_projection": (64, 64),
        "token_embedding.weight": (50, 64),
        "ln_final.weight": (64,),
        "ln_final.bias": (64,),
        "visual.class_embedding": (128,),
        "visual.positional_embedding": (17, 128),
        "visual.proj": (128, 64),
        "visual.conv1.weight": (128, 3, 16, 16),
        "visual.ln_pre.weight": (128,),
        "visual.ln_pre.bias": (128,),
        "visual.ln_post.weight": (128,),
        "visual.ln_post.bias": (128,),
        "logit_scale": (),
    }
    for prefix, width in (("visual.", 128), ("", 64)):
        for index in range(2):
            block = f"{prefix}transformer.resblocks.{index}."
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.c_fc.weight": (4 * width, width),
                f"{block}mlp.c_fc.bias": (4 * width,),
                f"{block}mlp.c_proj.weight": (width, 4 * width),
                f"{block}mlp.c_proj.bias": (width,),
            }
            shapes |= {f"{block}ln_{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    halves = ("conv1", "in_proj", "out_proj", "c_fc", "c_proj", "visual.proj", "text_projection")
    return {name: value.half() if any(part in name for part in halves) else value for name, value in state.items()}


class Node(nn.Module):
    """A module that only holds what a state dict names."""

    def forward(self, value: Tensor) -> Tensor:
        return value + 1


def as_module(state: dict[str, Tensor]) -> nn.Module:
    root = Node()
    for name, value in state.items():
        *parents, last = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, Node())
            node = node.get_submodule(parent)
        node.register_parameter(last, nn.Parameter(value))
    return root


def write_torchscript(path: Path, state: dict[str, Tensor]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = as_module(state)
        root.register_buffer("input_resolution", torch.tensor(64))
        torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(path))
    return path


def assert_loaded(model: ReID5o, state: dict[str, Tensor]) -> None:
    """The encoders hold the tensors of `state`: spot checks by hand, written without the table of names."""
    ours = model.state_dict()
    pairs = {
        "text.projection": "text_projection",
        "text.positional_embedding": "positional_embedding",
        "text.blocks.1.attn.qkv.weight": "transformer.resblocks.1.attn.in_proj_weight",
        "text.blocks.0.norm2.bias": "transformer.resblocks.0.ln_2.bias",
        "vision.blocks.0.mlp.fc1.weight": "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "vision.blocks.1.mlp.fc2.bias": "visual.transformer.resblocks.1.mlp.c_proj.bias",
        "vision.blocks.1.attn.proj.weight": "visual.transformer.resblocks.1.attn.out_proj.weight",
        "vision.ln_post.weight": "visual.ln_post.weight",
        "vision.projection": "visual.proj",
    }
    for kind in ("rgb", "nir", "cp", "sk"):
        pairs |= {
            f"tokenizers.{kind}.conv.weight": "visual.conv1.weight",
            f"tokenizers.{kind}.ln_pre.bias": "visual.ln_pre.bias",
            f"tokenizers.{kind}.class_embedding": "visual.class_embedding",
        }
    for name, source in pairs.items():
        assert torch.equal(ours[name], state[source].float()), name
        assert ours[name].dtype == torch.float32


@pytest.mark.parametrize("form", ["torchscript", "state_dict", "wrapped"])
def test_openai_files(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = clip_state()
    path = tmp_path / "ViT.pt"
    if form == "torchscript":
        write_torchscript(path, state)
        assert is_torchscript(path)
        monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch.jit.load was called"))
        assert {name: value.dtype for name, value in read_torchscript(path).items() if name in state} == {
            name: value.dtype for name, value in state.items()
        }
    elif form == "state_dict":
        torch.save({**state, "context_length": torch.tensor(9)}, path)
        assert not is_torchscript(path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    model, report = build(str(path))
    assert_loaded(model, state)
    names = [name for name, _ in model.named_parameters()]
    assert [row.name for row in report.rows if row.action != "ignored"] == names
    assert {row.name for row in report.rows if row.action == "new"} == {
        name for name in names if name.startswith(("fusion.", "classifier.")) or ".lora_" in name
    }
    assert report.count("resized") == 0 and report.count("ignored") >= 1
    text = report.format()
    assert "tokenizers.sk" in text and "ignored: logit_scale" in text and str(path) in text


def test_tokenizers_do_not_share_memory(tmp_path: Path) -> None:
    torch.save(clip_state(), tmp_path / "clip.pt")
    model, _ = build(str(tmp_path / "clip.pt"))
    assert (
        len({model.get_parameter(f"tokenizers.{kind}.conv.weight").data_ptr() for kind in ("rgb", "nir", "cp", "sk")})
        == 4
    )


def test_positions_are_resized_only_when_their_number_differs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = clip_state()
    torch.save(state, tmp_path / "clip.pt")
    source = str(tmp_path / "clip.pt")
    original = state["visual.positional_embedding"]
    model, report = build(source, image_size=(96, 48))
    resized = model.get_parameter("tokenizers.nir.positional_embedding")
    assert report.count("resized") == 4 and "4x4 -> 6x3, bilinear" in report.format()
    assert torch.equal(resized[0], original[0])
    torch.testing.assert_close(resized[1:], bilinear_by_hand(original[1:], 4, (6, 3)), atol=1e-6, rtol=1e-5)
    cubic, _ = build(source, image_size=(96, 48), position_resize="bicubic")
    assert (cubic.get_parameter("tokenizers.nir.positional_embedding") - resized).abs().max() > 1e-3
    caplog.clear()
    same_count, report = build(source, image_size=(128, 32))
    assert torch.equal(same_count.get_parameter("tokenizers.cp.positional_embedding"), original)
    assert report.count("resized") == 0 and "4x4 kept as 8x2" in report.format() and "4x4 kept as 8x2" in caplog.text
    strided, _ = build(source, stride=12)
    assert strided.get_parameter("tokenizers.rgb.positional_embedding").shape == (26, 128)


def bilinear_by_hand(rows: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    table = rows.reshape(side, side, -1)
    result = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            place = [
                min(max((index + 0.5) * side / count - 0.5, 0), side - 1)
                for index, count in ((y, grid[0]), (x, grid[1]))
            ]
            (top, left), (dy, dx) = [int(p) for p in place], [p - int(p) for p in place]
            down, right = min(top + 1, side - 1), min(left + 1, side - 1)
            result.append(
                (1 - dy) * ((1 - dx) * table[top, left] + dx * table[top, right])
                + dy * ((1 - dx) * table[down, left] + dx * table[down, right])
            )
    return torch.stack(result)


def test_bicubic_is_timms_resize() -> None:
    from timm.layers import resample_abs_pos_embed

    embedding = torch.randn(50, 6)
    expected = resample_abs_pos_embed(embedding[None], (24, 8), num_prefix_tokens=1)[0]
    torch.testing.assert_close(resize_positions(embedding, (24, 8), "bicubic"), expected, atol=1e-6, rtol=1e-5)


def test_shorter_captions_take_the_first_positions(tmp_path: Path) -> None:
    state = clip_state()
    torch.save(state, tmp_path / "clip.pt")
    model, report = build(str(tmp_path / "clip.pt"), text_length=6)
    assert torch.equal(model.text.positional_embedding, state["positional_embedding"][:6])
    assert report.count("cut") == 1 and "9 -> 6 positions" in report.format()
    with pytest.raises(UserError, match="9 text positions.*text_length"):
        build(str(tmp_path / "clip.pt"), text_length=12)


def test_hugging_face_directory_equals_transformers(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config=dict(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            projection_dim=64,
            hidden_act="quick_gelu",
        ),
        text_config=dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=9,
            vocab_size=50,
            projection_dim=64,
            hidden_act="quick_gelu",
            eos_token_id=49,
            bos_token_id=48,
            pad_token_id=0,
        ),
        projection_dim=64,
    )
    oracle = CLIPModel(config).eval()
    with torch.no_grad():
        for value in oracle.parameters():
            value.add_(0.05 * torch.randn_like(value))
    oracle.save_pretrained(tmp_path / "clip")
    model, report = build(f"hf:{tmp_path / 'clip'}")
    images, ids = torch.randn(3, 3, 64, 64), torch.randint(1, 48, (3, 9))
    ids[:, 5] = 49
    with torch.no_grad():
        expected = oracle.get_image_features(pixel_values=images).pooler_output
        torch.testing.assert_close(model.encode("nir", images).pooled, expected, atol=1e-5, rtol=1e-4)
        expected = oracle.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(model.encode("text", ids).pooled, expected, atol=1e-5, rtol=1e-4)
    assert report.count("resized") == 0
    with pytest.raises(UserError, match=r"vision_heads 2 \(the model: 4\).*model.vision_heads=2"):
        build(f"hf:{tmp_path / 'clip'}", vision_heads=4)
    with pytest.raises(UserError, match="vision_layers 2 .the model: 3"):
        build(f"hf:{tmp_path / 'clip'}", vision_layers=3)
    settings = json.loads((tmp_path / "clip" / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        other = {**settings, tower: {**settings[tower], "hidden_act": "gelu"}}
        (tmp_path / "clip" / "config.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match="activation gelu.*QuickGELU"):
            build(f"hf:{tmp_path / 'clip'}")
    (tmp_path / "clip" / "config.json").write_text(json.dumps(settings))  # A broken download.
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of its model's weights, text_projection.weight first"):
        build(f"hf:{tmp_path / 'clip'}")


def test_hugging_face_of_another_kind_or_incomplete_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, CLIPConfig

    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert model, not CLIP"):
        build(f"hf:{tmp_path / 'bert'}")
    CLIPConfig().save_pretrained(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot be read as a Hugging Face CLIP"):
        build(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="cannot be read as a Hugging Face CLIP"):
        build(f"hf:{tmp_path / 'absent'}")


@pytest.fixture
def open_clip_models(tmp_path: Path):
    import open_clip

    base = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2},
    }
    for name, quick in (("tiny-test-quickgelu", True), ("tiny-test", False)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**base, "quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return open_clip


def test_open_clip_equals_open_clip(open_clip_models, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = open_clip_models.create_model("tiny-test-quickgelu").eval()
    with torch.no_grad():
        for value in oracle.parameters():
            value.add_(0.05 * torch.randn_like(value))
    torch.save(oracle.state_dict(), tmp_path / "weights.pt")
    model, report = build(f"open_clip:tiny-test-quickgelu/{tmp_path / 'weights.pt'}")
    images, ids = torch.randn(3, 3, 64, 64), torch.randint(1, 49, (3, 9))
    ids[:, 6] = 49
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode(Modality.SK, images).pooled, oracle.encode_image(images), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            model.encode(Modality.TEXT, ids).pooled, oracle.encode_text(ids), atol=1e-5, rtol=1e-4
        )
    assert report.count("loaded") > 50
    with pytest.raises(UserError, match="QuickGELU"):
        build(f"open_clip:tiny-test/{tmp_path / 'weights.pt'}")
    with pytest.raises(UserError, match="no model 'tiny-tset-quickgelu'.*tiny-test-quickgelu"):
        build("open_clip:tiny-tset-quickgelu/openai")
    with pytest.raises(UserError, match="no weights 'opnai' for ViT-B-16-quickgelu.*did you mean 'openai'"):
        build("open_clip:ViT-B-16-quickgelu/opnai")
    for untagged in ("open_clip:tiny-test-quickgelu", "open_clip:tiny-test-quickgelu/"):
        with pytest.raises(UserError, match="has no weights .. for tiny-test-quickgelu"):
            build(untagged)


@pytest.mark.parametrize("form", ["torchscript", "zip", "legacy"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    if form == "torchscript":
        write_torchscript(tmp_path / "good.pt", clip_state())
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as evil:
            for name in good.namelist():
                evil.writestr(name, pickle.dumps(Bomb(mark), 2) if name.endswith("/data.pkl") else good.read(name))
        assert is_torchscript(path)
    elif form == "zip":
        torch.save({"a": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Bomb(mark)}, 2))
    foreign = r"refers to (posix|nt)\.mkdir, which is not a tensor; it was not run"
    with pytest.raises(UserError, match=foreign if form == "torchscript" else "evil.pt"):
        build(str(path))
    assert not mark.exists()
    if form == "torchscript":
        # The same bytes do run where nothing restricts them: the test can tell.
        with zipfile.ZipFile(path) as evil:
            pickle.loads(evil.read(next(name for name in evil.namelist() if name.endswith("/data.pkl"))))
        assert mark.exists()


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        build(str(tmp_path / "absent.pt"))
    with pytest.raises(UserError, match="train.init_from=runs/a"):
        build("run:runs/a")
    state = clip_state()
    whole = write_torchscript(tmp_path / "whole.pt", state).read_bytes()
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "part.pt").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError):
            build(str(tmp_path / "part.pt"))
    cases = {
        "is not a CLIP vision transformer": {"layer1.weight": torch.zeros(3)},
        "1 tensors are missing .visual.ln_post.bias": {
            name: value for name, value in state.items() if name != "visual.ln_post.bias"
        },
        "1 tensors have no place .visual.extra": {**state, "visual.extra": torch.zeros(1)},
        "vision_width 64 .the model: 128..*embed_dim": {
            **state,
            "visual.class_embedding": torch.zeros(64),
            "text_projection": torch.zeros(64, 32),
        },
        "no square grid": {**state, "visual.positional_embedding": torch.zeros(16, 128)},
        "has shape .4, 4. where the model has .128, 64.": {**state, "visual.proj": torch.zeros(4, 4)},
        "vision_layers 3": {**state, "visual.transformer.resblocks.2.ln_1.bias": torch.zeros(128)},
    }
    for words, content in cases.items():
        torch.save(content, tmp_path / "case.pt")
        with pytest.raises(UserError, match=words):
            build(str(tmp_path / "case.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no dictionary"):
        build(str(tmp_path / "list.pt"))


def test_storage_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_torchscript(tmp_path / "good.pt", clip_state())
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name)[:8] if "/data/" in name else good.read(name))
    with pytest.raises(UserError, match="not a readable TorchScript archive"):
        read_torchscript(tmp_path / "bad.pt")


def test_masks_kept_by_scripted_text_blocks_are_ignored(tmp_path: Path) -> None:
    state = {**clip_state(), "transformer.resblocks.0.attn_mask": torch.zeros(9, 9)}
    model, report = build(str(write_torchscript(tmp_path / "masked.pt", state)))
    assert_loaded(model, state)
    assert "transformer.resblocks.0.attn_mask" in [row.name for row in report.rows if row.action == "ignored"]
