"""Residual networks with the weights of convolutions channels last, as built, against contiguous ones.

    python -m benchmarks.memory_format --size small
    python -m benchmarks.memory_format --size resnet50 --rows 8 --device cpu

small: the networks of the quickstarts (width 16, 96x48), resnet50: the baseline's (288x144). Measured in one run, turn
by turn: a training step (forward and backward, --rows images of each modality) and a forward pass of evaluation, in
milliseconds, and the ratio. Both compute the same map (compared to 1e-4 of its largest value).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from configs.schema.vireid import VireidConfig  # noqa: E402
from configs.vocabulary import Modality  # noqa: E402
from model.resnet import Backbone  # noqa: E402
from utils.device import resolve_device  # noqa: E402
from utils.errors import UserError, run_script  # noqa: E402
from utils.tables import format_table  # noqa: E402

SIZES = {
    "small": (VireidConfig(depth=18, blocks=(1, 1, 1, 1), width=16), (96, 48)),
    "resnet50": (VireidConfig(), (288, 144)),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started)


def train(network: Backbone, inputs: Mapping[Modality, Tensor]) -> Tensor:
    """A forward and a backward pass; return the map."""
    mapped = network.train()(inputs)
    mapped.square().mean().backward()
    return mapped.detach()


@torch.no_grad()
def evaluate(network: Backbone, inputs: Mapping[Modality, Tensor]) -> Tensor:
    """A forward pass; return the map."""
    return network.eval()(inputs)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--rows", type=int, default=32, help="images of each modality (default: 32)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parsed = parser.parse_args()
    device = resolve_device(parsed.device)
    spec, size = SIZES[parsed.size]
    torch.manual_seed(0)
    built = Backbone(spec).to(device)
    networks = {}
    for name, memory_format in FORMATS.items():
        networks[name] = Backbone(spec).to(device)
        networks[name].load_state_dict(built.state_dict())
        networks[name].to(memory_format=memory_format)
    inputs = {name: torch.randn(parsed.rows, 3, *size, device=device) for name in (Modality.RGB, Modality.NIR)}
    first, second = (train(network, inputs) for network in networks.values())
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        raise UserError("the two forms differ by more than 1e-4 of the largest value")
    rows = []
    for what, call in (("training step", train), ("evaluation", evaluate)):
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(parsed.repeats):
            for name, network in networks.items():
                times[name].append(milliseconds(lambda: call(network, inputs), device))
        median = {name: statistics.median(values) for name, values in times.items()}
        before, after = median.values()
        rows.append({"": what} | {f"{name} ms": round(value, 1) for name, value in median.items()})
        rows[-1] |= {"ratio": f"{before / after:.2f}"}
    print(format_table(rows))
    print(f"{torch.get_num_threads()} compute threads, {device}, torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    run_script(main)
