"""Where CLIP weights come from: OpenAI archives, Hugging Face, open_clip; each returned under OpenAI's names."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.weights.archives import is_torchscript, read_torchscript, scripted_activations
from model.weights.model_folders import read_configuration
from utils.checkpoint_io import load_tensors
from utils.errors import UserError, nearest
from utils.foreign import foreign_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipWeights:
    """CLIP weights under OpenAI's names. heads: of the vision and the text transformer, None where not stated."""

    source: str
    tensors: dict[str, Tensor]
    vision_heads: int | None = None
    text_heads: int | None = None


def read_clip(source: str) -> ClipWeights:
    """Read `FILE.pt` (an OpenAI archive or a plain state dict), `hf:DIRECTORY-OR-HUB-ID` or `open_clip:MODEL/TAG`.

    Raises UserError when it is missing, damaged, no CLIP model, or of another activation than QuickGELU.
    """
    if source.startswith("hf:"):
        return _read_hugging_face(source)
    if source.startswith("open_clip:"):
        return _read_open_clip(source)
    return _read_file(source)


def _read_file(source: str) -> ClipWeights:
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"no such file of CLIP weights: {source}; give random, FILE.pt, hf:DIRECTORY-OR-HUB-ID or "
            "open_clip:MODEL/TAG as model.init"
        )
    if is_torchscript(path):
        _require_quick_gelu(source, scripted_activations(path) or {"QuickGELU"})
        return ClipWeights(source=source, tensors=read_torchscript(path))
    content = load_tensors(path)
    logger.warning(
        "%s does not say which activation it was trained with, and ReID5o computes QuickGELU: weights of another one "
        "(LAION's and others without -quickgelu in their names) give other features",
        source,
    )
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no dictionary of weights; give an OpenAI CLIP archive or a state_dict")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    return ClipWeights(source=source, tensors=tensors)


def _read_hugging_face(source: str) -> ClipWeights:
    from transformers import CLIPConfig, CLIPModel

    name = source.removeprefix("hf:")
    remedy = "give a directory with config.json and model.safetensors, or check the hub id and the network"
    with foreign_file(f"{source} cannot be read as a Hugging Face CLIP model", remedy):
        config = read_configuration(CLIPConfig, name, source, "hf:openai/clip-vit-base-patch16")
        _require_quick_gelu(source, {config.vision_config.hidden_act, config.text_config.hidden_act})
        loaded: Any = CLIPModel.from_pretrained(name, config=config, output_loading_info=True)
        model, loading = loaded
    missing = sorted(str(key) for key in loading["missing_keys"] if not str(key).endswith("position_ids"))
    if missing:
        raise UserError(f"{source} lacks {len(missing)} of its model's weights, {missing[0]} first; download it again")
    return ClipWeights(
        source=source,
        tensors=_from_hugging_face(model.state_dict()),
        vision_heads=config.vision_config.num_attention_heads,
        text_heads=config.text_config.num_attention_heads,
    )


_HUGGING_FACE: tuple[tuple[str, str], ...] = (
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_projection\.weight", "text_projection"),
    (r"logit_scale", "logit_scale"),
)
"""Hugging Face's prefix, OpenAI's. `pre_layrnorm` is spelled so there."""

_HUGGING_FACE_INSIDE: tuple[tuple[str, str], ...] = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to OpenAI's layout: q, k, v joined, the two projections transposed."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if match:
            parts = [state[f"{match.group(1)}.self_attn.{part}_proj.{match.group(2)}"] for part in "qkv"]
            tensors[_from_hugging_face_name(match.group(1) + ".") + f"attn.in_proj_{match.group(2)}"] = torch.cat(parts)
        elif re.fullmatch(r".*\.self_attn\.[kv]_proj\.(weight|bias)", name) or name.endswith("position_ids"):
            continue
        else:
            projected = name in ("visual_projection.weight", "text_projection.weight")
            tensors[_from_hugging_face_name(name)] = value.t().contiguous() if projected else value
    return tensors


def _from_hugging_face_name(name: str) -> str:
    for prefix, replacement in _HUGGING_FACE:
        match = re.match(prefix, name)
        if match:
            renamed = replacement + name[match.end() :]
            for inside, ours in _HUGGING_FACE_INSIDE:
                renamed = renamed.replace(inside, ours)
            return renamed
    return name


def _read_open_clip(source: str) -> ClipWeights:
    import open_clip

    name, _, tag = source.removeprefix("open_clip:").partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"{source}: open_clip has no model {name!r}; {nearest(name, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tag or (tag not in tags and not Path(tag).is_file()):
        raise UserError(
            f"{source}: open_clip has no weights {tag!r} for {name}, and no such file exists; "
            f"{nearest(tag, tags) if tags else 'give MODEL/FILE'}"
        )
    with foreign_file(f"{source} cannot be loaded by open_clip", "check the file or the network"):
        model = open_clip.create_model(name, pretrained=tag, device="cpu")
    blocks = [module for module in model.modules() if isinstance(module, open_clip.transformer.ResidualAttentionBlock)]
    _require_quick_gelu(source, {type(block.mlp.gelu).__name__ for block in blocks} or {"no transformer"})
    heads = {
        side: next((block.attn.num_heads for block in getattr(part, "resblocks", ())), None)
        for side, part in (
            ("vision", getattr(model.visual, "transformer", None)),
            ("text", getattr(model, "transformer", None)),
        )
    }
    return ClipWeights(
        source=source, tensors=dict(model.state_dict()), vision_heads=heads["vision"], text_heads=heads["text"]
    )


def _require_quick_gelu(source: str, activations: set[Any]) -> None:
    wrong = sorted(str(name) for name in activations if str(name).lower().replace("_", "") != "quickgelu")
    if wrong:
        raise UserError(
            f"{source} was trained with the activation {wrong[0]}, and ReID5o computes QuickGELU; choose weights "
            "trained with QuickGELU (OpenAI's, or a -quickgelu model of open_clip)"
        )
