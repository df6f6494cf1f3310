"""Time and memory of a step whose losses see all micro-batches (train.accumulate), against plain accumulation.

    python -m benchmarks.accumulation [--config configs/reid5o/quickstart.yaml --accumulate 4 key.sub=value ...]

Made-up rows, train.batch_size of them in a micro-batch; forward and backward passes of one optimiser step, in three
forms that take turns: all rows at once, micro-batches whose gradients are averaged, and micro-batches whose losses see
all rows. Time is the median; memory is the highest sum of the bytes of all tensors that a step makes, counted in a step
of its own (on a CUDA device measured). Exit code 1 when the last form takes more than 1.6 times the second, or more
memory than it plus 10 % plus the features of all rows, or when its gradient is not that of all rows at once (1e-5 of
the largest).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.training_memory import LiveBytes, Step
from solver.training.gradients import Gradients
from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.schema.experiment import ExperimentConfig  # noqa: E402
from datasets.structures import Batch  # noqa: E402
from model.interface import RetrievalModel  # noqa: E402
from solver.objectives.base import Objective  # noqa: E402
from utils.device import exact_float32, resolve_device  # noqa: E402

MIB = 2**20
FORMS = ("at once", "plain", "features")
SLOWEST, LARGEST = 1.6, 1.1


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    config: ExperimentConfig
    device: torch.device
    model: RetrievalModel
    objective: Objective[Any]


class Forms:
    """One optimiser step in each form."""

    def __init__(self, config: ExperimentConfig, device: torch.device, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        made = Step(config, device, initialised=True)
        made.model.train()
        self.device = device
        self.parts = [_varied(made.batch, generator, number) for number in range(count)]
        self.subjects = {
            form: Subject(
                config=dataclasses.replace(
                    config, train=dataclasses.replace(config.train, accumulate_features=form == "features")
                ),
                device=device,
                model=made.model,
                objective=made.objective,
            )
            for form in FORMS
        }
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)

    def run(self, form: str) -> None:
        """Leave the gradient of a step in the model."""
        subject = self.subjects[form]
        subject.model.zero_grad(set_to_none=True)
        batches = [_together(self.parts)] if form == "at once" else self.parts
        Gradients(subject, self.scaler)(batches, 0)

    def seconds(self, form: str) -> float:
        """Return what a step takes."""
        self._wait()
        started = time.perf_counter()
        self.run(form)
        self._wait()
        return time.perf_counter() - started

    def peak(self, form: str) -> int:
        """Return the highest number of bytes of what a step makes, gradients among it."""
        model = self.subjects[form].model
        for parameter in model.parameters():
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.run(form)
            return torch.cuda.max_memory_allocated(self.device) - before
        live = LiveBytes()
        with live:
            self.run(form)
        return live.peak

    def features(self) -> int:
        """Return the bytes of the features of all rows and of their gradients."""
        subject = self.subjects["features"]
        with torch.no_grad():
            columns = [
                value
                for part in self.parts
                for value in subject.objective.encode(subject.model, part, 0).columns().values()
            ]
        return 2 * sum(value.numel() * value.element_size() for value in columns)

    def gradient(self, form: str) -> torch.Tensor:
        """Return the whole gradient of a step."""
        self.run(form)
        model = self.subjects[form].model
        return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _varied(batch: Batch, generator: torch.Generator, number: int) -> Batch:
    """The same shapes with rows of their own."""
    inputs = {
        kind: torch.randint(1, 200, value.shape, generator=generator).to(value.dtype).to(value.device)
        for kind, value in batch.inputs.items()
    }
    ids = batch.person_ids + number
    return dataclasses.replace(batch, inputs=inputs, person_ids=ids, record_ids=ids.cpu())


def _together(parts: list[Batch]) -> Batch:
    inputs = {kind: torch.cat([part.inputs[kind] for part in parts]) for kind in parts[0].inputs}
    ids = torch.cat([part.person_ids for part in parts])
    return Batch(inputs=inputs, erased={}, person_ids=ids, record_ids=ids.cpu())


def main() -> int:
    """Print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/reid5o/quickstart.yaml", metavar="FILE")
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's choice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    exact_float32()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    config = load_experiment(parsed.config, ["model.init=random", *parsed.overrides])
    forms = Forms(config, resolve_device(parsed.device), parsed.accumulate)
    whole, found = forms.gradient("at once"), forms.gradient("features")
    error = float((whole - found).abs().max() / whole.abs().max())
    peaks = {form: forms.peak(form) for form in FORMS}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(parsed.repeats):
        for form in FORMS:
            times[form].append(forms.seconds(form))
    median = {form: statistics.median(values) for form, values in times.items()}
    features = forms.features()
    print(f"{parsed.accumulate} micro-batches of {config.train.batch_size} rows, {torch.get_num_threads()} threads")
    for form in FORMS:
        ratio = median[form] / median["plain"]
        print(f"{form:<10} {median[form]:8.3f} s ({ratio:.2f} of plain)  {peaks[form] / MIB:8.1f} MiB")
    print(f"features of all rows and their gradients {features / MIB:.1f} MiB; gradient against `at once` {error:.1e}")
    allowed = LARGEST * peaks["plain"] + features
    good = median["features"] <= SLOWEST * median["plain"] and peaks["features"] <= allowed and error < 1e-5
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
