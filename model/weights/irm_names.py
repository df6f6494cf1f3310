"""Names of released IRM checkpoints -> ours, and what is left out of them, with the reason.

Its parts come from elsewhere and keep their names there: PASS's transformer, ALBEF's image and text encoders, BERT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from model.weights.clip import count_blocks
from utils.errors import UserError

TOWER_RULES: tuple[tuple[str, str], ...] = (
    (r"cls_token", "embed.class_token"),
    (r"cls_pos", "embed.class_position"),
    (r"patch_embed\.proj\.(weight|bias)", r"embed.proj.\1"),
    (r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))", r"\1"),
    (r"(norm\.(?:weight|bias))", r"\1"),
)
"""Of a vision transformer as timm, PASS and ALBEF name it; its positions and part tokens are counted."""

BERT_RULES: tuple[tuple[str, str], ...] = (
    (r"bert\.embeddings\.(word_embeddings|position_embeddings|token_type_embeddings)\.weight", r"embeddings.\1.weight"),
    (r"bert\.embeddings\.LayerNorm\.(weight|bias)", r"embeddings.LayerNorm.\1"),
    (r"cls\.predictions\.bias", "bias"),
    (r"cls\.predictions\.transform\.(dense|LayerNorm)\.(weight|bias)", r"transform.\1.\2"),
)
BERT_LAYER = (
    r"bert\.encoder\.layer\.(\d+)\."
    r"((?:attention|crossattention)\.(?:self\.(?:query|key|value)|output\.(?:dense|LayerNorm))\.(?:weight|bias)"
    r"|(?:intermediate|output)\.(?:dense|LayerNorm)\.(?:weight|bias))"
)
BERT_UNUSED: tuple[tuple[str, str], ...] = (
    (r"bert\.embeddings\.position_ids", "the numbers 0, 1, 2, ..."),
    (r"cls\.predictions\.decoder\.(weight|bias)", "the word embedding and the bias of the head once more"),
)

OTHER_RULES: tuple[tuple[str, str], ...] = (
    (r"temp", "temperature"),
    (r"vision_proj\.(weight|bias)", r"image_projection.\1"),
    (r"text_proj\.(weight|bias)", r"text_projection.\1"),
    (r"feat_bn\.(.*)", r"neck.\1"),
    (r"fusion_feat_bn\.(.*)", r"out_neck.\1"),
    (r"classifier\.weight", "classifier.weight"),
    (r"classifier_f\.weight", "out_classifiers.0.weight"),
    (r"classifier_c\.weight", "out_classifiers.1.weight"),
    (r"itm_head\.(weight|bias)", r"match_head.\1"),
    (r"mrtd_head\.(weight|bias)", r"replaced_head.\1"),
)
UNUSED: tuple[tuple[str, str], ...] = (
    (r"(image_queue|text_queue|idx_queue|queue_ptr)", "queue of training, filled anew"),
    (r"(text_encoder_m|text_proj_m|vision_proj_m)\..*", "momentum copy, which training makes anew"),
    (r"fusion\.\d+\..*", "never run: the released code runs the image tower's first and last block instead"),
    (r"(prd_head|project)\..*", "built and never used"),
    (r"visual_encoder\.fc\..*", "built and never used"),
)
"""Of a whole released model."""


def apply_rules(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Return our name of an entry, empty when no rule knows it."""
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    return ""


def reason_unused(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Return why an entry is left out, empty when it is not."""
    return next((reason for pattern, reason in rules if re.fullmatch(pattern, name)), "")


def rename_tower(state: Mapping[str, Tensor], prefix_rows: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return a vision transformer under our names, and the names that none of ours has.

    prefix_rows: rows of `pos_embed` before those of the patches: the class token's, then those of part tokens.
    """
    renamed: dict[str, Tensor] = {}
    foreign = []
    for name, value in state.items():
        part = re.fullmatch(r"part(?:_token(\d+)|(\d+)_pos)", name)
        if name == "pos_embed":
            renamed["embed.patch_positions"] = value[:, prefix_rows:]
            if prefix_rows:
                renamed["embed.class_position"] = value[:, :1]
            renamed |= {f"embed.part_positions.{row - 1}": value[:, row : row + 1] for row in range(1, prefix_rows)}
        elif name == "reg_token":
            renamed |= {f"embed.part_tokens.{row}": value[:, row : row + 1] for row in range(value.shape[1])}
        elif part:
            kind = "part_tokens" if part[1] else "part_positions"
            renamed[f"embed.{kind}.{int(part[1] or part[2]) - 1}"] = value
        elif ours := apply_rules(name, TOWER_RULES):
            renamed[ours] = value
        else:
            foreign.append(name)
    return renamed, foreign


def text_only_layers(state: Mapping[str, Tensor]) -> int:
    """Return how many layers of a text encoder see no image: those before the first with cross-attention."""
    layers = count_blocks(state, "bert.encoder.layer.")
    crossed = [int(found[1]) for name in state if (found := re.match(r"bert\.encoder\.layer\.(\d+)\.cross", name))]
    return min(crossed, default=layers)


def rename_text(state: Mapping[str, Tensor], text_layers: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return a text encoder of BERT's or ALBEF's under our names, and the names that none of ours has.

    text_layers: from this layer on they are fusion layers. What BERT_UNUSED names is left out.
    """
    renamed: dict[str, Tensor] = {}
    foreign = []
    for name, value in state.items():
        layer = re.fullmatch(BERT_LAYER, name)
        if layer:
            number = int(layer[1])
            place = f"layers.{number}" if number < text_layers else f"fusion.{number - text_layers}"
            renamed[f"{place}.{layer[2]}"] = value
        elif ours := apply_rules(name, BERT_RULES):
            renamed[ours] = value
        elif not reason_unused(name, BERT_UNUSED):
            foreign.append(name)
    return renamed, foreign


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def rename_released(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return a released IRM under our names. Raises UserError for an entry that is neither known nor left out."""
    kept = {name: value for name, value in state.items() if not reason_unused(name, UNUSED)}
    towers = {
        "image.": rename_tower(under(kept, "visual_encoder."), prefix_rows=0),
        "clothes.": rename_tower(under(kept, "visual_encoder_m."), prefix_rows=1),
        "text_encoder.": rename_text(text := under(kept, "text_encoder."), text_only_layers(text)),
    }
    renamed: dict[str, Tensor] = {}
    foreign = []
    for prefix, (entries, unknown) in towers.items():
        renamed |= {prefix + name: value for name, value in entries.items()}
        foreign += [
            {"image.": "visual_encoder.", "clothes.": "visual_encoder_m."}.get(prefix, prefix) + n for n in unknown
        ]
    for name, value in kept.items():
        if not name.startswith(("visual_encoder.", "visual_encoder_m.", "text_encoder.")):
            ours = apply_rules(name, OTHER_RULES)
            if ours:
                renamed[ours] = value
            else:
                foreign.append(name)
    if foreign:
        raise UserError(
            f"{where}: entry {foreign[0]!r} belongs to no released IRM model; give an unchanged checkpoint of the "
            "released code"
        )
    return renamed
