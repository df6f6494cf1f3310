"""Golden checks of IRM: its parts one by one, the released model whole, the list of its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from parity_common import Kind, Row, exact, max_error
from torch import Tensor

from configs.vocabulary import Modality
from model.editing import EditingAttention, ImageTower, Tower, TowerSpec
from model.instruction_attention import InstructionAttention
from model.instruction_encoders import TextEncoder, TextSpec
from model.interface import Instruction
from model.irm import IRM
from model.said import Given, Said, gather_given
from model.weights.clip import count_blocks
from model.weights.irm_names import UNUSED, reason_unused, rename_released, rename_text, rename_tower, text_only_layers
from model.weights.irm_released import our_state, released_sizes
from model.weights.positions import resize_grid
from solver.losses.masked_language import masked_language_loss

TOLERANCE = 1e-5
HEADS_OF_THE_WHOLE_MODEL = 4
"""Of the tiny whole models, whose files do not say it."""


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under their released names, and everything else; float64, so that only the goldens round."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in arrays.items()}
    return {name[2:]: value for name, value in doubled.items() if name.startswith("w.")}, doubled


def _row(name: str, value: Tensor, golden: dict[str, Tensor], tolerance: float = TOLERANCE) -> Row:
    return Row(name, max_error(value.detach().numpy(), golden[name].numpy()), tolerance)


def check_tower(path: Path) -> list[Row]:
    """PASS's transformer: class token, the three part tokens, patches; in float64 and in float32."""
    weights, golden = _load(path)
    patch = int(golden["patch"])
    spec = TowerSpec(
        image_size=(golden["x"].shape[2], golden["x"].shape[3]),
        patch_size=patch,
        width=int(golden["embed_dim"]),
        layers=int(golden["depth"]),
        heads=int(golden["num_heads"]),
        part_tokens=3,
        mlp_ratio=float(golden["mlp_ratio"]),
        eps=float(golden["ln_eps"]),
    )
    renamed, left = rename_tower({name: value for name, value in weights.items() if not name.startswith("fc.")}, 0)
    rows = [exact(not left, "every weight has a place")]
    for width, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        tower = ImageTower(spec).to(dtype).eval()
        tower.load_state_dict(renamed)
        tokens, images = tower.all_tokens(golden["x"].to(dtype)), golden["x"].to(dtype)
        found = {"global": tokens[:, 0], "part1": tokens[:, 1], "part2": tokens[:, 2], "part3": tokens[:, 3]}
        found["patches"] = tokens[:, 4:]
        rows += [_row(f"{name}_{width}", value, golden) for name, value in found.items()]
        rows.append(
            exact(torch.equal(tower(images).tokens, tokens[:, [0, *range(4, tokens.shape[1])]]), f"kept_{width}")
        )
    return rows


def check_dual_attention(path: Path) -> list[Row]:
    """Two streams with exchanged class tokens: through the image tower's blocks 0 and last, and through their own."""
    _, golden = _load(path)
    heads, eps, width = int(golden["num_heads"]), float(golden["ln_eps"]), golden["bio"].shape[2]
    image, spoken = golden["bio"], golden["clo"]
    rows = []
    for form, prefix in (("executed", "vit.w.blocks."), ("own", "own.w.")):
        weights = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
        layers = count_blocks(weights, "")
        ratio = weights["0.mlp.fc1.weight"].shape[0] / width
        spec = TowerSpec(
            image_size=(16, 16), patch_size=16, width=width, layers=layers, heads=heads, mlp_ratio=ratio, eps=eps
        )
        module = InstructionAttention(spec, "dual", layers, mask_padding=False).double().eval()
        module.blocks.load_state_dict(weights)
        blocks = [module.blocks[0], module.blocks[-1]] if form == "executed" else list(module.blocks)
        tower = Tower(cls=image[:, 0], tokens=image)
        mask = torch.ones(spoken.shape[:2], dtype=torch.bool)
        given = gather_given([(Said(tokens=spoken, mask=mask), torch.arange(len(spoken)))])
        assert given is not None
        streams = module(tower, given, blocks)
        for index, name in enumerate((f"{form}_bio_fusion", f"{form}_clo_fusion")):
            tokens, keys = module._inputs(tower, given)[index]
            rows.append(_row(name, module._run(blocks, tokens, keys, recompute=False), golden))
            error = max_error(streams[:, index].detach().numpy(), golden[name][:, 0].numpy())
            rows.append(Row(f"{name} as a feature", error, TOLERANCE))
    return rows


