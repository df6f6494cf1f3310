"""What a caller may hand over as labels or vectors, and its form as a NumPy array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray | Sequence[Any]


def to_numpy(values: Array) -> np.ndarray:
    """A list, array or tensor as an array; bfloat16 as float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
