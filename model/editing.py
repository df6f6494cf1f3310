"""Image tower of IRM: a vision transformer whose layers may also attend to an instruction (editing transformer).

Shapes: B rows, H x W pixels, P = ny nx patches, R part tokens, N = 1 + R + P tokens, C width, U distinct instructions
of L tokens of width I.
Source: Instruct-ReID++, eqs. 3 to 6; the tower itself is PASS's ViT-B/16, whose part tokens stand behind the class
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from model.layers import run_blocks
from model.resnet import residual_map
from model.said import Given
from utils.errors import UserError

Editing = Literal["own", "shared", "none"]


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """Sizes of a tower. image_size: (height, width) in pixels. stem_width: of a residual stem, None = linear patches.

    instruction_width: I; editing, gate, gates: as in section `model`. drop_path: of the last block, rising from 0.
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    layers: int
    heads: int
    part_tokens: int = 0
    stem_width: int | None = None
    drop_path: float = 0.0
    editing: Editing = "none"
    gate: Literal["raw", "tanh"] = "raw"
    gates: Literal["head", "layer"] = "head"
    instruction_width: int | None = None
    mlp_ratio: float = 4.0
    eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class EditingAttention(nn.Module):
    """Self-attention that adds a second, gated attention to the instruction: one softmax over the row's own tokens, one
    over the instruction's (eq. 4), of the same queries.

    The gate starts at 0, where the layer is plain attention bit for bit. Departure from the paper, which writes the
    scale as the root of the whole width: that of a head, as its code has it.
    """

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        width = spec.width
        self.heads, self.editing, self.squash = spec.heads, spec.editing, spec.gate == "tanh"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if spec.editing == "own":
            self.instruction_kv = nn.Linear(spec.instruction_width or width, 2 * width)
        if spec.editing != "none":
            self.gate = nn.Parameter(torch.zeros(spec.heads if spec.gates == "head" else 1))

    def forward(
        self, hidden: Tensor, given: Given | None = None, mask: Tensor | None = None, first: bool = False
    ) -> Tensor:
        """Map (B, N, C) to the same, with `first` to (B, 1, C): what becomes of the first token alone.

        mask (B, N) bool: the tokens that may be attended to.
        """
        if first:
            (query,) = self._split(self._mapped(hidden[:, :1], slice(0, hidden.shape[2])), 1)
            key, value = self._split(self._mapped(hidden, slice(hidden.shape[2], None)), 2)
        else:
            query, key, value = self._split(self.qkv(hidden), 3)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=_over_heads(mask))
        if given is not None and self.editing != "none":
            key, value = (part[given.rows] for part in self._split(self._instruction(given.tokens), 2))
            told = F.scaled_dot_product_attention(query, key, value, attn_mask=_over_heads(given.mask))
            mixed = mixed + self._gate(given.told).to(told.dtype) * told
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what the first token of each row attends to within the row, (B, N) float32, mean of the heads."""
        query, key, _ = self._split(self.qkv(hidden), 3)
        return attention_weights(query[:, :, :1], key, mask)[:, 0]

    def _instruction(self, tokens: Tensor) -> Tensor:
        """Keys and values of instructions, (U, L, I) -> (U, L, 2C): each distinct one once."""
        if self.editing == "own":
            return self.instruction_kv(tokens)
        return self._mapped(tokens, slice(self.qkv.in_features, None))

    def _mapped(self, tokens: Tensor, outputs: slice) -> Tensor:
        """Some of what `qkv` makes of tokens: queries, keys and values stand one after the other."""
        return F.linear(tokens, self.qkv.weight[outputs], self.qkv.bias[outputs])

    def _gate(self, told: Tensor) -> Tensor:
        # (B, heads or 1, 1, 1); 0 for a row that is told nothing.
        gate = self.gate.tanh() if self.squash else self.gate
        return torch.where(told[:, None], gate, 0)[:, :, None, None]

    def _split(self, joined: Tensor, parts: int) -> tuple[Tensor, ...]:
        # (B, N, parts * C) -> parts times (B, heads, N, C / heads).
        batch, length, width = joined.shape
        return (
            joined.reshape(batch, length, parts, self.heads, width // parts // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )


class EditingBlock(Block):
    """timm's pre-norm block with attention that may edit."""

    def __init__(self, spec: TowerSpec, drop_path: float = 0.0) -> None:
        super().__init__(
            spec.width,
            spec.heads,
            mlp_ratio=spec.mlp_ratio,
            drop_path=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=spec.eps),  # type: ignore[arg-type]
        )
        self.attn = EditingAttention(spec)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, given: Given | None = None, mask: Tensor | None = None, first: bool = False
    ) -> Tensor:
        """Map (B, N, C) to the same, with `first` to (B, 1, C); see `EditingAttention`."""
        kept = hidden[:, :1] if first else hidden
        hidden = kept + self.drop_path1(self.attn(self.norm1(hidden), given, mask, first))
        return hidden + self.drop_path2(self.mlp(self.norm2(hidden)))


