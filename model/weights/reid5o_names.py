"""Our parameter names, the released code's and CLIP's: one ordered table, first match wins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

_PREFIXES: tuple[tuple[str, str, str], ...] = (
    (r"text\.blocks\.", "clip_text_encoder.transformer.resblocks.", "transformer.resblocks."),
    (r"text\.projection", "clip_text_encoder.text_projection", "text_projection"),
    (r"text\.", "clip_text_encoder.", ""),
    (r"tokenizers\.(rgb|nir|cp|sk)\.conv\.", r"\1_tokenizer.conv1.", "visual.conv1."),
    (r"tokenizers\.(rgb|nir|cp|sk)\.", r"\1_tokenizer.", "visual."),
    (r"vision\.blocks\.", "vision_encoder.transformer.resblocks.", "visual.transformer.resblocks."),
    (r"vision\.projection", "vision_encoder.proj", "visual.proj"),
    (r"vision\.", "vision_encoder.", "visual."),
    (r"fusion\.attention\.qkv\.(weight|bias)", r"cross_attn.in_proj_\1", ""),
    (r"fusion\.attention\.proj\.", "cross_attn.out_proj.", ""),
    (r"fusion\.blocks\.", "cross_modal_transformer.resblocks.", ""),
    (r"fusion\.head\.", "mm_head.", ""),
    (r"fusion\.", "", ""),
    (r"classifier\.", "classifier.", ""),
)
"""(our prefix, the released code's, CLIP's)."""

_INSIDE_BLOCK: tuple[tuple[str, str], ...] = (
    (r"norm1\.", "ln_1."),
    (r"norm2\.", "ln_2."),
    (r"attn\.qkv\.lora_up\.(\d+)", r"attn.in_proj_weight_withloras.\1.lora_A_param"),
    (r"attn\.qkv\.lora_down\.(\d+)", r"attn.in_proj_weight_withloras.\1.lora_B_param"),
    (r"attn\.proj\.lora_up\.(\d+)", r"attn.out_proj_weight_withloras.\1.lora_A_param"),
    (r"attn\.proj\.lora_down\.(\d+)", r"attn.out_proj_weight_withloras.\1.lora_B_param"),
    (r"attn\.qkv\.(weight|bias)", r"attn.in_proj_\1"),
    (r"attn\.proj\.", "attn.out_proj."),
    (r"mlp\.fc1\.lora_down\.", "mlp.c_fc.loras_A."),
    (r"mlp\.fc1\.lora_up\.", "mlp.c_fc.loras_B."),
    (r"mlp\.fc2\.lora_down\.", "mlp.c_proj.loras_A."),
    (r"mlp\.fc2\.lora_up\.", "mlp.c_proj.loras_B."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
)
"""(ours, theirs) after `blocks.<index>.`, the same in the released code and in CLIP."""

CLIP_ONLY = frozenset({"logit_scale", "input_resolution", "context_length", "vocab_size"})
"""Entries of a CLIP archive that no part of ours needs."""


@dataclass(frozen=True)
class ReferenceName:
    """Where a parameter of ours lies in another layout. transposed: stored as the transpose of ours."""

    name: str
    transposed: bool


def reference_name(name: str) -> ReferenceName:
    """Return the released code's name of our parameter `name`.

    The experts of the attention are stored there by output first, hence transposed. Raises KeyError for another name.
    """
    translated = _translate(name, 1)
    return ReferenceName(translated, "_withloras." in translated)


def clip_name(name: str) -> str | None:
    """Return the name of our parameter `name` in OpenAI's CLIP archives, or None when CLIP has no such parameter."""
    if not name.startswith(("text.", "tokenizers.", "vision.")) or ".lora_" in name:
        return None
    return _translate(name, 2)


def alias_names(names: Iterable[str]) -> dict[str, str]:
    """Return the second names of the released layout for our parameter `names`: alias -> the entry it repeats.

    The reference registers the base weight once more with every expert of an attention projection.
    """
    aliases: dict[str, str] = {}
    for name in names:
        match = re.fullmatch(r"(.*\.attn\.(?:qkv|proj))\.lora_up\.\d+", name)
        if match:
            expert = reference_name(name).name.removesuffix("lora_A_param")
            aliases[f"{expert}orig_param"] = reference_name(f"{match.group(1)}.weight").name
    return aliases


def released_in_half(name: str) -> bool:
    """Return whether released checkpoints store the entry in float16.

    Linear and convolution weights and biases, attention projections, experts and output projections are;
    layer norms and embeddings are float32.
    """
    if name.endswith(("positional_embedding", "class_embedding", "token_embedding.weight")):
        return False
    return re.search(r"(^|\.)(ln|ln_1|ln_2|ln_pre|ln_post|ln_final)\.(weight|bias)$", name) is None


def _translate(name: str, column: int) -> str:
    row, match = _first_match(_PREFIXES, name)
    rest = name[match.end() :]
    index, dot, inner = rest.partition(".")
    if index.isdigit():
        inside, inner_match = _first_match(_INSIDE_BLOCK, inner)
        rest = index + dot + inner_match.expand(inside[1]) + inner[inner_match.end() :]
    return match.expand(row[column]) + rest


def _first_match(table: tuple[tuple[str, ...], ...], name: str) -> tuple[tuple[str, ...], re.Match[str]]:
    for row in table:
        match = re.match(row[0], name)
        if match:
            return row, match
    raise KeyError(name)


def official_names(model: nn.Module) -> dict[str, str]:
    """Return the released code's name of each parameter of a ReID5o model: ours -> reference."""
    return {name: reference_name(name).name for name, _ in model.named_parameters()}
