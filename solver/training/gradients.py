"""The gradient of one optimiser step: of a batch at once, or of one that is encoded in shares.

A batch in shares is encoded twice. First without graph, which gives the features of all rows; the losses look at them
together and send each share its gradient; then the share is encoded again, with the same random draws, and passes its
gradient on to the weights. What is kept for all rows is their features alone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from configs.schema.experiment import ExperimentConfig
from datasets.structures import Batch
from model.interface import RetrievalModel
from model.norms import norms_in_features
from solver.objectives.base import Objective, StepOutput
from solver.objectives.rows import Rows, Spread, joined
from solver.training.gathering import gathered
from utils.device import autocast
from utils.processes import ALONE, Processes


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
    """Adds the gradient of a step to the weights of a job.

    With several processes the shares of a batch are theirs as well as its micro-batches: every process sees the
    features of all, computes the same losses, and passes their gradient on through its own rows. torch's
    DistributedDataParallel adds up the gradients of the weights during the last of these backward passes.
    """

    def __init__(self, job: Trained, scaler: torch.amp.GradScaler, processes: Processes = ALONE) -> None:
        self.job, self.scaler, self.processes = job, scaler, processes
        self.train = job.config.train
        self.reducer = _reducer(job.model) if processes.count > 1 else None
        self._normed: list[Tensor] = []
        for name in norms_in_features(job.model) if self.reducer is not None else ():
            job.model.get_submodule(name).register_forward_hook(self._note)

    def __call__(self, batches: Sequence[Batch], step: int) -> StepValues:
        """Run the losses of a step over its micro-batches and the backward pass; return their values."""
        together = len(batches) > 1 and self.train.accumulate_features
        groups: list[Sequence[Batch]] = [batches] if together else [[batch] for batch in batches]
        shares = self._shares(groups)
        outputs = []
        for number, (group, share) in enumerate(zip(groups, shares, strict=True), start=1):
            if together or self.reducer is not None:
                outputs.append(self._of_shares(group, step, share, last=number == len(groups)))
            else:
                outputs.append(self._of_batch(group[0], step, share))
        # The one place where a step waits for the device.
        values = torch.stack([scalars(output) for output in outputs]).tolist()
        return StepValues(
            losses=list(outputs[-1].losses),
            diagnostics=list(outputs[-1].diagnostics),
            values=values,
            shares=shares,
            batches=groups,
        )

    def _shares(self, groups: Sequence[Sequence[Batch]]) -> list[float]:
        """Return the part of each group of micro-batches among the rows of all processes."""
        if len(groups) == 1:
            return [1.0]
        sizes = [float(sum(len(batch.person_ids) for batch in group)) for group in groups]
        sizes = [sum(column) for column in zip(*self.processes.told(sizes), strict=True)]
        return [size / sum(sizes) for size in sizes]

    def _of_batch(self, batch: Batch, step: int, share: float) -> StepOutput:
        """The losses of one batch in one graph."""
        with self._precision():
            output = self.job.objective.step(self.job.model, batch.to(self.job.device), step)
        output = self._ramped(output, step)
        self._backward(output.total * share)
        return _without_graph(output)

    def _of_shares(self, batches: Sequence[Batch], step: int, share: float, last: bool) -> StepOutput:
        """The losses of several micro-batches, and of what other processes have of them, as of one batch."""
        # One micro-batch keeps its graph: it need not be encoded again.
        once = len(batches) == 1
        draws: list[Draws] = []
        own: list[Rows] = []
        with contextlib.nullcontext() if once else _first_pass(self.job.model):
            for batch in batches:
                draws.append(Draws(self.job.device))
                own.append(self._encoded(batch, step))
        after = Draws(self.job.device)
        everyone = gathered(self.processes, own, self.job.device)
        whole = joined([rows for of_batch in everyone for rows in of_batch])
        leaves = Rows(features=_leaves(whole.features), facts=whole.facts, refers=whole.refers)
        with self._precision(), self._apart():
            output = self.job.objective.terms(self.job.model, leaves, step, InTurns(len(batches), self.processes))
            output = self._ramped(output, step)
            self._backward(output.total * (share / self.processes.count))
        gradients = self._of_rows(leaves, everyone)
        for number, (batch, drawn) in enumerate(zip(batches, draws, strict=True), start=1):
            if not once:
                drawn.restore()
            again = own[0] if once else self._encoded(batch, step)
            self._pass_on(again, gradients[number - 1], summed=last and number == len(batches))
        after.restore()
        return _without_graph(output)

    def _ramped(self, output: StepOutput, step: int) -> StepOutput:
        """Weigh the losses by where their weights are on their way to the whole."""
        share = self.job.config.objective.weight_share
        return StepOutput(
            losses={name: value * share(name, step) for name, value in output.losses.items()},
            diagnostics=output.diagnostics,
        )

    def _of_rows(self, leaves: Rows, everyone: Sequence[Sequence[Rows]]) -> list[dict[str, Tensor]]:
        """Return for each micro-batch the gradients of this process's rows."""
        whole = {name: value.grad for name, value in leaves.features.items() if value.grad is not None}
        self.processes.sum_(list(whole.values()))
        first, found = dict.fromkeys(whole, 0), []
        for of_batch in everyone:
            for rank, rows in enumerate(of_batch):
                own = {}
                for name in whole:
                    start = first[name]
                    first[name] += rows.count(name)
                    own[name] = whole[name][start : first[name]]
                if rank == self.processes.rank:
                    found.append(own)
        return found

    def _pass_on(self, rows: Rows, gradients: Mapping[str, Tensor], summed: bool) -> None:
        """Give the features of a share their gradients. summed: add up the weights' gradients of all processes."""
        names = [name for name in gradients if name in rows.features and rows.features[name].requires_grad]
        features = [rows.features[name] for name in names] + self._normed
        passed = [gradients[name] for name in names]
        # Norms of all processes go backwards together, also where no feature of this one came through.
        passed += [value.new_zeros(()).expand_as(value) for value in self._normed]
        if self.reducer is None or not summed:
            with self._apart():
                if features:
                    torch.autograd.backward(features, passed)
            part_gradients(self.job.model)
        else:
            if not features:
                # Something to begin with where all that features pass is frozen.
                first = next(value for value in self.job.model.parameters() if value.requires_grad)
                features = [first.reshape(-1)[:1] * 0]
                passed = [torch.zeros_like(features[0])]
            # It leaves every gradient in a memory of its own.
            torch.autograd.backward(self.reducer(lambda: features), passed)

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Gradients stay with the process, until the backward pass that adds them up."""
        return contextlib.nullcontext() if self.reducer is None else self.reducer.no_sync()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()
        part_gradients(self.job.model)

    def _note(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if module.training and output.requires_grad:
            self._normed.append(output)

    def _encoded(self, batch: Batch, step: int) -> Rows:
        self._normed.clear()
        with self._precision():
            return self.job.objective.encode(self.job.model, batch.to(self.job.device), step)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.job.device, self.train.precision)


class _Called(nn.Module):
    """A model whose forward pass is whatever is passed to it; what is made within gets its gradients added up."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], list[Tensor]]) -> list[Tensor]:
        return call()


