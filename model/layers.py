"""Pieces shared by the transformers: CLIP's block, attention over a ready-made QKV, activation checkpointing.

Shapes: B rows, L tokens, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNormFp32, QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import UserError

LayerNorm = partial(LayerNormFp32, eps=1e-5)
"""CLIP's layer norm: computed in float32 whatever autocast is in force, returned in the dtype of its input."""

HEAD_WIDTH = 64


def head_count(width: int, heads: int | None, what: str) -> int:
    """Return the attention heads of a transformer: `heads`, or one per 64 channels as in CLIP.

    Raises UserError when the width is not a multiple of the heads.
    """
    count = heads if heads is not None else max(1, width // HEAD_WIDTH)
    if count < 1 or width % count:
        raise UserError(
            f"{what}: a width of {width} cannot be divided among {count} attention heads; choose a width that is a "
            "multiple of the heads"
        )
    return count


def clip_block(width: int, heads: int) -> Block:
    """Return a pre-norm block of CLIP: QuickGELU, MLP of four times the width, biases everywhere, eps 1e-5."""
    return Block(width, heads, qkv_bias=True, act_layer=QuickGELU, norm_layer=LayerNorm)  # type: ignore[arg-type]


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Attend every token to every token of its row, (B, L, 3W) -> (B, L, W), before the output projection."""
    batch, length, width = qkv.shape
    split = qkv.reshape(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(batch, length, width // 3)


def run_blocks(
    blocks: Iterable[nn.Module], hidden: Tensor, *arguments: Any, recompute: bool, draws: bool = False
) -> Tensor:
    """Pass (B, L, W) through `blocks`, each called with `arguments` too.

    recompute: keep only the blocks' inputs and run each block again in the backward pass. The arguments are kept
    with the call, so the second run sees what the first saw. draws: the blocks draw random numbers (dropout), which the
    second run must repeat; restoring the generators costs time, so blocks without dropout leave it off.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            hidden = checkpoint(block, hidden, *arguments, use_reentrant=False, preserve_rng_state=draws)
        else:
            hidden = block(hidden, *arguments)
    return hidden


def float32_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map in float32 (float64 stays) also under autocast, (..., I) x (O, I) -> (..., O): for what is compared or
    classified.
    """
    with torch.autocast(device_type=inputs.device.type, enabled=False):
        if weight.dtype == torch.float64:
            return F.linear(inputs.double(), weight, bias)
        return F.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
