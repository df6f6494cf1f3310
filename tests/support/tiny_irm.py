"""A tiny IRM, images, texts and clothes pictures for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from configs.schema.irm import IrmConfig
from configs.vocabulary import Modality
from model.interface import Instruction
from model.irm import IRM
from model.weights.irm import initialise_irm

IMAGE_SIZE, INSTRUCTION_SIZE, TEXT_LENGTH = (64, 32), (32, 32), 10
GRID = (4, 2)
IDENTITIES = 7


def tiny_config(**options: Any) -> IrmConfig:
    """Sizes of a model that takes milliseconds, changed by `options`."""
    sizes: dict[str, Any] = {
        "image_size": IMAGE_SIZE,
        "instruction_size": INSTRUCTION_SIZE,
        "vocab_size": 100,
        "text_length": TEXT_LENGTH,
        "text_positions": 12,
        "width": 16,
        "heads": 4,
        "layers": 2,
        "clothes_layers": 1,
        "text_layers": 1,
        "fusion_layers": 2,
        "caption_dim": 5,
        "stem_width": 4,
    }
    return IrmConfig(**sizes | options)


def tiny_irm(seed: int = 0, *, gates_at: float = 0.0, **options: Any) -> IRM:
    """A model at test, its weights drawn by its own rules and made larger, so that nothing is near 0."""
    torch.manual_seed(seed)
    config = tiny_config(**options)
    model = IRM(config, IDENTITIES)
    initialise_irm(model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".gate"):
                value.fill_(gates_at)
            elif value.dim() > 1:
                value.mul_(8)
            elif name.endswith("bias") and value.requires_grad:
                nn.init.normal_(value, std=0.1)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(statistic, std=0.1)
            elif name.endswith("running_var"):
                nn.init.uniform_(statistic, 0.5, 1.5)
    return model.eval()


def images(count: int, seed: int = 1) -> Tensor:
    """Normalised images (count, 3, 64, 32)."""
    return torch.randn(count, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def clothes(count: int, seed: int = 2) -> Tensor:
    """Normalised clothes pictures (count, 3, 32, 32)."""
    return torch.randn(count, 3, *INSTRUCTION_SIZE, generator=torch.Generator().manual_seed(seed))


def texts(*lengths: int, seed: int = 3) -> Tensor:
    """Token ids (len(lengths), 10): so many pieces, then padding."""
    ids = torch.randint(1, 100, (len(lengths), TEXT_LENGTH), generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(TEXT_LENGTH) < torch.tensor(lengths)[:, None], ids, 0)


def told(modality: Modality, inputs: Tensor, *rows: int) -> Instruction:
    """Instructions; rows: for each image which of them, -1 = none."""
    return Instruction(modality=modality, inputs=inputs, rows=torch.tensor(rows))
