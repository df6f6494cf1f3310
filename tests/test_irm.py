"""Covers: model/irm, model/editing, model/instruction_attention, model/instruction_encoders, model/said,
model/weights/irm. IRM beside timm's transformer, beside attention written out, and one row at a time.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from tiny_irm import GRID, IDENTITIES, clothes, images, texts, tiny_config, tiny_irm, told
from torch import Tensor, nn

from configs.vocabulary import Modality
from model.irm import IRM
from model.said import Said, gather_given
from model.weights.irm import initialise_irm
from utils.errors import UserError

pytestmark = pytest.mark.threads(2)

RGB, NIR, TEXT = Modality.RGB, Modality.NIR, Modality.TEXT
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"editing": "shared", "gate": "tanh", "gates": "layer"},
    {"attention": "dual"},
    {"attention": "dual", "attention_weights": "image", "editing": "none", "feature": "neck", "mask_padding": False},
    {"attention": "none"},
    {"stem": "residual"},
    {"heads_shared": True, "feature": "neck"},
    {"matching": "fusion", "similarity": "euclidean"},
)


def form_name(form: dict[str, Any]) -> str:
    return "-".join(map(str, form.values())) or "paper"


every_form = pytest.mark.parametrize("form", FORMS, ids=form_name)


def block(model: IRM, index: int) -> Any:
    return model.image.blocks[index]


def said(model: IRM, *lengths: int) -> Said:
    return model.encode_instructions(TEXT, texts(*lengths))


def timm_twin(model: IRM) -> VisionTransformer:
    """timm's transformer with the weights of the image tower."""
    twin = VisionTransformer(
        img_size=(64, 32),
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=4,
        num_classes=0,
        reg_tokens=3,
        global_pool="",
    )
    embed: Any = model.image.embed
    renamed = {
        "cls_token": embed.class_token,
        "reg_token": torch.cat(list(embed.part_tokens), dim=1),
        "pos_embed": torch.cat([embed.class_position, *embed.part_positions, embed.patch_positions], dim=1),
        "patch_embed.proj.weight": embed.proj.weight,
        "patch_embed.proj.bias": embed.proj.bias,
    }
    blocks = {
        name: value
        for name, value in model.image.state_dict().items()
        if name.startswith(("blocks", "norm")) and not name.endswith("gate") and "instruction_kv" not in name
    }
    twin.load_state_dict({**renamed, **blocks})
    return twin.eval()


@pytest.mark.parametrize("form", FORMS[:2], ids=form_name)
def test_a_gate_of_zero_is_timms_transformer_bit_for_bit(form: dict[str, Any]) -> None:
    model = tiny_irm(**form)
    told_rows = [(said(model, 4, 10), torch.tensor([0, 1, -1]))]
    tower = model.encode_images(images(3), told_rows)
    plain = timm_twin(model)(images(3))
    assert torch.equal(tower.cls, plain[:, 0])
    assert torch.equal(tower.tokens, torch.cat([plain[:, :1], plain[:, 4:]], dim=1))
    edited = tiny_irm(**form, gates_at=0.5).encode_images(images(3), told_rows)
    assert not torch.isclose(edited.cls[:2], tower.cls[:2]).any(dim=1).all()
    assert torch.equal(edited.cls[2], tower.cls[2])


def test_the_gate_leaves_zero_with_the_first_step() -> None:
    model = tiny_irm()
    tower = model.encode_images(images(2), [(said(model, 4), torch.tensor([0, 0]))])
    tower.cls.square().sum().backward()
    gates = [value for name, value in model.named_parameters() if name.endswith(".gate")]
    assert len(gates) == 2 and all(gate.shape == (4,) and gate.grad is not None and gate.grad.all() for gate in gates)


def edited_by_hand(model: IRM, hidden: Tensor, spoken: Tensor, shared: bool) -> Tensor:
    """Attention of the first block for one row (N, C) and one instruction (L, C), head by head."""
    attention = block(model, 0).attn
    query, key, value = (hidden @ attention.qkv.weight.T + attention.qkv.bias).split(16, dim=1)
    if shared:
        _, key2, value2 = (spoken @ attention.qkv.weight.T + attention.qkv.bias).split(16, dim=1)
    else:
        key2, value2 = (spoken @ attention.instruction_kv.weight.T + attention.instruction_kv.bias).split(16, dim=1)
    outputs = []
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        own = (query[:, part] @ key[:, part].T / 2).softmax(dim=1) @ value[:, part]
        other = (query[:, part] @ key2[:, part].T / 2).softmax(dim=1) @ value2[:, part]
        gate = math.tanh(float(attention.gate[0])) if shared else float(attention.gate[head])
        outputs.append(own + gate * other)
    return torch.cat(outputs, dim=1) @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("shared", [False, True])
