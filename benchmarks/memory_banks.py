"""Memory and time of the bank losses at the paper's size against whole matrices: equal values and gradients.

    python benchmarks/memory_banks.py [--identities 333825 --rows 128 --dimensions 256 768 --threads 2]

Two banks of as many slots as OmniReID++ has training identities, synthetic, fp32 and (ours) bf16; soft and hard loss
together, forward and backward. Memory is the growth of the resident set's high-water mark (Linux) from before the call,
so it does not contain the banks. The plain form multiplies the normalised banks at once and is differentiated by
autograd; its float64 result (some 9 GiB at 768 dimensions) is what both are compared with. Exit code 1 when ours adds
more than 256 MiB, or a value or the gradient differs by more than 1e-5 of the largest entry.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.ranking import high_water_mark  # noqa: E402
from solver.losses.memory_bank import bank_losses  # noqa: E402

LIMIT_BYTES = 256 << 20
TOLERANCE = 1e-5
TEMPERATURE = 0.05
PART = 4096


def random_rows(count: int, width: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """(count, width), filled in parts."""
    rows = torch.empty(count, width, dtype=dtype)
    for part in rows.split(PART):
        part.copy_(torch.randn(part.shape, generator=generator))
    return rows


def plain_losses(features: Tensor, bank: Tensor, persons: Tensor, asked: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Mean soft and hard loss with whole (B, N) matrices."""
    log_q = (functional.normalize(features) @ functional.normalize(bank).T / TEMPERATURE).log_softmax(dim=1)
    p = (functional.normalize(asked) @ functional.normalize(told).T / TEMPERATURE).softmax(dim=1)
    return (p * ((p + 1e-8).log() - log_q)).sum(dim=1).mean(), functional.nll_loss(log_q, persons)


def our_losses(features: Tensor, bank: Tensor, persons: Tensor, asked: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the product's function."""
    losses = bank_losses(features, bank, persons, auxiliary=asked, auxiliary_bank=told, temperature=TEMPERATURE)
    return losses.soft.mean(), losses.hard.mean()


def measured(
    losses: Callable[..., tuple[Tensor, Tensor]], features: Tensor, *rest: Tensor
) -> tuple[list[Tensor], float, int | None]:
    """Soft, hard and the gradient of soft + 5 hard; seconds; bytes added."""
    before, started = high_water_mark(reset=True), time.perf_counter()
    soft, hard = losses(features, *rest)
    (gradient,) = torch.autograd.grad(soft + 5 * hard, features)
    seconds, after = time.perf_counter() - started, high_water_mark(reset=False)
    added = None if before is None or after is None else after - before
    return [soft.detach(), hard.detach(), gradient], seconds, added


def difference(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest difference, relative to the largest entry of its tensor."""
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def main(arguments: list[str]) -> int:
    """Print what was measured; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(description="Losses against memory banks of the paper's size.")
    parser.add_argument("--identities", type=int, default=333_825)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{options.rows} rows x {options.identities:,} identities, {options.threads} threads{load}; "
        f"torch {torch.__version__}"
    )
    missed = []
    for width in options.dimensions:
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(0)
            banks = [random_rows(options.identities, width, generator, dtype) for _ in range(2)]
            persons = torch.randint(options.identities, (options.rows,), generator=generator)
            features, asked = (
                bank[persons].float() + torch.randn(options.rows, width, generator=generator) for bank in banks
            )
            given = (features.requires_grad_(), banks[0], persons, asked, banks[1])
            found, seconds, added = measured(our_losses, *given)
            name = f"{width} dimensions, {str(dtype).removeprefix('torch.')}"
            line = f"{name}: ours {seconds:.1f} s, {'?' if added is None else f'{added / (1 << 20):.0f}'} MiB"
            if added is not None and added > LIMIT_BYTES:
                missed.append(f"{name}: more than {LIMIT_BYTES >> 20} MiB")
            wide = (given[0], banks[0].float(), persons, asked, banks[1].float())
            plain, seconds, added = measured(plain_losses, *wide)
            exact, *_ = measured(
                plain_losses, *(value.double() if value.is_floating_point() else value for value in wide)
            )
            off = {"ours": difference(found, exact), "plain": difference(plain, exact)}
            print(
                f"{line}, off by {off['ours']:.1e}; plain {seconds:.1f} s, "
                f"{'?' if added is None else f'{added / (1 << 20):.0f}'} MiB, off by {off['plain']:.1e}",
                flush=True,
            )
            if not off["ours"] <= TOLERANCE:
                missed.append(f"{name}: differs by {off['ours']:.1e}")
    print("; ".join(missed) or "all targets reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