def _reducer(model: nn.Module) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Its replacement is of later versions than the oldest that is supported.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        reducer = DistributedDataParallel(
            _Called(model), find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    # The sum, not the mean: each process has the gradient of its part of the loss. (Annotations that are text are
    # refused there, so the hook has none.)
    reducer.register_comm_hook(None, lambda _, bucket: _summed(bucket.buffer()))
    return reducer


def _summed(values: Tensor) -> torch.futures.Future[Tensor]:
    future = dist.all_reduce(values, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


@contextlib.contextmanager
def _first_pass(model: nn.Module) -> Iterator[None]:
    with torch.no_grad(), kept_buffers(model):
        yield


def _leaves(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in features.items()}


def _without_graph(output: StepOutput) -> StepOutput:
    return StepOutput(
        losses={name: value.detach() for name, value in output.losses.items()}, diagnostics=output.diagnostics
    )


class InTurns(Spread):
    """What goes row by row is shared out among processes, and computed in as many turns as there are micro-batches,
    each again in the backward pass: the memory that it takes is that of one turn.
    """

    def __init__(self, turns: int, processes: Processes = ALONE) -> None:
        self.turns, self.processes = turns, processes

    def rows(self, count: int, compute: Callable[[slice], Tensor]) -> Tensor:
        """Return compute(0..count), (count, ...)."""
        ranks = self.processes.count
        shares = [(count * rank // ranks, count * (rank + 1) // ranks) for rank in range(ranks)]
        start, stop = shares[self.processes.rank]
        bounds = sorted({start + (stop - start) * turn // self.turns for turn in range(self.turns + 1)})
        parts = [slice(*pair) for pair in zip(bounds, bounds[1:])] or [slice(start, start)]
        found = [compute(part) if self.turns == 1 else _computed_again(compute, part) for part in parts]
        own = found[0] if len(found) == 1 else torch.cat(found)
        return own if ranks == 1 else _AllRows.apply(own, [stop - start for start, stop in shares], self.processes)

    def agreed(self, drawn: Tensor) -> Tensor:
        """Return the leader's draw."""
        return self.processes.spread(drawn)


def _computed_again(compute: Callable[[slice], Tensor], part: slice) -> Tensor:
    found: Tensor = checkpoint(compute, part, use_reentrant=False)
    return found


class _AllRows(torch.autograd.Function):
    """Rows of all processes, by rank; their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int], processes: Processes) -> Tensor:
        """Return (sum of sizes, ...) of own (n, ...)."""
        ctx.processes, ctx.first = processes, sum(sizes[: processes.rank])
        ctx.size = len(own)
        width = own[0].numel() * own.element_size() if len(own) else 0
        width = int(processes.largest(width)[0])
        flat = own.detach().contiguous().reshape(-1).view(torch.uint8)
        found = processes.gathered(flat, [size * width for size in sizes])
        return torch.cat([part.view(own.dtype).reshape(-1, *own.shape[1:]) for part in found])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        ctx.processes.sum_([total])
        return total[ctx.first : ctx.first + ctx.size], None, None


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
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is not None and gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size():
            parameter.grad = gradient.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Leave the statistics of norms as they were: a pass in the block is made again later, and counts then."""
    kept = [(value, value.clone()) for value in model.buffers()]
    try:
        yield
    finally:
        for value, before in kept:
            value.copy_(before)