def test_editing_attention_by_hand(shared: bool) -> None:
    model = tiny_irm(**(FORMS[1] if shared else {}))
    with torch.no_grad():
        block(model, 0).attn.gate.copy_(torch.tensor([0.7] if shared else [0.3, -0.2, 1.4, 0.9]))
        hidden = torch.randn(3, 6, 16)
        spoken = said(model, 4, 10)
        given = gather_given([(spoken, torch.tensor([1, -1, 0]))])
        found = block(model, 0).attn(hidden, given)
        # The padding of the shorter text takes no part: by hand it is not even there.
        for row, tokens in ((0, spoken.tokens[1]), (2, spoken.tokens[0, :4])):
            expected = edited_by_hand(model, hidden[row], tokens, shared)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("editing", ("own", "shared", "none"))
def test_the_first_token_alone_is_that_of_the_whole_block(editing: str) -> None:
    model = tiny_irm(editing=editing)
    last, hidden = block(model, 1), torch.randn(3, 9, 16)
    if editing != "none":
        nn.init.normal_(last.attn.gate)
    mask = torch.rand(3, 9) < 0.6
    mask[:, 2] = True
    given = gather_given([(said(model, 4, 2), torch.tensor([1, -1, 0]))])
    whole = last(hidden, given, mask)
    alone = last(hidden, given, mask, True)
    assert alone.shape == (3, 1, 16)
    assert torch.allclose(alone, whole[:, :1], atol=1e-5, rtol=0)


