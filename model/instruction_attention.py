"""Attention module of IRM (E_f of the paper): an image's tokens and an instruction's become the feature F_out.

Shapes: B rows, 1 + P image tokens, L instruction tokens, C width, S streams.
The paper says `stacked transformer layers` and no more. `joint` is ours: all tokens in one stack, the image's class
token out. `dual` is the release's: two streams through one stack, each behind the class token of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.editing import EditingBlock, Tower, TowerSpec
from model.layers import run_blocks
from model.said import Given

Form = Literal["joint", "dual", "none"]


class InstructionAttention(nn.Module):
    """Blocks of its own, or none where it runs through the image tower's; the joint form normalises what comes out."""

    def __init__(self, spec: TowerSpec, form: Form, layers: int, mask_padding: bool) -> None:
        """layers: of its own blocks, 0 where `forward` is given others."""
        super().__init__()
        self.form, self.mask_padding = form, mask_padding
        self.streams = 2 if form == "dual" else 1
        plain = replace(spec, editing="none")
        self.blocks = nn.ModuleList(EditingBlock(plain) for _ in range(layers))
        self.norm = nn.LayerNorm(spec.width, eps=spec.eps) if form == "joint" else nn.Identity()

    def forward(
        self, tower: Tower, given: Given | None, blocks: Sequence[nn.Module] = (), recompute: bool = False
    ) -> Tensor:
        """Return (B, S, C). A row that is told nothing is the tower's own class token, in every stream.

        blocks: run instead of its own. The release does not normalise what comes out of the dual form.
        """
        plain = tower.cls[:, None].expand(-1, self.streams, -1)
        if given is None or self.form == "none":
            return plain
        outputs = [
            self.norm(self._first(blocks or self.blocks, tokens, mask, recompute))
            for tokens, mask in self._inputs(tower, given)
        ]
        return torch.where(given.told[:, None, None], torch.stack(outputs, dim=1), plain)

    def image_attention(self, tower: Tower, given: Given, blocks: Sequence[nn.Module] = ()) -> Tensor:
        """Return where the last block looks in the image, (B, P) float32, mean of the heads.

        joint: the image's class token among the patches; dual: the instruction's, which stands before them.
        """
        used = list(blocks or self.blocks)
        tokens, mask = self._inputs(tower, given)[-1]
        hidden = self._run(used[:-1], tokens, mask, recompute=False)
        last: Any = used[-1]
        return last.attn.weights(last.norm1(hidden), mask)[:, 1 : tower.tokens.shape[1]]

    def _inputs(self, tower: Tower, given: Given) -> list[tuple[Tensor, Tensor]]:
        """Tokens (B, N, C) and mask (B, N) of each stream. The second of the dual form holds the patches."""
        told = given.tokens[given.rows].to(tower.tokens.dtype)
        mask = given.mask if self.mask_padding else given.filled
        image = torch.ones(tower.tokens.shape[:2], dtype=torch.bool, device=mask.device)
        if self.form == "joint":
            return [(torch.cat([tower.tokens, told], dim=1), torch.cat([image, mask], dim=1))]
        first = image[:, :1]
        return [
            (torch.cat([tower.tokens[:, :1], told[:, 1:]], dim=1), torch.cat([first, mask[:, 1:]], dim=1)),
            (torch.cat([told[:, :1], tower.tokens[:, 1:]], dim=1), image),
        ]

    def _first(self, blocks: Any, tokens: Tensor, mask: Tensor, recompute: bool) -> Tensor:
        """What becomes of the first token, (B, C): the last block computes nothing else."""
        hidden = self._run(blocks[:-1], tokens, mask, recompute)
        return run_blocks(blocks[-1:], hidden, None, mask, True, recompute=recompute, draws=self.training)[:, 0]

    def _run(self, blocks: Any, tokens: Tensor, mask: Tensor, recompute: bool) -> Tensor:
        return run_blocks(blocks, tokens, None, mask, recompute=recompute, draws=self.training)
