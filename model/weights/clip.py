"""Initial weights of ReID5o from CLIP, checked before training and reported tensor by tensor."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from prettytable import PrettyTable
from torch import Tensor

from configs.schema.reid5o import Reid5oConfig
from model.reid5o import ReID5o
from model.weights.clip_sources import ClipWeights, read_clip
from model.weights.initialise import initialise_encoders, initialise_new_parts
from model.weights.positions import resize_grid
from model.weights.reid5o_names import CLIP_ONLY, clip_name
from utils.errors import UserError

logger = logging.getLogger(__name__)

Action = Literal["loaded", "resized", "cut", "new", "ignored"]
ACTIONS: tuple[Action, ...] = ("loaded", "resized", "cut", "new", "ignored")


@dataclass(frozen=True, kw_only=True)
class InitialTensor:
    """One tensor: where its first values came from. detail: shapes of a resized or cut one, else empty."""

    name: str
    shape: tuple[int, ...]
    action: Action
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Report of an initialisation: one row per tensor of the model, and one per ignored tensor of the source."""

    source: str
    rows: tuple[InitialTensor, ...]

    def count(self, action: Action) -> int:
        """Return how many tensors were treated so."""
        return sum(row.action == action for row in self.rows)

    def format(self) -> str:
        """Return the table: part of the model by number of tensors loaded, resized, new; then each exception."""
        parts = list(dict.fromkeys(_part(row.name) for row in self.rows if row.action != "ignored"))
        columns = [action for action in ACTIONS if action != "ignored"]
        table = PrettyTable(["initial weights", *columns])
        table.align["initial weights"] = "l"
        for part in parts:
            members = [row for row in self.rows if row.action != "ignored" and _part(row.name) == part]
            table.add_row([part, *(sum(row.action == action for row in members) for action in columns)])
        lines = [f"initial weights from {self.source}", table.get_string()]
        lines += [
            f"{row.action}: {row.name} {row.detail}".rstrip()
            for row in self.rows
            if row.detail or row.action == "ignored"
        ]
        return "\n".join(lines)


def initialise_reid5o(model: ReID5o, config: Reid5oConfig) -> InitialWeights:
    """Give every parameter its first value: `random`, or CLIP's where it has one (see `read_clip`), new elsewhere.

    Raises UserError when the source is missing or damaged, or when its sizes are not the model's.
    """
    source = config.init
    if source == "random":
        initialise_encoders(model)
        initialise_new_parts(model)
        return InitialWeights(
            source=source, rows=tuple(_row(name, value, "new") for name, value in model.named_parameters())
        )
    if source.startswith("run:"):
        raise UserError(f"model.init = {source!r}: the weights of a run are taken by train.init_from={source[4:]}")
    clip = read_clip(source)
    initialise_new_parts(model)
    return load_clip(model, clip, config.position_resize)


def load_clip(model: ReID5o, clip: ClipWeights, position_resize: Literal["bilinear", "bicubic"]) -> InitialWeights:
    """Copy CLIP's tensors into the encoders, each tokenizer its own copy, in the parameters' dtype.

    Position embeddings of images are resized when their number differs, as the reference; those of text are cut when
    the model's captions are shorter. Raises UserError before anything is copied.
    """
    _check_sizes(model, clip)
    _check_names(model, clip)
    rows: list[InitialTensor] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = clip_name(name)
            if source is None:
                rows.append(_row(name, parameter, "new"))
                continue
            value, action, detail = _fitted(name, clip.tensors[source].float(), model, position_resize)
            if value.shape != parameter.shape:
                raise UserError(
                    f"{clip.source}: {source} has shape {tuple(value.shape)} where the model has "
                    f"{tuple(parameter.shape)}; the archive is not the CLIP model of these sizes"
                )
            parameter.copy_(value)
            rows.append(_row(name, parameter, action, detail))
    used = {clip_name(name) for name, _ in model.named_parameters()}
    rows += [_row(name, value, "ignored") for name, value in clip.tensors.items() if name not in used]
    return InitialWeights(source=clip.source, rows=tuple(rows))


def clip_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of a CLIP vision-transformer model under the names of section `model`.

    Raises KeyError for the first tensor that such a model would have.
    """
    return {
        "vision_width": tensors["visual.class_embedding"].shape[0],
        "vision_layers": count_blocks(tensors, "visual.transformer.resblocks."),
        "patch_size": tensors["visual.conv1.weight"].shape[-1],
        "embed_dim": tensors["text_projection"].shape[1],
        "text_width": tensors["ln_final.weight"].shape[0],
        "text_layers": count_blocks(tensors, "transformer.resblocks."),
        "vocab_size": tensors["token_embedding.weight"].shape[0],
    }


def count_blocks(names: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbered blocks `prefix`0., `prefix`1., ... there are."""
    return len({match.group(1) for name in names if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})