@every_form
def test_a_batch_is_its_rows_one_by_one(form: dict[str, Any]) -> None:
    model = tiny_irm(gates_at=0.6, **form)
    ids, pictures, pixels = texts(4, 10), clothes(2), images(5)
    instructions = (told(TEXT, ids, 1, -1, 0, -1, 1), told(RGB, pictures, -1, 1, -1, -1, -1))
    encoded = model.encode_batch({RGB: pixels[:3], TEXT: ids, NIR: pixels[3:]}, split(instructions, 3))
    assert list(encoded) == [RGB, TEXT, NIR]
    together = torch.cat([encoded[RGB].pooled, encoded[NIR].pooled])
    alone = [
        model.encode(RGB, pixels[:1], (told(TEXT, ids[1:], 0),)),
        model.encode(RGB, pixels[1:2], (told(RGB, pictures[1:], 0),)),
        # The same text without its padding is the same instruction.
        model.encode(RGB, pixels[2:3], (told(TEXT, ids[:1, :4] if model.config.mask_padding else ids[:1], 0),)),
        model.encode(NIR, pixels[3:4]),
        model.encode(NIR, pixels[4:], (told(TEXT, ids[1:], 0),)),
    ]
    torch.testing.assert_close(together, torch.cat([one.pooled for one in alone]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        torch.cat([encoded[RGB].tokens, encoded[NIR].tokens]),
        torch.cat([one.tokens for one in alone]),
        atol=1e-4,
        rtol=1e-4,
    )
    distances = torch.cdist(together[:, : model.identity_dim], together[:, : model.identity_dim])
    assert distances[~torch.eye(5, dtype=torch.bool)].min() > 1e-3, "rows that all agree would prove nothing"


def split(instructions: tuple[Any, ...], first: int) -> dict[Modality, tuple[Any, ...]]:
    """Instructions of the first rows as RGB's, of the others as NIR's; the inputs stay the same tensors."""
    parts = {RGB: slice(0, first), NIR: slice(first, None)}
    return {
        modality: tuple(
            type(one)(modality=one.modality, inputs=one.inputs, rows=one.rows[part]) for one in instructions
        )
        for modality, part in parts.items()
    }


@every_form
def test_a_row_that_is_told_nothing_is_the_image_alone(form: dict[str, Any]) -> None:
    model = tiny_irm(gates_at=0.6, **form)
    plain = model.encode(RGB, images(3))
    # Row 1: no instruction. Row 2: one that is all padding.
    found = model.encode(RGB, images(3), (told(TEXT, texts(4, 0), 0, -1, 1),))
    assert torch.equal(found.pooled[1:], plain.pooled[1:])
    assert torch.equal(found.tokens[1:], plain.tokens[1:])
    assert bool(found.pooled.isfinite().all())
    found.pooled.sum().backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_pooled_row_has_an_identity_and_a_caption_part() -> None:
    model = tiny_irm(attention="dual", gates_at=0.6)
    pixels, ids = images(2), texts(4, 10)
    alone, captions = model.encode(RGB, pixels).pooled, model.encode(TEXT, ids).pooled
    instructed = model.encode(RGB, pixels, (told(TEXT, ids, 0, 1),)).pooled
    identity, caption = model.compared((RGB,)), model.compared((TEXT,))
    assert model.embed_dim == alone.shape[1] == 2 * 16 + 5
    assert alone[:, identity].shape == (2, 32) and alone[:, caption].shape == (2, 5)
    assert model.compared((NIR,)) == identity
    tower = model.encode_images(pixels)
    assert torch.equal(alone[:, identity], torch.cat([tower.cls, tower.cls], dim=1))
    torch.testing.assert_close(alone[:, caption], model.image_projection(tower.cls))
    torch.testing.assert_close(captions[:, caption], model.text_projection(said(model, 4, 10).cls))
    assert not captions[:, identity].any() and not instructed[:, caption].any()
    assert instructed[:, identity].abs().min() > 0


def test_captions_rank_by_their_cosine_where_features_are_compared_by_distance() -> None:
    model = tiny_irm(similarity="euclidean")
    part = model.compared((TEXT,))
    image, caption = model.encode(RGB, images(4)).pooled[:, part], model.encode(TEXT, texts(4, 10, 7)).pooled[:, part]
    raw = model.image_projection(model.encode_images(images(4)).cls)
    text = model.text_projection(said(model, 4, 10, 7).cls)
    cosine = F.normalize(text, dim=1) @ F.normalize(raw, dim=1).T
    torch.testing.assert_close(torch.cdist(caption, image).square(), 2 - 2 * cosine, atol=1e-5, rtol=1e-5)
    assert model.similarity == "euclidean" and tiny_irm().similarity == "cosine"


def test_what_leaves_through_the_neck() -> None:
    pooled, necked = (tiny_irm(attention="dual", gates_at=0.6, feature=feature) for feature in ("pooled", "neck"))
    given = (told(TEXT, texts(4), 0, -1),)
    before, after = (
        model.encode(RGB, images(2), given).pooled[:, :32].unflatten(1, (2, 16)) for model in (pooled, necked)
    )
    necks: tuple[tuple[int, Any], ...] = ((0, necked.out_neck), (1, necked.neck))
    for row, neck in necks:
        expected = (before[row] - neck.running_mean) / (neck.running_var + 1e-5).sqrt() * neck.weight
        torch.testing.assert_close(after[row], expected, atol=1e-5, rtol=1e-5)


def test_heads_of_the_tower_and_of_the_streams() -> None:
    streams = torch.randn(3, 2, 16)
    own, shared = tiny_irm(attention="dual"), tiny_irm(attention="dual", heads_shared=True)
    necked, logits = own.stream_heads(streams)
    assert logits.shape == (3, 2, IDENTITIES) and logits.dtype == torch.float32
    for stream in (0, 1):
        classifier: Any = own.out_classifiers[stream]
        expected = necked[:, stream] @ classifier.weight.T
        torch.testing.assert_close(logits[:, stream], expected)
    for stream in (0, 1):
        torch.testing.assert_close(shared.stream_heads(streams)[1][:, stream], shared.tower_head(streams[:, stream])[1])
    assert not hasattr(shared, "out_neck") and not hasattr(tiny_irm(attention="none"), "out_neck")
    # Each stream is normalised by its own rows.
    necked = own.train().stream_heads(streams)[0]
    torch.testing.assert_close(necked.mean(dim=0), torch.zeros(2, 16), atol=1e-5, rtol=0)
    assert {"neck.bias", "out_neck.bias"} == set(own.frozen_names)


def test_each_distinct_instruction_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_irm(), []
    real = IRM.encode_instructions

    def counted(self: IRM, modality: Modality, inputs: Tensor) -> Said:
        seen.append((modality, len(inputs)))
        return real(self, modality, inputs)

    monkeypatch.setattr(IRM, "encode_instructions", counted)
    instructions = (told(TEXT, texts(4, 10), 1, 0, 0, 1, 0, 1), told(RGB, clothes(1), -1, -1, -1, -1, -1, -1))
    model.encode_batch({RGB: images(4), NIR: images(2)}, split(instructions, 4))
    assert seen == [(TEXT, 2), (RGB, 1)]


@every_form
def test_recomputed_activations_give_the_same_gradients_with_dropout(form: dict[str, Any]) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny_irm(gates_at=0.6, dropout=0.5, drop_path=0.5, **form).train()
        model.checkpoint_activations = recompute
        torch.manual_seed(7)
        given = (told(TEXT, texts(4, 10), 1, -1, 0, -1, -1, -1), told(RGB, clothes(1), -1, 0, -1, -1, -1, -1))
        encoded = model.encode_batch({RGB: images(6), TEXT: texts(7, 9, 10, 3, 4, 5)}, {RGB: given})
        loss = torch.stack([part.pooled.square().mean() for part in encoded.values()]).sum()
        if model.rescores((TEXT,)):
            loss = loss + model.match(encoded[TEXT], encoded[RGB]).square().mean()
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_frozen_encoders_get_no_gradient_and_no_dropout() -> None:
    model = tiny_irm(encoder="frozen", dropout=0.5, stem="residual", gates_at=0.6).train()
    before = copy.deepcopy({name: value for name, value in model.named_buffers() if name.startswith("clothes")})
    spoken, worn = said(model, 4, 10), model.encode_instructions(RGB, clothes(3))
    assert torch.equal(spoken.tokens, said(model, 4, 10).tokens)
    assert before and all(torch.equal(dict(model.named_buffers())[name], value) for name, value in before.items())
    tower = model.encode_images(images(3), [(spoken, torch.tensor([0, 1, -1])), (worn, torch.tensor([-1, -1, 2]))])
    fused = model.fused_tokens(spoken, tower.tokens[:2])
    (tower.cls.sum() + fused.square().sum() + model.caption_feature(spoken).sum()).backward()
    frozen = {
        name
        for name, value in model.named_parameters()
        if name.startswith(("text_encoder.emb", "text_encoder.lay", "clothes."))
    }
    assert frozen and frozen == set(model.frozen_names) - {"neck.bias", "out_neck.bias"}
    gradients = {name for name, value in model.named_parameters() if value.grad is not None}
    assert not gradients & frozen and {"text_projection.weight", "image.blocks.0.attn.gate"} <= gradients
    assert any(name.startswith("text_encoder.fusion") for name in gradients)
    assert "text_encoder.bias" not in frozen and tiny_irm().frozen_names == ("neck.bias", "out_neck.bias")


def test_fusion_layers_are_not_causal_even_without_a_mask() -> None:
    layer: Any = tiny_irm().text_encoder.fusion[0]
    hidden, image = torch.randn(1, 6, 16), torch.randn(1, 4, 16)
    changed = hidden.clone()
    changed[0, 5] += 1
    first, second = (layer(tokens, None, image)[0, 0] for tokens in (hidden, changed))
    assert (first - second).abs().max() > 1e-3, "the first token sees the last"


@pytest.mark.parametrize("form", [{}, {"attention": "dual"}, {"matching": "fusion"}], ids=form_name)
def test_matching_reads_each_pair_and_no_padding(form: dict[str, Any]) -> None:
    model = tiny_irm(**form)
    caption, image = model.encode(TEXT, texts(4, 10)), model.encode(RGB, images(3))
    tower = model.encode_images(images(3))
    texts_of, images_of = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 0])
    logits = model.match_logits(said(model, 4, 10), texts_of, tower, images_of)
    assert logits.shape == (4, 2) and logits.dtype == torch.float32
    for pair, (text, picture) in enumerate(zip(texts_of.tolist(), images_of.tolist())):
        short = model.encode(TEXT, texts(4, 10)[text : text + 1, : (4, 10)[text]])
        one = model.encode(RGB, images(3)[picture : picture + 1])
        torch.testing.assert_close(model.match(short, one), logits[pair, 1:], atol=1e-4, rtol=1e-4)
    assert (logits[:, 1].max() - logits[:, 1].min()) > 1e-3
    torch.testing.assert_close(
        model.match(caption, model.encode(RGB, images(2))),
        model.match_logits(
            said(model, 4, 10), torch.tensor([0, 1]), model.encode_images(images(2)), torch.tensor([0, 1])
        )[:, 1],
    )
    assert model.rescores((TEXT,)) and not model.rescores((NIR,)) and image.tokens.shape == (3, 9, 16)
    assert not tiny_irm(attention="none").rescores((TEXT,))


