"""Released checkpoints of IRM: read with care, sized by their tensors, written as ours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema.irm import IrmConfig
from configs.vocabulary import Family
from model.irm import IRM
from model.weights.clip import count_blocks
from model.weights.converted import require_new_target, write_converted
from model.weights.irm import draw_irm
from model.weights.irm_names import UNUSED, reason_unused, rename_released, text_only_layers, under
from utils.checkpoint_io import load_tensors
from utils.errors import UserError

TOKENS = 70
"""Ids of a text in the released code."""
HEAD_WIDTH = 64
TRAINED_ALONE = ("text_encoder.transform.", "text_encoder.bias", "replaced_head.", "temperature")
"""What only training reads: a checkpoint may lack it."""


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Return the state of a released checkpoint: {'state_dict': it} or it, with or without `module.` before each name.

    Raises UserError for a file that holds anything but tensors and plain values, or another model.
    """
    content = load_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    state = {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    missing = [name for name in _NEEDED if name not in state]
    if missing:
        raise UserError(
            f"{path} is no released checkpoint of IRM (no {missing[0]}); give one that its training code has written"
        )
    return state


_NEEDED = (
    "visual_encoder.cls_token",
    "visual_encoder.pos_embed",
    "visual_encoder.patch_embed.proj.weight",
    "visual_encoder_m.pos_embed",
    "visual_encoder_m.patch_embed.proj.weight",
    "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.bert.embeddings.position_embeddings.weight",
    "text_encoder.bert.encoder.layer.0.intermediate.dense.weight",
    "text_proj.weight",
    "classifier.weight",
)


def released_sizes(state: Mapping[str, Tensor], heads: int | None = None) -> IrmConfig:
    """Return section `model` for a released state: sizes from the tensors, form as its code has it.

    heads: of all towers, which no tensor tells; None = one for each 64 channels, as in the full-size model. Raises
    UserError for sizes that such a model cannot have.
    """
    width, patch = (
        state["visual_encoder.cls_token"].shape[-1],
        state["visual_encoder.patch_embed.proj.weight"].shape[-1],
    )
    text = under(state, "text_encoder.")
    positions, patches = text["bert.embeddings.position_embeddings.weight"].shape[0], state["visual_encoder.pos_embed"]
    columns, side = math.isqrt(patches.shape[1] // 2), math.isqrt(state["visual_encoder_m.pos_embed"].shape[1] - 1)
    if 2 * columns**2 != patches.shape[1] or side**2 != state["visual_encoder_m.pos_embed"].shape[1] - 1:
        raise UserError(
            f"the checkpoint's position embeddings ({patches.shape[1]} patches of a person, "
            f"{state['visual_encoder_m.pos_embed'].shape[1] - 1} of clothes) are of no image twice as high as wide and "
            "of no square one; give an unchanged checkpoint"
        )
    text_layers = text_only_layers(text)
    try:
        return IrmConfig(
            image_size=(2 * columns * patch, columns * patch),
            instruction_size=(side * patch, side * patch),
            patch_size=patch,
            width=width,
            heads=max(1, width // HEAD_WIDTH) if heads is None else heads,
            layers=count_blocks(state, "visual_encoder.blocks."),
            part_tokens=sum(f"visual_encoder.part_token{number}" in state for number in range(1, len(state))),
            clothes_layers=count_blocks(state, "visual_encoder_m.blocks."),
            vocab_size=text["bert.embeddings.word_embeddings.weight"].shape[0],
            text_length=min(TOKENS, positions),
            text_positions=positions,
            text_layers=text_layers,
            fusion_layers=count_blocks(text, "bert.encoder.layer.") - text_layers,
            text_mlp_ratio=text["bert.encoder.layer.0.intermediate.dense.weight"].shape[0] / width,
            caption_dim=state["text_proj.weight"].shape[0],
            **RELEASED_FORM,
        )
    except ValueError as error:
        raise UserError(f"the checkpoint's sizes are those of no IRM model ({error}); give an unchanged one") from error


RELEASED_FORM: dict[str, Any] = {
    "tokenizer": "bert:bert-base-uncased",
    "editing": "none",
    "attention": "dual",
    "attention_weights": "image",
    "attention_layers": 2,
    "mask_padding": False,
    "feature": "neck",
    "similarity": "euclidean",
    "matching": "fusion",
}
"""What the released code does whatever its sizes."""


def our_state(state: Mapping[str, Tensor], sizes: IrmConfig, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return a whole state of ours for a released one, and which of its tensors the file lacks.

    Only what training alone reads may be absent; it is drawn anew, always alike. Raises UserError for an entry that is
    foreign, missing or of another shape, and for a head of masked language that is not the word embedding.
    """
    renamed = rename_released(state, where)
    _check_tied(state, where)
    identities = renamed["classifier.weight"].shape[0]
    with torch.device("meta"):
        own = IRM(sizes, identities).state_dict()
    lacking = sorted({*own} - {*renamed})
    wrong = (
        sorted({*renamed} - {*own})
        + [name for name in lacking if not name.startswith(TRAINED_ALONE)]
        + [name for name in own if name in renamed and own[name].shape != renamed[name].shape]
    )
    if wrong:
        raise UserError(
            f"{where} does not fit an IRM model of the sizes found in it: {wrong[0]} (and {len(wrong) - 1} more) is "
            "missing, unknown or of another shape; give an unchanged checkpoint"
        )
    if lacking:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = IRM(sizes, identities)
            draw_irm(drawn)
        renamed |= {name: value for name, value in drawn.state_dict().items() if name in lacking}
    return {name: renamed[name] for name in own}, lacking


def _check_tied(state: Mapping[str, Tensor], where: str) -> None:
    head, word = "text_encoder.cls.predictions.", "text_encoder.bert.embeddings.word_embeddings.weight"
    for copy, original in ((f"{head}decoder.weight", word), (f"{head}decoder.bias", f"{head}bias")):
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise UserError(
                f"{where}: {copy} differs from {original}, which the released code makes one; give an unchanged "
                "checkpoint"
            )


def left_out(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many entries are left out for which reason."""
    reasons = [reason for name in state if (reason := reason_unused(name, UNUSED))]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def convert_irm(source: str | Path, target: str | Path, heads: int | None = None) -> str:
    """Write a released checkpoint as one of ours, with its configuration beside it; return what is to be printed.

    heads: see `released_sizes`. Raises UserError when an entry is missing, unknown or of another shape.
    """
    require_new_target(source, target)
    state = read_released(source)
    sizes = released_sizes(state, heads)
    ours, drawn = our_state(state, sizes, str(source))
    identities = len(ours["classifier.weight"])
    options = {
        "family": Family.IRM.value,
        "model": dataclasses.asdict(sizes),
        "data": {"dataset": "omnireid"},
        "train": {"sampler": "identity"},
        "instruction": {"sentences": "released", "cc": "image"},
    }
    yaml_file = write_converted(target, ours, options, identities, str(source))
    left = [f"left out, {count} entries: {reason}" for reason, count in left_out(state).items()]
    if drawn:
        left.append(f"drawn anew, {len(drawn)} tensors that only training reads: {drawn[0]}, ...")
    return "\n".join(
        [
            f"{target}: {len(ours)} tensors of IRM, {identities} identities",
            *left,
            f"evaluate it: python test.py --config {yaml_file} --checkpoint {target} data.root=DIR "
            "model.tokenizer=bert:FOLDER-WITH-vocab.txt",
        ]
    )