def resize_positions(embedding: Tensor, grid: tuple[int, int], method: Literal["bilinear", "bicubic"]) -> Tensor:
    """Resize (1 + n, C) of a square grid to (1 + ny nx, C); the class row is kept.

    bilinear: no antialiasing, corners not aligned. Source: reference. bicubic: antialiased, as timm and open_clip do.
    """
    side = int((embedding.shape[0] - 1) ** 0.5)
    resized = resize_grid(embedding[1:], (side, side), grid, method, antialias=method == "bicubic")
    return torch.cat([embedding[:1], resized])


def _fitted(
    name: str, value: Tensor, model: ReID5o, method: Literal["bilinear", "bicubic"]
) -> tuple[Tensor, Action, str]:
    if name == "text.positional_embedding" and value.shape[0] > model.text_spec.length:
        detail = f"{value.shape[0]} -> {model.text_spec.length} positions"
        return value[: model.text_spec.length], "cut", detail
    if name.startswith("tokenizers.") and name.endswith(".positional_embedding"):
        grid = model.vision_spec.grid
        count, side = value.shape[0] - 1, int((value.shape[0] - 1) ** 0.5)
        if count != grid[0] * grid[1]:
            return resize_positions(value, grid, method), "resized", f"{side}x{side} -> {grid[0]}x{grid[1]}, {method}"
        if (side, side) != grid:
            # As released: the number of patches is the same, so rows keep their place in the list, not on the grid.
            detail = f"{side}x{side} kept as {grid[0]}x{grid[1]} without resizing (same number of patches, as released)"
            logger.warning("%s: %s", name, detail)
            return value, "loaded", detail
    return value, "loaded", ""


def _check_sizes(model: ReID5o, clip: ClipWeights) -> None:
    try:
        found = clip_sizes(clip.tensors)
        positions = {key: clip.tensors[key].shape[0] for key in ("positional_embedding", "visual.positional_embedding")}
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{clip.source} is not a CLIP vision transformer ({error} is not in it); give ViT-B-16 or another ViT model"
        ) from error
    vision, text = model.vision_spec, model.text_spec
    expected = {
        "vision_width": vision.width,
        "vision_layers": vision.layers,
        "patch_size": vision.patch_size,
        "embed_dim": model.embed_dim,
        "text_width": text.width,
        "text_layers": text.layers,
        "vocab_size": text.vocab_size,
    }
    for key, stated, used in (
        ("vision_heads", clip.vision_heads, vision.heads),
        ("text_heads", clip.text_heads, text.heads),
    ):
        if stated is not None:
            found[key], expected[key] = stated, used
    wrong = [key for key in expected if found[key] != expected[key]]
    if wrong:
        sizes = ", ".join(f"{key} {found[key]} (the model: {expected[key]})" for key in wrong)
        remedy = " ".join(f"model.{key}={found[key]}" for key in wrong)
        raise UserError(f"{clip.source} is of another architecture: {sizes}; choose other weights or set {remedy}")
    if positions["positional_embedding"] < text.length:
        raise UserError(
            f"{clip.source} knows {positions['positional_embedding']} text positions and model.text_length is "
            f"{text.length}; set model.text_length to at most {positions['positional_embedding']}"
        )
    patches = positions["visual.positional_embedding"] - 1
    if patches < 1 or int(patches**0.5) ** 2 != patches:
        raise UserError(
            f"{clip.source} has {patches} image positions, which is no square grid; give CLIP's own weights"
        )


def _check_names(model: ReID5o, clip: ClipWeights) -> None:
    wanted = {source for name, _ in model.named_parameters() if (source := clip_name(name)) is not None}
    missing = sorted(wanted - set(clip.tensors))
    # Text blocks of scripted archives carry their causal mask.
    extra = sorted(name for name in set(clip.tensors) - wanted - CLIP_ONLY if not name.endswith("attn_mask"))
    if missing or extra:
        culprit = (
            f"{len(missing)} tensors are missing ({missing[0]}, ...)"
            if missing
            else (f"{len(extra)} tensors have no place ({extra[0]}, ...)")
        )
        raise UserError(f"{clip.source} is not a plain CLIP vision transformer: {culprit}; give OpenAI-layout weights")


def _row(name: str, value: Tensor, action: Action, detail: str = "") -> InitialTensor:
    return InitialTensor(name=name, shape=tuple(value.shape), action=action, detail=detail)


def _part(name: str) -> str:
    if ".lora_" in name:
        return "experts"
    pieces = name.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "tokenizers" else pieces[0]
