"""Whole representations of sources, for a model that compares two sources token by token.

Shapes: N slots (distinct sources), n rows of one request, L tokens of a source, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.interface import Tokens
from solver.evaluation.sharing import Gather
from solver.evaluation.token_cache import BankShape, CacheBudget, Owners, TokenCache


class KeptTokens:
    """Whole representations of sources by slot, in the tiers of a token cache. Whoever has them made closes them."""

    def __init__(
        self,
        num_slots: int,
        shapes: Sequence[BankShape],
        masked: Sequence[int],
        *,
        device: torch.device,
        budget: CacheBudget,
        owners: Owners,
    ) -> None:
        """shapes: of whole representations. masked: lengths of those that have a mask."""
        self._masks = {length: torch.ones((num_slots, length), dtype=torch.bool) for length in masked}
        self._lengths = torch.full((num_slots,), -1, dtype=torch.int64)
        for shape in shapes:
            self._lengths[shape.slots] = shape.length
        self.cache = TokenCache(num_slots, shapes, device=device, budget=budget, owners=owners)

    def put(self, slots: Tensor, tokens: Tokens) -> None:
        """Keep tokens of `slots` (n,) int64 on the CPU, all of one length."""
        self.cache.put(slots, tokens.tokens)
        if tokens.mask is not None:
            self._masks[tokens.tokens.shape[1]][slots] = tokens.mask.cpu()

    def share_masks(self) -> None:
        """Let every process have the masks of all slots; all call this when each has put what it encodes."""
        for length, mask in self._masks.items():
            hidden = (~mask).to(torch.uint8)
            self.cache.owners.processes.sum_([hidden])
            self._masks[length] = hidden == 0

    def gather(self, slots: Tensor, pooled: Tensor, tokens: Gather) -> Tokens:
        """Return the representations of `slots` (n,) int64 on the CPU, all of one length. pooled (N, D): of all.
        tokens: slots -> their tokens, as `solver.evaluation.sharing.rounds` gives it.
        """
        mask = self._masks.get(int(self._lengths[slots[0]]))
        return Tokens(
            tokens=tokens(slots),
            pooled=pooled[slots.to(pooled.device)],
            mask=None if mask is None else mask[slots].to(self.cache.device),
        )

    def close(self) -> None:
        """Free everything."""
        self.cache.close()
        self._masks = {}
