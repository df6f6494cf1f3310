"""Random initial weights: CLIP's rules for the encoders, the released code's for everything else.

Shapes: W width, N layers of a transformer, D embed_dim.
"""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import nn

from model.lora import ExpertLinear
from model.reid5o import IMAGE_MODALITIES, ReID5o
from model.vision import ImageTokenizer


def initialise_encoders(model: ReID5o) -> None:
    """Draw the tokenizers, the vision transformer and the text tower by CLIP's rules.

    Source: Radford et al. 2021, released initialisation; its rules for text blocks serve the vision blocks too, which
    CLIP leaves at torch's defaults. The four tokenizers start from the same tensors.
    """
    text, width = model.text, model.text_spec.width
    nn.init.normal_(text.token_embedding.weight, std=0.02)
    nn.init.normal_(text.positional_embedding, std=0.01)
    nn.init.normal_(text.projection, std=width**-0.5)
    _initialise_blocks(text.blocks, width)
    width = model.vision_spec.width
    first = model.tokenizers[IMAGE_MODALITIES[0].value]
    assert isinstance(first, ImageTokenizer)
    first.conv.reset_parameters()
    nn.init.normal_(first.class_embedding, std=width**-0.5)
    nn.init.normal_(first.positional_embedding, std=width**-0.5)
    for modality in IMAGE_MODALITIES[1:]:
        model.tokenizers[modality.value].load_state_dict(first.state_dict())
    nn.init.normal_(model.vision.projection, std=width**-0.5)
    _initialise_blocks(model.vision.blocks, width)


def initialise_new_parts(model: ReID5o) -> None:
    """Draw what no CLIP archive holds: experts, fusion, classifier. Source: reference."""
    for module in model.modules():
        if isinstance(module, ExpertLinear):
            module.reset_experts()
    fusion, width, depth = model.fusion, model.embed_dim, len(model.fusion.blocks)
    out_std = width**-0.5 * (2 * depth) ** -0.5
    _initialise_attention(fusion.attention, width**-0.5, out_std)
    _initialise_blocks(fusion.blocks, width)
    nn.init.normal_(fusion.head.dense.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(fusion.head.fc.weight, std=out_std)
    nn.init.normal_(model.classifier.weight, std=0.001)
    nn.init.zeros_(model.classifier.bias)


def _initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    # Projections back into the residual stream shrink with depth.
    out_std = width**-0.5 * (2 * max(1, len(blocks))) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        mlp: Any = block.mlp
        _initialise_attention(block.attn, width**-0.5, out_std)
        nn.init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(mlp.fc2.weight, std=out_std)


def _initialise_attention(attention: Any, in_std: float, out_std: float) -> None:
    # timm's or the fusion's: both have `qkv` and `proj`, linear or with experts.
    nn.init.normal_(attention.qkv.weight, std=in_std)
    nn.init.zeros_(attention.qkv.bias)
    nn.init.normal_(attention.proj.weight, std=out_std)
    nn.init.zeros_(attention.proj.bias)