def check_text(path: Path) -> list[Row]:
    """BERT's text and fusion layers, scores of hidden ids, the loss of these, alone and with a teacher on both axes."""
    weights, golden = _load(path)
    spec = TextSpec(
        vocab_size=weights["bert.embeddings.word_embeddings.weight"].shape[0],
        positions=weights["bert.embeddings.position_embeddings.weight"].shape[0],
        width=golden["text_out"].shape[2],
        heads=int(golden["num_heads"]),
        layers=int(golden["fusion_layer"]),
        fusion_layers=int(golden["num_layers"]) - int(golden["fusion_layer"]),
        hidden=weights["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        eps=float(golden["ln_eps"]),
    )
    renamed, left = rename_text(weights, text_only_layers(weights))
    encoder = TextEncoder(spec).double().eval()
    encoder.load_state_dict(renamed)
    said = encoder(golden["input_ids"])
    rows = [
        exact(not left, "every weight has a place"),
        exact(torch.equal(said.mask, golden["attention_mask"] > 0), "padding is what the file says"),
    ]
    fused = encoder.fuse(said, golden["image_embeds"])
    logits, labels = encoder.language_logits(fused), golden["labels"]
    rows += [
        _row("text_out", said.tokens, golden),
        _row("fusion_out", fused, golden),
        _row("logits_first3", logits[:, :3], golden),
        _row("mlm_loss", masked_language_loss(logits, labels), golden),
    ]
    taught, share = golden["soft_labels_f32"].clamp_min(1e-300).log(), float(golden["alpha"])
    axes: dict[str, Any] = {"mlm_distill_release": "sequence", "mlm_distill_vocab_axis": "vocabulary"}
    for name, axis in axes.items():
        loss = masked_language_loss(logits, labels, taught=taught, distillation=share, axis=axis)
        rows.append(_row(name, loss, golden))
    return rows


def released_model(weights: dict[str, Tensor], heads: int) -> IRM:
    """Return the model of released weights, float64; what only training reads may be absent."""
    state, _ = our_state(weights, sizes := released_sizes(weights, heads), "golden")
    model = IRM(sizes, len(weights["classifier.weight"])).double().eval()
    model.load_state_dict(state)
    return model


def check_model(path: Path) -> list[Row]:
    """The released model at test: features under texts and clothes pictures, captions and images, matching scores."""
    weights, golden = _load(path)
    model = released_model(weights, HEADS_OF_THE_WHOLE_MODEL)
    ids, images, clothes = golden["input_ids"], golden["x"], golden["clothes"]
    rows, identity, caption = [], model.compared((Modality.RGB,)), model.compared((Modality.TEXT,))
    with torch.no_grad():
        for kind, modality, inputs in (("text", Modality.TEXT, ids), ("clothes", Modality.RGB, clothes)):
            told = Instruction(modality=modality, inputs=inputs, rows=torch.arange(len(images)))
            found = model.encode(Modality.RGB, images, (told,)).pooled
            rows.append(_row(f"retr_feat_{kind}_instr", found[:, identity], golden))
            rows.append(_row(f"{kind}_instr_cls", model.encode_instructions(modality, inputs).cls, golden))
        captions, alone = model.encode(Modality.TEXT, ids), model.encode(Modality.RGB, images)
        rows.append(_row("t2i_image_feat", alone.pooled[:, caption], golden))
        rows.append(_row("t2i_text_feat", captions.pooled[:, caption], golden))
        said, tower = model.encode_instructions(Modality.TEXT, ids), model.encode_images(images)
        texts, pictures = torch.cartesian_prod(torch.arange(len(ids)), torch.arange(len(images))).unbind(1)
        scores = model.match_logits(said, texts, tower, pictures)[:, 1].unflatten(0, (len(ids), -1))
        rows.append(_row("t2i_itm_scores", scores, golden))
    given = golden["attention_mask"] > 0
    rows.append(exact(torch.equal(said.mask, given), "padding is what the file says"))
    return rows


def check_positions(path: Path) -> list[Row]:
    """ALBEF's positions, bicubic behind the class row, and PASS's, bilinear without one; in the file's float32."""
    golden = {name: value.float() for name, value in _load(path)[1].items()}
    side, rows = int(golden["albef_new_grid"]), golden["albef_in"][0]
    old = round((len(rows) - 1) ** 0.5)
    albef = torch.cat([rows[:1], resize_grid(rows[1:], (old, old), (side, side), "bicubic")])
    before, after = (tuple(golden[f"pass_hw_{when}"].int().tolist()) for when in ("old", "new"))
    bilinear = resize_grid(golden["pass_in"][0], before, after, "bilinear")
    return [
        _row("albef_out_bicubic", albef[None], golden, 1e-6),
        _row("pass_out_bilinear", bilinear[None], golden, 1e-6),
    ]


def check_editing(path: Path) -> list[Row]:
    """Editing attention with keys and values of its own: the gate at 0, as it is, and its tanh."""
    weights, golden = _load(path)
    x, spoken, heads = golden["x"], golden["instr"], int(golden["heads"])
    rows = []
    forms: tuple[tuple[str, Literal["raw", "tanh"]], ...] = (
        ("gate0", "raw"),
        ("gate_raw", "raw"),
        ("gate_tanh", "tanh"),
    )
    for name, gate in forms:
        spec = TowerSpec(
            image_size=(16, 16), patch_size=16, width=x.shape[2], layers=1, heads=heads, editing="own",
            gate=gate, instruction_width=spoken.shape[2],
        )  # fmt: skip
        attention = EditingAttention(spec).double()
        attention.load_state_dict(
            {
                "qkv.weight": torch.cat([weights[name] for name in ("q", "k", "v")]),
                "qkv.bias": torch.cat([weights[name] for name in ("bq", "bk", "bv")]),
                "proj.weight": weights["o"],
                "proj.bias": weights["bo"],
                "instruction_kv.weight": torch.cat([weights["k2"], weights["v2"]]),
                "instruction_kv.bias": torch.cat([weights["bk2"], weights["bv2"]]),
                "gate": torch.zeros(heads) if name == "gate0" else golden["gate"],
            }
        )
        all_of_it = torch.ones(spoken.shape[:2], dtype=torch.bool)
        told = Given(spoken, torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool), all_of_it, all_of_it)
        rows.append(_row(f"out_{name}", attention(x, told), golden, 1e-10))
    return rows


