"""One training step (forward + backward, mm_sdm + id, 11 combinations): ours against 11 separate fusion calls.

    python -m benchmarks.training_step --size tiny --device cpu
    python -m benchmarks.training_step --size vitb16 --device cuda --batch 64 --precision bf16

Baseline: the reference's plan in the same precision: each modality encoded by a call of its own, each combination
fused by a call of its own, first projection and last linear included. Both compute the same losses (compared to 1e-2 of
the total). Printed besides the ratio: where our time goes, and on a GPU TFLOP/s and the share of the measured matrix
rate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from configs.load import build_experiment  # noqa: E402
from configs.schema.reid5o import Reid5oConfig, Reid5oObjectiveConfig  # noqa: E402
from configs.vocabulary import COMBINATIONS, Combination, Modality  # noqa: E402
from model.build import initialise  # noqa: E402
from model.reid5o import ReID5o  # noqa: E402
from solver.objectives.reid5o import Reid5oObjective, fuse_combinations  # noqa: E402
from utils.device import DTYPES, autocast, resolve_device  # noqa: E402
from utils.tables import format_table  # noqa: E402

SIZES = {
    "tiny": {
        "image_size": [64, 32],
        "embed_dim": 64,
        "vision_width": 64,
        "vision_layers": 2,
        "text_width": 64,
        "text_layers": 1,
        "text_length": 24,
        "mmt_depth": 2,
    },
    "vitb16": {},
}
FUSED = [combination for combination in COMBINATIONS if len(combination) > 1]


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    started = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - started


def matrix_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds x 2 per second of a large matrix product, best of ten."""
    side = 4096 if device.type == "cuda" else 768
    left = torch.randn(side, side, device=device, dtype=DTYPES[precision])
    best = min(seconds_of(lambda: left @ left, device) for _ in range(10))
    return 2 * side**3 / best


class Step:
    """One batch of random inputs and the two plans of a step on it."""

    def __init__(self, size: str, batch: int, device: torch.device, precision: str) -> None:
        config = build_experiment([("benchmark", {"model": SIZES[size]})])
        self.device, self.precision, identities = device, precision, max(2, batch // 4)
        torch.manual_seed(0)
        assert isinstance(config.model, Reid5oConfig)
        self.model = ReID5o(config.model, identities)
        initialise(config.family, self.model, config.model)
        self.model.to(device).train()
        assert isinstance(config.objective, Reid5oObjectiveConfig)
        self.objective = Reid5oObjective(config.objective)
        height, width = config.model.image_size
        self.inputs: dict[Modality, torch.Tensor] = {
            modality: torch.randn(batch, 3, height, width, device=device)
            for modality in Modality
            if modality is not Modality.TEXT
        }
        ids = torch.randint(1, 49405, (batch, config.model.text_length), device=device)
        ids[:, -1] = 49407
        self.inputs[Modality.TEXT] = ids
        self.person_ids = torch.randint(0, identities, (batch,), device=device)

    def ours(self) -> torch.Tensor:
        """Forward and backward of the objective."""
        with autocast(self.device, self.precision):
            output = self.objective.compute(self.model, self.inputs, self.person_ids, FUSED)
        return self._backward(output.total)

    def separate(self) -> torch.Tensor:
        """Forward and backward with one call per modality and per combination."""
        with autocast(self.device, self.precision):
            encoded = {modality: self.model.encode(modality, inputs) for modality, inputs in self.inputs.items()}
            features: dict[Combination, torch.Tensor] = {
                (modality,): tokens.pooled for modality, tokens in encoded.items()
            }
            features |= {
                combination: self.model.fuse([encoded[member] for member in combination]) for combination in FUSED
            }
            losses = self.objective.losses(features, self.person_ids, self.model.identity_logits)
        return self._backward(torch.stack(list(losses.values())).sum())

    def _backward(self, total: torch.Tensor) -> torch.Tensor:
        total.backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return total.detach()

    def shares(self) -> dict[str, float]:
        """Seconds of the forward pass by part."""
        with torch.no_grad(), autocast(self.device, self.precision):
            encoded = self.model.encode_batch(self.inputs)
            return {
                "encoders": seconds_of(lambda: self.model.encode_batch(self.inputs), self.device),
                "fusion": seconds_of(lambda: fuse_combinations(self.model, encoded, FUSED), self.device),
            }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    device = resolve_device(parsed.device)
    step = Step(parsed.size, parsed.batch, device, parsed.precision)
    difference = abs(float(step.ours()) - float(step.separate()))
    pairs = [(seconds_of(step.ours, device), seconds_of(step.separate, device)) for _ in range(parsed.repeats)]
    ours, separate = (statistics.median(column) for column in zip(*pairs))
    with FlopCounterMode(display=False) as counter:
        step.ours()
    rate, peak = counter.get_total_flops() / ours, matrix_rate(device, parsed.precision)
    shares = step.shares()
    print(
        format_table(
            [
                {"plan": "11 separate fusion calls", "seconds": f"{separate:.4f}", "ratio": "1.00"},
                {
                    "plan": "ours",
                    "seconds": f"{ours:.4f}",
                    "ratio": f"{statistics.median(b / a for a, b in pairs):.2f}",
                },
            ]
        )
    )
    print(
        f"{parsed.size}, batch {parsed.batch}, {parsed.precision}, {device}, {parsed.threads} threads; difference of "
        f"the totals {difference:.2g}"
    )
    print(f"{rate / 1e12:.3f} TFLOP/s, {100 * rate / peak:.0f} % of the measured matrix rate {peak / 1e12:.3f} TFLOP/s")
    print("forward pass: " + ", ".join(f"{name} {value:.4f} s" for name, value in shares.items()))
    return 0 if difference < 1e-2 else 1


if __name__ == "__main__":
    sys.exit(main())
