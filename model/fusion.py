"""Fusion of the tokens of a mixed query into one vector.

Shapes: B rows, S tokens of all members, D embed_dim.
"""

from __future__ import annotations

from timm.layers import QuickGELU
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from model.layers import LayerNorm, attend, clip_block, float32_linear, run_blocks


class FusionHead(nn.Module):
    """Linear, QuickGELU, layer norm, mean over the tokens, linear.

    The reference takes the mean last; a linear map commutes with it, so this is equal and S times cheaper.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.activation = QuickGELU()
        self.ln = LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, S, D) to (B, D) float32."""
        normed = self.ln(self.activation(self.dense(hidden)))
        return float32_linear(normed.float().mean(dim=1), self.fc.weight, self.fc.bias)


class Fusion(nn.Module):
    """Self-attention without residual, `depth` blocks, head. Nothing depends on the order of the tokens.

    Source: reference. `prepare` does what acts on each token alone, so that a source in many queries is prepared once.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.ln_pre = LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.blocks = nn.ModuleList(clip_block(width, heads) for _ in range(depth))
        self.ln_post = LayerNorm(width)
        self.head = FusionHead(width)

    def prepare(self, tokens: Tensor) -> Tensor:
        """Normalise and project to the first attention's query, key and value, (B, L, D) -> (B, L, 3D)."""
        return self.attention.qkv(self.ln_pre(tokens))

    def forward(self, prepared: Tensor, recompute: bool = False) -> Tensor:
        """Fuse prepared tokens (B, S, 3D) of all members into (B, D) float32."""
        hidden = self.attention.proj(attend(prepared, self.attention.num_heads))
        hidden = run_blocks(self.blocks, hidden, recompute=recompute)
        return self.head(self.ln_post(hidden))