def check_key_shapes(path: Path) -> list[Row]:
    """Every entry of the full-size model: ours in shape and in whether it is trained, or left out for a reason."""
    state: dict[str, Tensor] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, shape, dtype, kind = line.split("\t")
            sizes = [int(size) for size in shape.strip("()").split(",") if size.strip()]
            state[name] = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta", requires_grad=kind == "P")
    renamed = rename_released(state, path.name)
    with torch.device("meta"):
        model = IRM(released_sizes(state), len(state["classifier.weight"]))
    ours: dict[str, Any] = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    theirs = {name: (tuple(value.shape), value.dtype) for name, value in renamed.items()}
    trained = {name: value.requires_grad for name, value in model.named_parameters()}
    left = {name: reason for name in state if (reason := reason_unused(name, UNUSED))}
    tied = {"text_encoder.cls.predictions.decoder.weight", "text_encoder.cls.predictions.decoder.bias"}
    counted = len(left) + len(tied) + len({"text_encoder.bert.embeddings.position_ids"}) + len(renamed) - 1
    return [
        exact(theirs == ours, f"{len(state)} entries: names, shapes and types of ours"),
        # The positions of clothes are one entry there and two here.
        exact(counted == len(state), f"{len(left) + 3} entries left out, the others have one place each"),
        exact({n: renamed[n].requires_grad for n in trained} == trained, f"{len(trained)} parameters trained alike"),
    ]


KINDS: tuple[Kind, ...] = (
    Kind("PASS vision transformer (IRM)", r"e_passvit_.*\.npz", check_tower),
    Kind("dual attention (IRM)", r"f_dualattn_.*\.npz", check_dual_attention),
    Kind("cross-modal BERT (IRM)", r"g_xbert_.*\.npz", check_text),
    Kind("full model, evaluation (IRM)", r"j_irm_eval_.*\.npz", check_model),
    Kind("position embeddings (IRM)", r"l_posembed_.*\.npz", check_positions),
    Kind("editing attention (IRM)", r"n_editing_attn_.*\.npz", check_editing),
    Kind("key shapes (IRM)", r"key_shapes_full_size\.txt", check_key_shapes),
)
