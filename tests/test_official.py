"""Covers: model/weights/reid5o, model/weights/reid5o_names. Released checkpoints: strict loading, the flat
configuration, export, and what is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import model_oracle as oracle
import pytest
import torch
from trees import Bomb

from configs.schema.reid5o import LoraConfig, Reid5oConfig
from model.reid5o import ReID5o
from model.weights.reid5o import (
    export_reid5o,
    is_flat_config,
    load_reid5o,
    read_flat_config,
    read_official_state,
    reid5o_sizes,
)
from model.weights.reid5o_names import official_names, released_in_half
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "reid5o" / "caseA"
ALL = oracle.Sizes(lora="all", stride=12, image=(60, 40))


def write(folder: Path, content: object, name: str = "best.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_every_layout_gives_the_same_model(tmp_path: Path) -> None:
    state = oracle.released_state(ALL)
    bare = {name: value for name, value in state.items() if not name.endswith("orig_param")}
    layouts = {
        "bare.pth": state,
        "wrapped.pth": {"model": state, "optimizer": {"lr": 1e-5}, "epoch": 3},
        "parallel.pth": {"model": {f"module.{name}": value for name, value in state.items()}},
        "no_aliases.pth": bare,
    }
    models = [load_reid5o(write(tmp_path, content, name), ALL.flat()) for name, content in layouts.items()]
    images = torch.randn(2, 3, *ALL.image)
    with torch.no_grad():
        outputs = [model.encode("cp", images).pooled for model in models]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    torch.testing.assert_close(outputs[0], oracle.encode_image(state, ALL, "cp", images)[:, 0], atol=1e-4, rtol=1e-4)
    for model in models:
        assert not model.training and model.num_identities == ALL.identities
        assert {value.dtype for value in model.parameters()} == {torch.float32}
        assert {value.device.type for value in model.parameters()} == {"cpu"}
        assert (
            {name for name, value in model.named_parameters() if not value.requires_grad}
            == set(model.frozen_names)
            != set()
        )


@pytest.mark.parametrize("sizes", [ALL, oracle.Sizes(), oracle.Sizes(lora="")], ids=["all", "mlp", "none"])
def test_export_writes_back_every_entry(tmp_path: Path, sizes: oracle.Sizes) -> None:
    state = oracle.released_state(sizes)
    model = load_reid5o(write(tmp_path, state), sizes.flat())
    exported = export_reid5o(model)
    assert set(exported) == set(state) and all(torch.equal(exported[name], value) for name, value in state.items())
    aliases = [name for name in exported if name.endswith("orig_param")]
    assert len(aliases) == (2 * 2 * 4 if sizes.lora == "all" else 0)
    assert all(
        exported[name].data_ptr()
        == exported[name.split("_withloras")[0].replace("out_proj_weight", "out_proj.weight")].data_ptr()
        for name in aliases
    )
    assert set(official_names(model).values()) == set(state) - set(aliases)


def test_mixed_precision_layout(tmp_path: Path) -> None:
    state = oracle.released_state(ALL)
    model = load_reid5o(write(tmp_path, state), ALL.flat())
    mixed = export_reid5o(model, half=True)
    counts = {dtype: sum(value.dtype == dtype for value in mixed.values()) for dtype in (torch.float16, torch.float32)}
    norms_and_embeddings = [
        name
        for name in state
        if ".ln_" in name
        or name.startswith("ln_")
        or ".ln." in name
        or name.endswith(("embedding", "embedding.weight"))
    ]
    assert counts == {torch.float32: len(norms_and_embeddings), torch.float16: len(state) - len(norms_and_embeddings)}
    again = load_reid5o(write(tmp_path, {"model": mixed}, "mixed.pth"), ALL.flat())
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    rounded = {name: value.half().float() if released_in_half(name) else value for name, value in state.items()}
    assert all(torch.equal(value, rounded[name]) for name, value in export_reid5o(again).items())


def test_real_size_has_the_released_number_of_half_entries() -> None:
    with torch.device("meta"):
        model = ReID5o(Reid5oConfig(), 1000)
    names = official_names(model).values()
    assert (sum(map(released_in_half, names)), len(names)) == (272, 412)


def test_sizes_come_from_the_tensors_and_options_from_the_flat_file() -> None:
    config = reid5o_sizes(oracle.released_state(ALL), ALL.flat())
    assert config == Reid5oConfig(
        image_size=(60, 40),
        patch_size=16,
        stride=12,
        embed_dim=64,
        vision_width=64,
        vision_layers=3,
        text_width=64,
        text_layers=2,
        text_length=11,
        vocab_size=40,
        mmt_depth=2,
        lora=LoraConfig(enabled=True, mode="all", layers=2, rank=3, num_experts=4),
    )
    golden = reid5o_sizes(read_official_state(GOLDEN / "best.pth"), read_flat_config(GOLDEN / "configs.yaml"))
    assert (golden.image_size, golden.vocab_size, golden.text_length, golden.vision_layers) == ((96, 48), 600, 77, 3)


def test_a_flat_file_without_the_optional_keys() -> None:
    """What the released code assumes then: no experts, and with them those of the paper; a fusion of four blocks."""
    flat = {name: ALL.flat()[name] for name in ("img_size", "stride_size")}
    plain = reid5o_sizes(oracle.released_state(oracle.Sizes(lora="")), flat)
    assert plain.mmt_depth == 4 and not plain.lora.enabled
    experts = reid5o_sizes(oracle.released_state(ALL), {**flat, "add_lora": True})
    assert experts.lora == LoraConfig(enabled=True, mode="mlp", layers=2, rank=4, num_experts=4)


def test_overrides_reach_the_model(tmp_path: Path) -> None:
    sizes = oracle.Sizes(vision_heads=8)
    state = oracle.released_state(sizes)
    path = write(tmp_path, state)
    images = torch.randn(2, 3, *sizes.image)
    with torch.no_grad():
        legacy = load_reid5o(path, sizes.flat(), vision_heads=8).encode("rgb", images).pooled
        fixed = load_reid5o(path, sizes.flat()).encode("rgb", images).pooled
    torch.testing.assert_close(legacy, oracle.encode_image(state, sizes, "rgb", images)[:, 0], atol=1e-4, rtol=1e-4)
    assert (legacy - fixed).abs().max() > 0.01
    with pytest.raises(UserError, match="'vision_head': did you mean 'vision_heads'"):
        load_reid5o(path, sizes.flat(), vision_head=8)


def test_entries_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    state = oracle.released_state(ALL)
    alias = "vision_encoder.transformer.resblocks.2.attn.out_proj_weight_withloras.3.orig_param"
    wrong = {
        "1 entries missing: vision_encoder.ln_post.weight": {
            name: value for name, value in state.items() if name != "vision_encoder.ln_post.weight"
        },
        "1 entries unexpected: vision_encoder.ln_post.gain": {**state, "vision_encoder.ln_post.gain": torch.zeros(1)},
        r"1 entries of another shape: mm_head.fc.weight \(64, 32\) \(the model: \(64, 64\)\)": {
            **state,
            "mm_head.fc.weight": torch.zeros(64, 32),
        },
        f"1 entries unlike the entry they repeat: {alias}": {**state, alias: state[alias] + 1},
        "unexpected: .*withloras.4.orig_param": {**state, alias.replace("loras.3", "loras.4"): state[alias]},
    }
    for words, content in wrong.items():
        with pytest.raises(UserError, match=words):
            load_reid5o(write(tmp_path, content), ALL.flat())
    for change, words in (
        ({"stride_size": 16}, "positional_embedding"),
        ({"add_lora": False}, "unexpected"),
        ({"lora_mode": "mlp"}, "unexpected"),
        ({"lora_r": 4}, "another shape"),
        ({"num_loras": 5}, "missing"),
        ({"mmt_depth": 3}, "missing"),
        ({"lora_layers": 1}, "unexpected"),
    ):
        with pytest.raises(UserError, match=words):
            load_reid5o(write(tmp_path, state), {**ALL.flat(), **change})


def test_damaged_foreign_and_malicious_checkpoints_are_refused(tmp_path: Path) -> None:
    state = oracle.released_state(ALL)
    path = write(tmp_path, state)
    whole = path.read_bytes()
    for share in (0.0, 0.4, 0.98):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="best.pth"):
            load_reid5o(path, ALL.flat())
    with pytest.raises(UserError, match="absent.pth"):
        load_reid5o(tmp_path / "absent.pth", ALL.flat())
    mark = tmp_path / "executed"
    for legacy in (False, True):
        if legacy:
            path.write_bytes(pickle.dumps({"model": Bomb(mark)}, 2))
        else:
            write(tmp_path, {"model": state, "note": Bomb(mark)})
        with pytest.raises(UserError, match="best.pth"):
            load_reid5o(path, ALL.flat())
        assert not mark.exists()
    ours = load_reid5o(write(tmp_path, state), ALL.flat())
    for content, words in (
        ({"fc.weight": torch.zeros(2)}, "no released ReID5o checkpoint"),
        ({"model": {"epoch": 3}}, "no state_dict"),
        ([1], "no state_dict"),
        ({"model": ours.state_dict()}, "checkpoint of this project"),
    ):
        with pytest.raises(UserError, match=words):
            load_reid5o(write(tmp_path, content), ALL.flat())


def test_flat_configuration_with_its_tuples() -> None:
    values = read_flat_config(GOLDEN / "configs.yaml")
    assert values["img_size"] == (96, 48) and values["milestones"] == (20, 50) and values["lr"] == 1e-5
    assert is_flat_config(GOLDEN / "configs.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("img_size: !!python/object/apply:os.mkdir ['{mark}']\nstride_size: 16\n", "not a readable"),
        ("img_size: !!python/name:os.system ''\nstride_size: 16\n", "not a readable"),
        ("img_size: !!python/tuple [1, 2\n", "not a readable"),
        ("img_size: [96, 48]\n", "img_size and stride_size"),
        ("- 1\n- 2\n", "img_size and stride_size"),
    ],
)
def test_flat_configurations_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file, mark = tmp_path / "configs.yaml", tmp_path / "executed"
    file.write_text(text.replace("{mark}", str(mark)))
    with pytest.raises(UserError, match=words):
        read_flat_config(file)
    assert not mark.exists()


def test_impossible_values_and_missing_files(tmp_path: Path) -> None:
    state = oracle.released_state(ALL)
    for change, words in (
        ({"img_size": "(384,128)"}, "height and width"),
        ({"lora_mode": "some"}, "mlp or all"),
        ({"stride_size": "x"}, "invalid literal"),
        ({"img_size": (8, 8)}, "image_size"),
        ({"stride_size": 0}, "at least 1"),
        ({"lora_layers": 9}, "vision_layers"),
    ):
        with pytest.raises(UserError, match=words):
            reid5o_sizes(state, {**ALL.flat(), **change})
    with pytest.raises(UserError, match="no such configuration"):
        load_reid5o(write(tmp_path, state), tmp_path / "configs.yaml")


def test_only_flat_files_look_flat(tmp_path: Path) -> None:
    for name, text in (
        ("ours.yaml", "family: reid5o\nmodel:\n  img_size: [1, 2]\n  image_size: [384, 128]\n"),
        ("empty.yaml", ""),
    ):
        (tmp_path / name).write_text(text)
        assert not is_flat_config(tmp_path / name)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    assert not is_flat_config(tmp_path / "binary.yaml")
    assert not is_flat_config(tmp_path / "absent.yaml")