def test_attention_maps_name_their_module() -> None:
    given = (told(TEXT, texts(4, 10), 0, 1),)
    found = {}
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"editing": "none"},
        {"editing": "none", "attention": "dual"},
        {"matching": "fusion"},
    )
    for form in forms:
        model = tiny_irm(gates_at=0.6, **form)
        told_map = model.attention_maps(RGB, images(2), given)
        alone = model.attention_maps(RGB, images(2))
        caption = model.attention_maps(RGB, images(2), captions=texts(4, 10))
        for one in (told_map, alone, caption):
            assert one.weights.shape == (2, *GRID) and one.weights.dtype == torch.float32
            assert bool((one.weights > 0).all()) and bool((one.weights.sum(dim=(1, 2)) < 1).all())
        found[form_name(form)] = told_map.module, caption.module
        assert not torch.allclose(told_map.weights, alone.weights, rtol=1e-3)
    assert found["paper"] == ("editing layer 2, class token", "last layer of the attention module, class token")
    assert "attention module" in found["none"][0] and "instruction's" in found["none-dual"][0]
    assert found["fusion"][1].startswith("last cross-attention of the text encoder")
    with pytest.raises(UserError, match="attention=none"):
        tiny_irm(attention="none").attention_maps(RGB, images(2), captions=texts(4, 10))


