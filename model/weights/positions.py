"""Position embeddings of images on another grid of patches."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Method = Literal["bilinear", "bicubic"]


def resize_grid(
    rows: Tensor, old: tuple[int, int], new: tuple[int, int], method: Method, *, antialias: bool = False
) -> Tensor:
    """Resize (oy ox, C), patches row by row, to (ny nx, C); corners are not aligned."""
    patches = rows.reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=new, mode=method, align_corners=False, antialias=antialias)
    return resized.flatten(2)[0].t()
