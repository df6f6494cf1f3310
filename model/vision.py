"""Image side: a tokenizer per modality and the transformer that all modalities share.

Shapes: B rows, H x W pixels, ny x nx patches, L = 1 + ny nx tokens, C vision width, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.schema.reid5o import LoraConfig
from model.interface import Tokens
from model.layers import LayerNorm, clip_block, float32_linear, run_blocks
from model.lora import ExpertBlock, Groups
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """Sizes of the image side. image_size: (height, width) in pixels. lora: experts, or None for plain blocks."""

    image_size: tuple[int, int]
    patch_size: int
    stride: int
    width: int
    layers: int
    heads: int
    lora: LoraConfig | None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = ((side - self.patch_size) // self.stride + 1 for side in self.image_size)
        return rows, columns


class ImageTokenizer(nn.Module):
    """Patches of one modality: convolution, class embedding, position embedding, layer norm."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        rows, columns = spec.grid
        self.image_size = tuple(spec.image_size)
        self.conv = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(spec.width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, spec.width))
        self.ln_pre = LayerNorm(spec.width)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to (B, L, C). Raises UserError for another size."""
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            raise UserError(
                f"images of shape {tuple(images.shape)}: the model takes (rows, 3, {self.image_size[0]}, "
                f"{self.image_size[1]}); resize them or set model.image_size"
            )
        patches = self.conv(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)


class VisionTransformer(nn.Module):
    """CLIP's image transformer; the last blocks hold one expert per modality.

    Every token is normalised and projected; the pooled output is the class token's, in float32.
    """

    def __init__(self, spec: VisionSpec, embed_dim: int) -> None:
        super().__init__()
        plain = spec.layers - (spec.lora.layers if spec.lora else 0)
        blocks: list[nn.Module] = [clip_block(spec.width, spec.heads) for _ in range(plain)]
        if spec.lora:
            blocks += [ExpertBlock(spec.width, spec.heads, spec.lora) for _ in range(spec.lora.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_post = LayerNorm(spec.width)
        self.projection = nn.Parameter(torch.empty(spec.width, embed_dim))
        self.plain_layers = plain

    def forward(self, hidden: Tensor, groups: Groups, recompute: bool = False) -> Tokens:
        """Encode (B, L, C) whose rows are grouped by expert into tokens (B, L, D) and pooled (B, D)."""
        hidden = run_blocks(self.blocks[: self.plain_layers], hidden, recompute=recompute)
        hidden = run_blocks(self.blocks[self.plain_layers :], hidden, groups, recompute=recompute)
        normed = self.ln_post(hidden)
        return Tokens(tokens=normed @ self.projection, pooled=float32_linear(normed[:, 0], self.projection.t()))
