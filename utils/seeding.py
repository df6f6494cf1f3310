"""Random numbers that depend on (seed, epoch, index, purpose) and on nothing else."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def stream_seed(*key: int | str) -> int:
    """Return a 64-bit seed for `key`, for instance (seed, epoch, index, "crop"). Equal keys give equal seeds."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def stream(*key: int | str) -> random.Random:
    """Return a `random.Random` of its own for `key`."""
    return random.Random(stream_seed(*key))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    # Imported here: whoever only draws streams (rendering processes) need not wait seconds for torch.
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
