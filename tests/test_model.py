"""Covers: model/reid5o, model/vision, model/text, model/fusion, model/layers, model/lora, model/interface, model/build.
The model against a second implementation, and the properties that training and evaluation rely on.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import model_oracle as oracle
import pytest
import torch
from torch import Tensor, nn

from configs.schema.reid5o import LoraConfig, Reid5oConfig
from configs.vocabulary import COMBINATIONS, Family, Modality
from model.build import build_model, initialise
from model.interface import Instruction, RetrievalModel
from model.layers import run_blocks
from model.lora import ExpertLinear
from model.reid5o import ReID5o
from model.weights.reid5o import build_official, reid5o_sizes
from model.weights.reid5o_names import official_names
from utils.errors import UserError

pytestmark = pytest.mark.threads(2)

CASES = {
    "mlp": oracle.Sizes(),
    "all_stride_12": oracle.Sizes(lora="all", stride=12, image=(60, 40), vision_width=128, vision_heads=2, embed=128),
    "no_experts": oracle.Sizes(lora="", vision_layers=2),
    "every_block_five_experts": oracle.Sizes(lora="all", lora_layers=3, experts=5, rank=2, stride=10),
    "uneven_widths": oracle.Sizes(
        vision_width=96, vision_heads=1, text_width=128, embed=64, patch=12, stride=8, depth=1
    ),
    "legacy_heads": oracle.Sizes(vision_width=64, vision_heads=8),
    "fusion_heads": oracle.Sizes(mmt_heads=4),
}


def make(sizes: oracle.Sizes, seed: int = 0) -> tuple[ReID5o, oracle.State]:
    state = oracle.released_state(sizes, seed)
    config = reid5o_sizes(state, sizes.flat(), vision_heads=sizes.vision_heads, mmt_heads=sizes.mmt_heads)
    return build_official(state, config, "test"), state


def sources(sizes: oracle.Sizes, rows: int = 3, seed: int = 1) -> dict[Modality, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {Modality(kind): torch.randn(rows, 3, *sizes.image, generator=generator) for kind in oracle.IMAGES}
    batch[Modality.TEXT] = torch.randint(1, sizes.vocab, (rows, sizes.text_length), generator=generator)
    return batch


def scalar(model: ReID5o, batch: dict[Modality, Tensor]) -> Tensor:
    """A number to which every parameter contributes."""
    encoded = model.encode_batch(batch)
    fused = model.fuse([encoded[kind] for kind in COMBINATIONS[-1]])
    logits = model.identity_logits(fused + encoded[Modality.RGB].pooled)
    return torch.sin(logits).sum() + sum(torch.cos(tokens.pooled).sum() for tokens in encoded.values())


def gradients(model: ReID5o, batch: dict[Modality, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    scalar(model, batch).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_features_and_fusions_equal_the_second_implementation(name: str) -> None:
    sizes = CASES[name]
    model, state = make(sizes)
    batch = sources(sizes)
    with torch.no_grad():
        encoded = model.encode_batch(batch)
        expected = {
            Modality(kind): oracle.encode_image(state, sizes, kind, batch[Modality(kind)]) for kind in oracle.IMAGES
        }
        for kind, tokens in expected.items():
            torch.testing.assert_close(encoded[kind].tokens, tokens, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(encoded[kind].pooled, tokens[:, 0], atol=1e-4, rtol=1e-4)
        tokens, pooled = oracle.encode_text(state, sizes, batch[Modality.TEXT])
        torch.testing.assert_close(encoded[Modality.TEXT].tokens, tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoded[Modality.TEXT].pooled, pooled, atol=1e-4, rtol=1e-4)
        expected[Modality.TEXT] = tokens
        for combination in COMBINATIONS[4:]:
            fused = oracle.fuse(state, sizes, [expected[kind] for kind in combination])
            torch.testing.assert_close(model.fuse([encoded[kind] for kind in combination]), fused, atol=1e-4, rtol=1e-4)
        logits = fused @ state["classifier.weight"].t() + state["classifier.bias"]
        torch.testing.assert_close(model.identity_logits(fused), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "all_stride_12", "every_block_five_experts"])
def test_gradients_equal_the_second_implementation(name: str) -> None:
    sizes = CASES[name]
    model, state = make(sizes)
    batch = sources(sizes, rows=2)
    ours = gradients(model, batch)
    leaves = {key: value.clone().requires_grad_() for key, value in state.items() if not key.endswith("orig_param")}
    encoded = {
        Modality(kind): oracle.encode_image(leaves, sizes, kind, batch[Modality(kind)]) for kind in oracle.IMAGES
    }
    pooled = {kind: tokens[:, 0] for kind, tokens in encoded.items()}
    encoded[Modality.TEXT], pooled[Modality.TEXT] = oracle.encode_text(leaves, sizes, batch[Modality.TEXT])
    fused = oracle.fuse(leaves, sizes, [encoded[kind] for kind in COMBINATIONS[-1]])
    logits = (fused + pooled[Modality.RGB]) @ leaves["classifier.weight"].t() + leaves["classifier.bias"]
    (torch.sin(logits).sum() + sum(torch.cos(value).sum() for value in pooled.values())).backward()
    names = official_names(model)
    assert set(ours) == set(names) - set(model.frozen_names) - {
        name for name in names if ".lora_" in name and int(name.rpartition(".")[2]) >= 4
    }
    for name, gradient in ours.items():
        expected = leaves[names[name]].grad
        assert expected is not None
        expected = expected.t() if "_withloras." in names[name] else expected
        torch.testing.assert_close(gradient, expected, atol=1e-3 * expected.abs().max().item() + 1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "all_stride_12"])
def test_one_pass_over_all_modalities_equals_one_by_one(name: str) -> None:
    model, _ = make(CASES[name])
    batch = sources(CASES[name])
    with torch.no_grad():
        single = {kind: model.encode(kind.value, inputs) for kind, inputs in batch.items()}
        uneven = {kind: inputs[: 1 + index % 3] for index, (kind, inputs) in enumerate(reversed(batch.items()))}
        for group in (batch, uneven, {kind: batch[kind] for kind in (Modality.SK, Modality.NIR)}):
            encoded = model.encode_batch(group)
            assert list(encoded) == list(group)
            for kind, tokens in encoded.items():
                rows = len(group[kind])
                torch.testing.assert_close(tokens.tokens, single[kind].tokens[:rows], atol=2e-5, rtol=1e-4)
                torch.testing.assert_close(tokens.pooled, single[kind].pooled[:rows], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "all_stride_12", "no_experts"])
def test_activation_checkpointing_leaves_gradients_equal(name: str) -> None:
    model, _ = make(CASES[name])
    model.train()
    batch = sources(CASES[name])

    def grouped_and_separate() -> dict[str, Tensor]:
        # Encoded one modality after the other before one backward: state in the modules would be stale by then.
        model.zero_grad()
        total = scalar(model, batch)
        encoded = [model.encode(kind, inputs) for kind, inputs in batch.items()]
        (total + sum(torch.sin(tokens.tokens).sum() for tokens in encoded)).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    plain = grouped_and_separate()
    model.checkpoint_activations = True
    recomputed = grouped_and_separate()
    assert set(plain) == set(recomputed) == {name for name, value in model.named_parameters() if value.requires_grad}
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5)


def test_checkpointing_keeps_less_between_forward_and_backward() -> None:
    model, _ = make(CASES["mlp"])
    batch = sources(CASES["mlp"])
    kept: dict[bool, int] = {}
    for flag in (False, True):
        model.checkpoint_activations = flag
        seen: list[int] = []

        def pack(value: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            model.encode_batch(batch)
        kept[flag] = sum(seen)
    assert kept[True] < kept[False] / 2


@pytest.mark.parametrize("name", ["mlp", "all_stride_12"])
def test_merged_experts_give_equal_outputs_and_are_forgotten(name: str) -> None:
    model, state = make(CASES[name])
    batch = sources(CASES[name])
    keys = set(model.state_dict())
    with torch.no_grad():
        before = model.encode_batch(batch)
        model.merge_experts()
        uneven = {kind: inputs[: 1 + index] for index, (kind, inputs) in enumerate(batch.items()) if index < 3}
        for group in (batch, uneven):
            for kind, tokens in model.encode_batch(group).items():
                torch.testing.assert_close(tokens.tokens, before[kind].tokens[: len(group[kind])], atol=5e-5, rtol=1e-4)
    assert set(model.state_dict()) == keys
    layers = [module for module in model.modules() if isinstance(module, ExpertLinear)]
    assert layers and all(layer.merged is not None for layer in layers)
    other = make(CASES[name], seed=5)[0]
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode("nir", batch[Modality.NIR]).tokens, other.encode("nir", batch[Modality.NIR]).tokens
        )
    model.merge_experts()
    model.train()
    assert all(layer.merged is None for layer in layers)
    with pytest.raises(UserError, match="eval"):
        model.merge_experts()


def test_training_never_builds_a_merged_weight() -> None:
    sizes = CASES["all_stride_12"]
    model, _ = make(sizes)
    shapes = {tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, ExpertLinear)}
    produced: list[tuple[int, ...]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            aten = torch.ops.aten
            if function.overloadpacket in (aten.mm, aten.bmm, aten.add, aten.addmm, aten.baddbmm):
                produced.append(tuple(result.shape)[-2:])
            return result

    with Watch(), torch.no_grad():
        model.encode_batch(sources(sizes))
    assert produced and not shapes & set(produced)


def test_fusion_from_prepared_tokens_is_the_fusion_and_ignores_order() -> None:
    sizes = CASES["mlp"]
    model, _ = make(sizes)
    with torch.no_grad():
        encoded = model.encode_batch(sources(sizes))
        members = [encoded[kind] for kind in COMBINATIONS[-1]]
        prepared = [model.prepare(member.tokens) for member in members]
        assert prepared[0].shape == (*members[0].tokens.shape[:2], 3 * model.embed_dim)
        fused = model.fuse(members)
        torch.testing.assert_close(model.fuse_prepared(torch.cat(prepared, dim=1)), fused, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.fuse(members[::-1]), fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_keeps_norms_pooled_outputs_and_logits_in_float32(recompute: bool) -> None:
    sizes = CASES["all_stride_12"]
    model, _ = make(sizes)
    batch = sources(sizes)
    with torch.no_grad():
        exact = model.encode_batch(batch)
        exact_fused = model.fuse([exact[kind] for kind in COMBINATIONS[-1]])
    dtypes: list[torch.dtype] = []
    layer_norm = torch.nn.functional.layer_norm

    def watched(inputs: Tensor, *arguments: Any) -> Tensor:
        dtypes.append(inputs.dtype)
        return layer_norm(inputs, *arguments)

    model.checkpoint_activations = recompute
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(torch.nn.functional, "layer_norm", watched)
        encoded = model.encode_batch(batch)
        fused = model.fuse([encoded[kind] for kind in COMBINATIONS[-1]])
        logits = model.identity_logits(fused)
    assert set(dtypes) == {torch.float32}
    assert encoded[Modality.RGB].tokens.dtype == torch.bfloat16
    assert {tokens.pooled.dtype for tokens in encoded.values()} | {fused.dtype, logits.dtype} == {torch.float32}
    # Not merely bfloat16 numbers stored in float32.
    for value in (encoded[Modality.RGB].pooled, encoded[Modality.TEXT].pooled, fused, logits):
        assert (value != value.bfloat16().float()).float().mean() > 0.9
    for kind, tokens in encoded.items():
        assert torch.cosine_similarity(tokens.pooled, exact[kind].pooled).min() > 0.99
    assert torch.cosine_similarity(fused, exact_fused).min() > 0.99
    logits.sum().backward()
    assert all(value.grad is None or value.grad.dtype == torch.float32 for value in model.parameters())


def tiny(**options: Any) -> Reid5oConfig:
    return Reid5oConfig(
        **{
            **dict(
                image_size=(32, 16),
                vision_width=64,
                vision_layers=2,
                text_width=64,
                text_layers=1,
                embed_dim=64,
                text_length=8,
                vocab_size=30,
                mmt_depth=1,
                lora=LoraConfig(layers=1),
            ),
            **options,
        }
    )


@pytest.mark.parametrize(
    ("mode", "train_base", "expected"),
    [
        ("mlp", False, {"mlp.fc1.weight", "mlp.fc2.weight"}),
        ("all", False, {"mlp.fc1.weight", "mlp.fc2.weight", "attn.qkv.weight", "attn.qkv.bias"}),
        ("all", True, set()),
    ],
)
def test_frozen_names(mode: Any, train_base: bool, expected: set[str]) -> None:
    model = build_model(Family.REID5O, tiny(lora=LoraConfig(layers=1, mode=mode, train_base=train_base)), 3)
    assert isinstance(model, RetrievalModel)
    assert set(model.frozen_names) == {f"vision.blocks.1.{name}" for name in expected}
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == set(model.frozen_names)


def test_random_initialisation_follows_the_rules() -> None:
    config = Reid5oConfig(
        image_size=(64, 32),
        vision_width=256,
        vision_layers=3,
        text_width=192,
        text_layers=2,
        embed_dim=128,
        text_length=20,
        vocab_size=500,
        mmt_depth=3,
        lora=LoraConfig(layers=1, mode="all", rank=8),
    )
    torch.manual_seed(0)
    model = build_model(Family.REID5O, config, 50)
    report = initialise(Family.REID5O, model, config)
    assert report.count("new") == len(report.rows) == len(list(model.parameters()))
    state = model.state_dict()
    rules = {
        "text.token_embedding.weight": 0.02,
        "text.positional_embedding": 0.01,
        "text.projection": 192**-0.5,
        "text.blocks.1.attn.qkv.weight": 192**-0.5,
        "text.blocks.1.attn.proj.weight": 192**-0.5 * 4**-0.5,
        "text.blocks.0.mlp.fc1.weight": (2 * 192) ** -0.5,
        "text.blocks.0.mlp.fc2.weight": 192**-0.5 * 4**-0.5,
        "tokenizers.rgb.positional_embedding": 256**-0.5,
        "vision.projection": 256**-0.5,
        "vision.blocks.2.attn.qkv.weight": 256**-0.5,
        "vision.blocks.2.mlp.fc2.weight": 256**-0.5 * 6**-0.5,
        "fusion.attention.qkv.weight": 128**-0.5,
        "fusion.attention.proj.weight": 128**-0.5 * 6**-0.5,
        "fusion.blocks.2.attn.qkv.weight": 128**-0.5,
        "fusion.blocks.2.mlp.fc1.weight": 256**-0.5,
        "fusion.head.dense.weight": 256**-0.5,
        "fusion.head.fc.weight": 128**-0.5 * 6**-0.5,
        "classifier.weight": 0.001,
        "vision.blocks.2.mlp.fc1.lora_down.1": (1 / 256 / 3) ** 0.5,
        "vision.blocks.2.mlp.fc2.lora_down.0": (1 / 1024 / 3) ** 0.5,
        "vision.blocks.2.attn.qkv.lora_up.3": (1 / 768 / 3) ** 0.5,
    }
    for name, std in rules.items():
        assert state[name].std().item() == pytest.approx(std, rel=0.08), name
    zeros = [
        name
        for name in state
        if name.endswith(("attn.qkv.bias", "attn.proj.bias"))
        or name.startswith("classifier.b")
        or (".mlp." in name and ".lora_up." in name)
        or (".attn." in name and ".lora_down." in name)
    ]
    assert len(zeros) == 2 * 3 + 2 * 2 + 2 * 3 + 1 + 2 * 4 + 2 * 4
    assert all(not state[name].any() for name in zeros)
    for kind in ("nir", "cp", "sk"):
        for part in ("conv.weight", "class_embedding", "positional_embedding", "ln_pre.weight"):
            assert torch.equal(state[f"tokenizers.{kind}.{part}"], state[f"tokenizers.rgb.{part}"])
    assert all(torch.isfinite(value).all() for value in state.values())


def test_fresh_experts_change_nothing() -> None:
    torch.manual_seed(0)
    config = tiny(lora=LoraConfig(layers=2, mode="all"))
    model = build_model(Family.REID5O, config, 3)
    initialise(Family.REID5O, model, config)
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        outputs = [model.encode(kind, images).tokens for kind in oracle.IMAGES]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-6, rtol=1e-6)


def test_scale_option_replaces_one_over_rank() -> None:
    layer = ExpertLinear(6, 4, LoraConfig(mode="mlp", layers=1, rank=2, num_experts=4, scale=0.7), ("weight",))
    with torch.no_grad():
        for value in layer.lora_up:
            value.normal_()
    inputs = torch.randn(3, 5, 6)
    expected = inputs @ layer.weight.t() + layer.bias + 0.7 * inputs @ layer.lora_down[2].t() @ layer.lora_up[2].t()
    torch.testing.assert_close(layer(inputs, ((2, 3),)), expected)
    with pytest.raises(ValueError, match="do not cover"):
        layer(inputs, ((0, 1), (1, 1)))


def test_compiled_blocks_keep_names_and_outputs() -> None:
    model, _ = make(CASES["mlp"])
    batch = sources(CASES["mlp"])
    keys = list(model.state_dict())
    with torch.no_grad():
        plain = model.encode_batch(batch)
        model.compile_blocks(backend="eager")
        compiled = model.encode_batch(batch)
    assert list(model.state_dict()) == keys
    for kind, tokens in plain.items():
        torch.testing.assert_close(compiled[kind].tokens, tokens.tokens, atol=1e-5, rtol=1e-5)
    assert all(
        block._compiled_call_impl is not None
        for block in (*model.vision.blocks, *model.text.blocks, *model.fusion.blocks)
    )


def dropout_gradients(**options: bool) -> list[Tensor]:
    """Output and gradients of three blocks with dropout, always under the same seed."""
    torch.manual_seed(2)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.5)).double() for _ in range(3)]
    inputs = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    output = run_blocks(blocks, inputs, **options)
    output.square().sum().backward()
    leaves = [inputs, *(value for block in blocks for value in block.parameters())]
    return [output, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_recomputed_blocks_draw_the_same_dropout_again() -> None:
    kept = dropout_gradients(recompute=False)
    for one, other in zip(dropout_gradients(recompute=True, draws=True), kept, strict=True):
        assert torch.equal(one, other)
    careless = dropout_gradients(recompute=True)
    assert torch.equal(careless[0], kept[0]) and not torch.equal(careless[1], kept[1]), "wrong without a word"


def test_copies_and_pickles_keep_the_model() -> None:
    model, _ = make(CASES["all_stride_12"])
    batch = {Modality.SK: sources(CASES["all_stride_12"])[Modality.SK]}
    with torch.no_grad():
        expected = model.encode_batch(batch)[Modality.SK].tokens
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin.encode_batch(batch)[Modality.SK].tokens, expected)


TOLD = Instruction(modality=Modality.TEXT, inputs=torch.zeros(1, 8, dtype=torch.int64), rows=torch.tensor([0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.encode("nri", torch.zeros(1, 3, 32, 16)), "unknown modality 'nri': did you mean 'nir'"),
        (lambda model: model.encode("nir", torch.zeros(1, 3, 16, 32)), r"\(1, 3, 16, 32\).*\(rows, 3, 32, 16\)"),
        (lambda model: model.encode("nir", torch.zeros(3, 32, 16)), "the model takes"),
        (lambda model: model.encode("text", torch.zeros(1, 77, dtype=torch.int64)), r"\(1, 77\).*\(rows, 8\)"),
        (lambda model: model.encode("rgb", torch.zeros(1, 3, 32, 16), (TOLD,)), "no instruction"),
        (lambda model: model.fuse([]), "at least one"),
    ],
)
def test_wrong_inputs_are_refused(call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(build_model(Family.REID5O, tiny(), 3))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="vision_heads.*64.*5"):
        build_model(Family.REID5O, tiny(vision_heads=5), 3)