def test_the_map_of_the_last_layer_is_what_its_softmax_gives() -> None:
    model = tiny_irm(gates_at=0.6)
    given = gather_given([(said(model, 4, 10), torch.tensor([0, 1]))])
    last = block(model, 1)
    hidden = last.norm1(block(model, 0)(model.image.embed(images(2)), given))
    query, key, _ = (hidden @ last.attn.qkv.weight.T + last.attn.qkv.bias).split(16, dim=2)
    heads = [
        (query[:, :1, part] @ key[:, :, part].transpose(1, 2) / 2).softmax(dim=2)[:, 0, 4:]
        for part in (slice(head, head + 4) for head in (0, 4, 8, 12))
    ]
    shown = model.attention_maps(RGB, images(2), (told(TEXT, texts(4, 10), 0, 1),))
    torch.testing.assert_close(shown.weights.flatten(1), torch.stack(heads).mean(dim=0), atol=1e-5, rtol=1e-5)


def test_the_residual_stem_gives_the_class_token_the_mean_of_the_patches() -> None:
    embed: Any = tiny_irm(stem="residual").image.embed
    tokens = embed(images(2))
    patches = embed.proj(embed.stem(images(2))).flatten(2).transpose(1, 2)
    assert patches.shape == (2, 8, 16)
    torch.testing.assert_close(tokens[:, 4:], patches + embed.patch_positions)
    torch.testing.assert_close(tokens[:, 0], embed.class_token[0] + patches.mean(dim=1) + embed.class_position[0])


def test_a_model_that_ignores_instructions_says_so() -> None:
    model = tiny_irm(editing="none", attention="none")
    assert not model.follows_instructions and tiny_irm(editing="none").follows_instructions
    assert tiny_irm(attention="none").follows_instructions
    with pytest.raises(UserError, match="takes no instruction"):
        model.encode(RGB, images(1), (told(TEXT, texts(4), 0),))
    assert model.encode(RGB, images(1)).pooled.shape == (1, 21)


def test_the_statistics_of_clothes_pictures_are_an_option() -> None:
    assert (tiny_irm().statistics, tiny_irm().instruction_statistics) == ("imagenet", "imagenet")
    assert tiny_irm(instruction_statistics="clip").instruction_statistics == "clip"


def test_what_cannot_be_encoded_is_refused() -> None:
    model = tiny_irm()
    with pytest.raises(UserError, match="not SK"):
        model.encode(Modality.SK, images(1))
    with pytest.raises(UserError, match="as instruction, not CP"):
        model.encode(RGB, images(1), (told(Modality.CP, clothes(1), 0),))
    with pytest.raises(UserError, match="model.image_size"):
        model.encode(RGB, images(1)[:, :, :32])
    with pytest.raises(UserError, match="12 positions"):
        model.encode(TEXT, torch.ones(1, 13, dtype=torch.int64))


def test_random_weights_follow_their_rules() -> None:
    config = tiny_config(width=64, stem="residual")
    model = IRM(config, 50)
    report = initialise_irm(model, config)
    assert report.count("new") == len(report.rows) == len(list(model.named_parameters()))
    attention = block(model, 0).attn
    assert not attention.gate.any() and not attention.qkv.bias.any() and model.temperature.item() == pytest.approx(0.07)
    for weight, std in (
        (attention.qkv.weight, 0.02),
        (model.classifier.weight, 0.001),
        (model.text_encoder.embeddings.word_embeddings.weight[1:], 0.02),
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.1)
    assert not model.text_encoder.embeddings.word_embeddings.weight[0].any(), "padding"


def test_every_block_is_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    model = tiny_irm()
    model.compile_blocks(mode="default")
    kinds = [type(block).__name__ for block, _ in compiled]
    # 2 of the image tower, 1 of clothes, 2 of the attention module; 1 text layer and 2 that look at images.
    assert (kinds.count("EditingBlock"), kinds.count("BertLayer"), len(kinds)) == (5, 3, 8)
    assert all(options == {"mode": "default"} for _, options in compiled)
