"""Memory of one training step of a configuration: measured on a CUDA device, elsewhere counted without computing
anything.

    python benchmarks/training_memory.py --config configs/reid5o/24gb.yaml [--device auto] [key.sub=value ...]

Counting runs forward, backward and update on tensors that have shapes but no values, and adds up the bytes that are
alive: weights, gradients, optimiser, activations, temporary results. It knows nothing of the allocator's rounding, of
kernels' workspaces and of the CUDA context; measuring (torch.cuda.max_memory_allocated, and reserved) does.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from solver.training.families import FAMILIES
from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.schema.experiment import ExperimentConfig  # noqa: E402
from configs.schema.reid5o import Reid5oConfig  # noqa: E402
from configs.vocabulary import Modality  # noqa: E402
from datasets.structures import Batch, Record, Source  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from solver.objectives.base import ObjectiveContext  # noqa: E402
from solver.training.families import build_objective  # noqa: E402
from solver.training.optimizer import build_optimizer  # noqa: E402
from solver.training.param_groups import apply_policy  # noqa: E402
from utils.device import autocast, describe_device, exact_float32, resolve_device  # noqa: E402

IDENTITIES = 600
GIB = 2**30
STEPS = 2
"""The first step creates the optimiser's state; the second has everything."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until nobody holds it."""
        storage = tensor.untyped_storage()
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = size
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.current -= size

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        output = function(*arguments, **(options or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return output


class Step:
    """One training step over made-up rows."""

    def __init__(self, config: ExperimentConfig, device: torch.device, initialised: bool) -> None:
        self.config, self.device = config, device
        with device:
            model = build_model(config.family, config.model, IDENTITIES)
        if initialised:
            initialise(config.family, model, config.model)
        self.model = model
        self.model.checkpoint_activations = config.train.checkpoint_activations
        rules = FAMILIES[config.family].policy(config.optimizer)
        policy = apply_policy(model.named_parameters(), rules, lr=config.optimizer.lr, freeze=config.train.freeze)
        self.optimizer = build_optimizer(policy.groups, config.optimizer)
        sources = {kind: Source(modality=kind, value="made up") for kind in Modality}
        records = [Record(person_id=0, sources=sources)]
        context = ObjectiveContext(seed=config.seed, model=model, records=records)
        self.objective = build_objective(config.family, config.objective, context)
        rows, shape = config.train.batch_size, (3, *config.model.image_size)
        images = {
            kind: torch.zeros(rows, *shape, dtype=torch.uint8, device=device)
            for kind in Modality
            if kind is not Modality.TEXT
        }
        assert isinstance(config.model, Reid5oConfig)
        captions = torch.zeros(rows, config.model.text_length, dtype=torch.int64, device=device)
        ids = torch.arange(rows, device=device) % IDENTITIES
        self.batch = Batch(inputs=images | {Modality.TEXT: captions}, erased={}, person_ids=ids, record_ids=ids)

    def run(self) -> None:
        """Forward, backward, update."""
        with autocast(self.device, self.config.train.precision):
            total = self.objective.step(self.model, self.batch, 0).total
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def counted(config: ExperimentConfig) -> str:
    """Return the counted peak of the second step."""
    with FakeTensorMode():
        step, live = Step(config, torch.device("cpu"), initialised=False), LiveBytes()
        for parameter in step.model.parameters():
            live.add(parameter)
        with live:
            for _ in range(STEPS):
                live.peak = live.current
                step.run()
    return f"counted peak {live.peak / GIB:.2f} GiB, of which between steps {live.current / GIB:.2f} GiB"


def measured(config: ExperimentConfig, device: torch.device) -> str:
    """Return the measured peak of the second step."""
    step = Step(config, device, initialised=True)
    step.run()
    torch.cuda.reset_peak_memory_stats(device)
    step.run()
    torch.cuda.synchronize(device)
    return (
        f"measured peak {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB allocated, "
        f"{torch.cuda.max_memory_reserved(device) / GIB:.2f} GiB reserved"
    )


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--device", default="auto", help="auto, cpu (= count) or cuda[:N] (= measure)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    config = load_experiment(parsed.config, ["model.init=random", *parsed.overrides])
    device = resolve_device(parsed.device)
    exact_float32()
    train = config.train
    result = measured(config, device) if device.type == "cuda" else counted(config)
    print(
        f"{config.name}: {train.batch_size} rows, {train.precision}, checkpoint_activations "
        f"{train.checkpoint_activations}, {describe_device(device)}: {result}"
    )


if __name__ == "__main__":
    main()
