"""What objectives remember between steps: buffers and frozen weights, saved with last.pth and never trained.

Shapes: B rows of a batch, D features, Q rows of a queue, N training identities.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from solver.losses.numerics import same_person, unit_rows

NOBODY = -100
"""Person of a queue's rows that no batch has filled: a negative for everyone, as in the release."""


class FeatureQueue(nn.Module):
    """The last Q pairs of image and text features and whose they are.

    Rows that are not filled yet are random unit vectors of nobody, as in the release.
    """

    image: Tensor
    """(Q, D)"""
    text: Tensor
    """(Q, D)"""
    person_ids: Tensor
    """(Q,) int64."""
    pointer: Tensor
    """() int64: the row that is overwritten next."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        for name in ("image", "text"):
            self.register_buffer(name, unit_rows(torch.randn(size, width, generator=generator)))
        self.register_buffer("person_ids", torch.full((size,), NOBODY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, person_ids: Tensor) -> None:
        """Overwrite the oldest rows with (B, D), (B, D), (B,); of more rows than the queue has the last ones stay."""
        size = len(self.person_ids)
        image, text, person_ids = image[-size:], text[-size:], person_ids[-size:]
        rows = (self.pointer + torch.arange(len(person_ids), device=self.pointer.device)) % size
        self.image[rows] = image.detach().to(self.image.dtype)
        self.text[rows] = text.detach().to(self.text.dtype)
        self.person_ids[rows] = person_ids
        self.pointer.copy_((self.pointer + len(person_ids)) % size)


class MomentumCopy(nn.Module):
    """Frozen copies of modules that follow them slowly: copy = momentum x copy + (1 - momentum) x module.

    Source: MoCo (CVPR 2020), eq. 2. The copies run without dropout; the release leaves it on in them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.copies = nn.ModuleDict({name: copy.deepcopy(module) for name, module in modules.items()})
        self.requires_grad_(False)
        self.eval()
        self._last_step: int | None = None

    def __getitem__(self, name: str) -> nn.Module:
        return self.copies[name]

    @torch.no_grad()
    def follow(self, modules: Mapping[str, nn.Module], step: int) -> None:
        """Move towards the modules, once for each step however many micro-batches it has; buffers are taken over."""
        if step == self._last_step:
            return
        self._last_step = step
        for name, module in modules.items():
            followed = dict(module.named_parameters())
            for key, value in self.copies[name].named_parameters():
                value.lerp_(followed[key].to(value.dtype), 1 - self.momentum)
            buffers = dict(module.named_buffers())
            for key, kept in self.copies[name].named_buffers():
                kept.copy_(buffers[key])


class MemoryBank(nn.Module):
    """The last feature of every training identity. Slots that nobody has written hold random vectors."""

    rows: Tensor
    """(N, D)"""
    written: Tensor
    """(N,) bool."""

    def __init__(self, slots: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(slots, width, generator=generator))
        self.register_buffer("written", torch.zeros(slots, dtype=torch.bool))

    @torch.no_grad()
    def write(self, features: Tensor, person_ids: Tensor) -> None:
        """Overwrite the slots person_ids (B,) with (B, D), without gradient; of several rows of a person the last one
        stays.
        """
        order = torch.arange(len(person_ids), device=person_ids.device)
        last = torch.where(same_person(person_ids), order, -1).amax(dim=1)
        # Rows of one person all write the same values, so that the order of writing is of no account.
        self.rows[person_ids] = features.detach()[last].to(self.rows.dtype)
        self.written[person_ids] = True