class TowerTokens(nn.Module):
    """Images to the tokens that a tower takes: class token, part tokens, patches, each with its position.

    With a residual stem the class token is the learned one plus the mean of the patches: a pooled path, by which small
    towers learn sooner.
    """

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.image_size, self.residual = tuple(spec.image_size), spec.stem_width is not None
        width, patches = spec.width, spec.grid[0] * spec.grid[1]
        if spec.stem_width is not None:
            self.stem: nn.Module = residual_map(spec.stem_width)
            self.proj: nn.Module = nn.Conv2d(8 * spec.stem_width, width, 1)
        else:
            self.stem = nn.Identity()
            self.proj = nn.Conv2d(3, width, spec.patch_size, stride=spec.patch_size)
        self.class_token, self.class_position = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.part_tokens, self.part_positions = (
            nn.ParameterList(nn.Parameter(torch.zeros(1, 1, width)) for _ in range(spec.part_tokens)) for _ in range(2)
        )
        self.patch_positions = nn.Parameter(torch.zeros(1, patches, width))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to (B, N, C). Raises UserError for another size."""
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, *self.image_size):
            raise UserError(
                f"images of shape {tuple(images.shape)}: this tower takes (rows, 3, {self.image_size[0]}, "
                f"{self.image_size[1]}); resize them or set model.image_size (model.instruction_size for clothes)"
            )
        patches = self.proj(self.stem(images)).flatten(2).transpose(1, 2)
        first = self.class_token.to(patches.dtype).expand(len(patches), -1, -1)
        if self.residual:
            first = first + patches.mean(dim=1, keepdim=True)
        parts = [part.to(patches.dtype).expand(len(patches), -1, -1) for part in self.part_tokens]
        positions = torch.cat([self.class_position, *self.part_positions, self.patch_positions], dim=1)
        return torch.cat([first, *parts, patches], dim=1) + positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """B images, encoded."""

    cls: Tensor
    """(B, C): the class token after the final norm (F of the paper)."""
    tokens: Tensor
    """(B, 1 + P, C): class token and patches after the final norm; part tokens are left out."""


class ImageTower(nn.Module):
    """Tokens, blocks, final norm."""

    def __init__(self, spec: TowerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = TowerTokens(spec)
        rates = [spec.drop_path * index / max(1, spec.layers - 1) for index in range(spec.layers)]
        self.blocks = nn.ModuleList(EditingBlock(spec, rate) for rate in rates)
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps)

    def forward(self, images: Tensor, given: Given | None = None, recompute: bool = False) -> Tower:
        """Encode normalised images (B, 3, H, W), each edited by what it is told."""
        tokens = self.all_tokens(images, given, recompute)
        first = 1 + self.spec.part_tokens
        kept = torch.cat([tokens[:, :1], tokens[:, first:]], dim=1) if self.spec.part_tokens else tokens
        return Tower(cls=tokens[:, 0], tokens=kept)

    def all_tokens(self, images: Tensor, given: Given | None = None, recompute: bool = False) -> Tensor:
        """Return all tokens after the final norm, part tokens included, (B, N, C)."""
        draws = self.training and self.spec.drop_path > 0
        return self.norm(run_blocks(self.blocks, self.embed(images), given, recompute=recompute, draws=draws))

    def class_attention(self, images: Tensor, given: Given | None = None) -> Tensor:
        """Return what the class token attends to among the patches in the last layer, (B, P) float32."""
        hidden = run_blocks(self.blocks[:-1], self.embed(images), given, recompute=False)
        last: Any = self.blocks[-1]
        return last.attn.weights(last.norm1(hidden))[:, 1 + self.spec.part_tokens :]


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of query (B, heads, Q, c) against key (B, heads, K, c), (B, Q, K) float32, mean of the heads.

    mask (B, K) bool: the keys that may be attended to. For pictures of attention alone: models use the fused form.
    """
    scores = (query @ key.transpose(2, 3)).float() * query.shape[3] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    return scores.softmax(dim=3).mean(dim=1)


def _over_heads(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, None]
