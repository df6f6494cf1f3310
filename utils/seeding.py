"""Random numbers that depend on (seed, epoch, index, purpose) and on nothing else."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

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


def generator_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators (the CUDA devices' among them) as tensors
    and plain values.
    """
    import torch

    # Python's state is the generator's version, 625 words and half of a pair of normal draws.
    version, words, normal = random.getstate()
    kind, keys, position, has_normal, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words), "normal": normal},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_normal": int(has_normal),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Bring the global generators back to what `generator_states` returned; CUDA devices as far as both have them."""
    import torch

    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["normal"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_normal"], numpy["cached"]))
    torch.set_rng_state(states["torch"])
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(states["cuda"][:available]):
        torch.cuda.set_rng_state(state, device)
