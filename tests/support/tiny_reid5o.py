"""A ReID5o that takes milliseconds."""

from __future__ import annotations

from typing import Any

from configs.schema.reid5o import LoraConfig, Reid5oConfig


def tiny_reid5o_config(**lora: Any) -> Reid5oConfig:
    """Its sizes, with images of 32 x 16, seven pieces of text and adapters in one layer, changed by `lora`."""
    return Reid5oConfig(
        image_size=(32, 16),
        embed_dim=64,
        vision_width=64,
        vision_layers=2,
        text_width=64,
        text_layers=1,
        text_length=7,
        vocab_size=50,
        mmt_depth=1,
        lora=LoraConfig(**{"layers": 1, **lora}),
    )
