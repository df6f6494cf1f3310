"""The gradient of one optimiser step: of a batch at once, or of one that is encoded in shares.

A batch in shares is encoded twice. First without graph, which gives the features of all rows; the losses look at them
together and send each share its gradient; then the share is encoded again, with the same random draws, and passes its
gradient on to the weights. What is kept for all rows is their features alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.schema.experiment import ExperimentConfig
from datasets.structures import Batch
from model.interface import RetrievalModel
from solver.objectives.base import Objective, StepOutput
from solver.objectives.rows import Rows, Spread, joined
from utils.device import autocast


@dataclass(kw_only=True)
class StepValues:
    """What the losses of a step were."""

    losses: list[str] = field(default_factory=list)
    diagnostics: list[str] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    """By batch whose losses were taken apart from the others', losses and then diagnostics."""
    shares: list[float] = field(default_factory=list)
    """Weight of each of these batches in the mean."""
    batches: list[Sequence[Batch]] = field(default_factory=list)
    """What each of them is made of."""

    def means(self) -> list[float]:
        """Return the losses and then the diagnostics of the whole step."""
        columns = zip(*self.values, strict=True)
        return [sum(value * share for value, share in zip(column, self.shares, strict=True)) for column in columns]


def scalars(output: StepOutput) -> Tensor:
    """Return the losses and then the diagnostics as one vector, still on the device."""
    return torch.stack([value.detach().float() for value in (*output.losses.values(), *output.diagnostics.values())])


class Trained(Protocol):
    """What a gradient is of: a `TrainingJob` is this."""

    @property
    def config(self) -> ExperimentConfig:
        """Precision and accumulation."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def model(self) -> RetrievalModel:
        """What gets the gradient."""

    @property
    def objective(self) -> Objective[Any]:
        """The losses."""


class Gradients:
    """Adds the gradient of a step to the weights of a job."""

    def __init__(self, job: Trained, scaler: torch.amp.GradScaler) -> None:
        self.job, self.scaler = job, scaler
        self.train = job.config.train

    def __call__(self, batches: Sequence[Batch], step: int) -> StepValues:
        """Run the losses of a step over its micro-batches and the backward pass; return their values."""
        if len(batches) > 1 and self.train.accumulate_features:
            outputs, shares, made_of = [self._of_shares(batches, step)], [1.0], [batches]
        else:
            rows = sum(len(batch.person_ids) for batch in batches)
            shares = [len(batch.person_ids) / rows for batch in batches]
            outputs = [self._of_batch(batch, step, share) for batch, share in zip(batches, shares, strict=True)]
            made_of = [[batch] for batch in batches]
        # The one place where a step waits for the device.
        values = torch.stack([scalars(output) for output in outputs]).tolist()
        return StepValues(
            losses=list(outputs[-1].losses),
            diagnostics=list(outputs[-1].diagnostics),
            values=values,
            shares=shares,
            batches=made_of,
        )

    def _of_batch(self, batch: Batch, step: int, share: float) -> StepOutput:
        """The losses of one batch in one graph."""
        with self._precision():
            output = self.job.objective.step(self.job.model, batch.to(self.job.device), step)
        output = self._ramped(output, step)
        self._backward(output.total * share)
        return _without_graph(output)

    def _of_shares(self, batches: Sequence[Batch], step: int) -> StepOutput:
        """The losses of several micro-batches as of one batch."""
        draws: list[Draws] = []
        shares: list[Rows] = []
        with torch.no_grad(), kept_buffers(self.job.model):
            for batch in batches:
                draws.append(Draws(self.job.device))
                shares.append(self._encoded(batch, step))
        after = Draws(self.job.device)
        whole = joined(shares)
        leaves = Rows(features=_leaves(whole.features), facts=whole.facts, refers=whole.refers)
        with self._precision():
            output = self.job.objective.terms(self.job.model, leaves, step, InTurns(len(batches)))
        output = self._ramped(output, step)
        self._backward(output.total)
        self._pass_on(batches, step, draws, shares, leaves)
        after.restore()
        return _without_graph(output)

    def _ramped(self, output: StepOutput, step: int) -> StepOutput:
        """Weigh the losses by where their weights are on their way to the whole."""
        share = self.job.config.objective.weight_share
        return StepOutput(
            losses={name: value * share(name, step) for name, value in output.losses.items()},
            diagnostics=output.diagnostics,
        )

    def _pass_on(
        self, batches: Sequence[Batch], step: int, draws: Sequence[Draws], shares: Sequence[Rows], whole: Rows
    ) -> None:
        """Encode each share again, as it was drawn, and give its features their gradients."""
        first = dict.fromkeys(whole.features, 0)
        for batch, drawn, share in zip(batches, draws, shares, strict=True):
            drawn.restore()
            again = self._encoded(batch, step)
            fed: list[tuple[Tensor, Tensor]] = []
            for name, values in share.features.items():
                start, first[name] = first[name], first[name] + len(values)
                gradient = whole.features[name].grad
                if gradient is not None and again.features[name].requires_grad:
                    fed.append((again.features[name], gradient[start : first[name]]))
            if fed:
                torch.autograd.backward([values for values, _ in fed], [gradient for _, gradient in fed])
                part_gradients(self.job.model)

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        part_gradients(self.job.model)

    def _encoded(self, batch: Batch, step: int) -> Rows:
        with self._precision():
            return self.job.objective.encode(self.job.model, batch.to(self.job.device), step)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.job.device, self.train.precision)


def _leaves(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in features.items()}


def _without_graph(output: StepOutput) -> StepOutput:
    return StepOutput(
        losses={name: value.detach() for name, value in output.losses.items()}, diagnostics=output.diagnostics
    )


class InTurns(Spread):
    """What goes row by row is computed in as many turns as there are micro-batches, each again in the backward pass:
    the memory that it takes is that of one turn.
    """

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def rows(self, count: int, compute: Callable[[slice], Tensor]) -> Tensor:
        """Return compute(0..count), (count, ...)."""
        bounds = sorted({count * turn // self.turns for turn in range(self.turns + 1)})
        parts = [slice(start, stop) for start, stop in zip(bounds, bounds[1:])] or [slice(0, 0)]
        found: list[Tensor] = [checkpoint(compute, part, use_reentrant=False) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)


class Draws:
    """The states of the generators that a pass of the model draws from."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Let the next draws be those that followed this moment."""
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.cuda.set_rng_state(self.own, self.device)


def part_gradients(model: nn.Module) -> None:
    """Give every gradient a memory of its own.

    Two parameters that are added up, over a batch of one, get views of one tensor (torch takes them over as they are):
    what is then added to one of them, or scaled, would change the other.
    """
    taken: set[int] = set()
    for parameter in model.parameters():
        if parameter.grad is not None:
            place = parameter.grad.untyped_storage().data_ptr()
            if place in taken:
                parameter.grad = parameter.grad.clone()
            taken.add(place)


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Leave the statistics of norms as they were: a pass in the block is made again later, and counts then."""
    kept = [(value, value.clone()) for value in model.buffers()]
    try:
        yield
    finally:
        for value, before in kept:
            value.copy_(before)
