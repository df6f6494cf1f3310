"""Text side: CLIP's causal text transformer.

Shapes: B rows, T tokens, W text width, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.interface import Tokens
from model.layers import LayerNorm, clip_block, float32_linear, run_blocks
from utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Sizes of the text side. length: tokens of a caption, padding included."""

    length: int
    vocab_size: int
    width: int
    layers: int
    heads: int


class TextTransformer(nn.Module):
    """CLIP's text tower. Padding takes part like any token, as in the reference; no token sees a later one.

    Every position is projected; the pooled output is the position of the largest id (the end token), in float32.
    """

    def __init__(self, spec: TextSpec, embed_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.width)
        self.positional_embedding = nn.Parameter(torch.empty(spec.length, spec.width))
        self.blocks = nn.ModuleList(clip_block(spec.width, spec.heads) for _ in range(spec.layers))
        self.ln_final = LayerNorm(spec.width)
        self.projection = nn.Parameter(torch.empty(spec.width, embed_dim))

    def forward(self, ids: Tensor, recompute: bool = False) -> Tokens:
        """Encode token ids (B, T) into tokens (B, T, D) and pooled (B, D). Raises UserError for another length."""
        length = self.positional_embedding.shape[0]
        if ids.dim() != 2 or ids.shape[1] != length:
            raise UserError(
                f"token ids of shape {tuple(ids.shape)}: the model takes (rows, {length}); tokenize to that length or "
                "set model.text_length"
            )
        hidden = self.token_embedding(ids) + self.positional_embedding
        normed = self.ln_final(run_blocks(self.blocks, hidden, None, True, recompute=recompute))
        last = normed[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        return Tokens(tokens=normed @ self.projection, pooled=float32_linear(last, self.projection.t()))
