"""What the soft target of IRM++ says: the share of a row's own identity, and how many identities share the rest.

    python benchmarks/soft_targets.py --run runs/NAME [--batches 8]

Rows of the run's training loader, their annotations by its instruction encoder, against its bank of annotations
(last.pth). For each task and option: the mean share of the own identity in percent, and the perplexity of the target,
the number of identities among which an even target would be as spread. An even target over all N has 100 / N percent
and perplexity N: a loss against it is label smoothing, which says nothing of annotations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.threads import configure_threads

configure_threads()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from configs.load import load_experiment  # noqa: E402
from configs.vocabulary import Task  # noqa: E402
from solver.objectives.instructed_rows import encode_rows  # noqa: E402
from solver.objectives.irmpp import IrmppObjective  # noqa: E402
from solver.run_directory import CONFIG_FILE, LAST_FILE  # noqa: E402
from solver.run_names import find_run, locate_run  # noqa: E402
from solver.training.engine import assemble  # noqa: E402
from solver.training.job import TrainingJob  # noqa: E402
from utils.checkpoint_io import load_checkpoint  # noqa: E402
from utils.device import resolve_device  # noqa: E402
from utils.errors import UserError, run_script  # noqa: E402
from utils.tables import format_table  # noqa: E402

OPTIONS = [(temperature, centre) for centre in (False, True) for temperature in (1.0, 0.05, 0.01)]
"""(temperature of the target, centred by the bank's mean)."""


def trained_job(run: str, device: str) -> TrainingJob:
    """Return a run's job with the weights and the banks of last.pth. Raises UserError for a run without banks."""
    directory, checkpoint = locate_run(find_run(run)[0], LAST_FILE)
    content = load_checkpoint(checkpoint)
    job = assemble(load_experiment(directory / CONFIG_FILE), resolve_device(device))
    if not isinstance(job.objective, IrmppObjective) or job.objective.annotations is None:
        raise UserError(f"{directory} has no bank of annotations; give a run of IRM++ with the loss soft")
    job.model.load_state_dict(content["model"])
    job.objective.load_state_dict(content["objective"])
    job.model.eval()
    return job


def annotated_rows(job: TrainingJob, batches: int) -> Iterator[tuple[Task, int, Tensor]]:
    """Yield task, identity and annotation feature (C,) of the rows of some batches."""
    for number, batch in enumerate(job.loader.epoch(0)):
        if number == batches:
            return
        rows = encode_rows(job.model, batch.to(job.device))  # type: ignore[arg-type]
        yield from zip(rows.tasks, rows.labels.tolist(), rows.annotation_features(), strict=True)


def target(asked: Tensor, bank: Tensor, temperature: float, centre: bool) -> Tensor:
    """Return the soft targets (R, N) of annotations (R, C) over the written slots (N, C)."""
    mean = bank.mean(dim=0) if centre else torch.zeros_like(bank[0])
    cosines = functional.normalize(asked - mean) @ functional.normalize(bank - mean).T
    return (cosines / temperature).softmax(dim=1)


@torch.no_grad()
def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    job = trained_job(options.run, options.device)
    memory = job.objective.annotations
    assert memory is not None and not isinstance(memory, Tensor)
    written = torch.as_tensor(memory.written)
    slots, bank = written.nonzero().squeeze(1).tolist(), torch.as_tensor(memory.rows)[written]
    place = {identity: slot for slot, identity in enumerate(slots)}
    found: dict[Task, list[tuple[int, Tensor]]] = {}
    for task, identity, told in annotated_rows(job, options.batches):
        if identity in place:
            found.setdefault(task, []).append((place[identity], told))
    rows = []
    for task, members in sorted(found.items()):
        own, asked = torch.tensor([slot for slot, _ in members]), torch.stack([told for _, told in members])
        row = {"task": task.value, "rows": len(members)}
        for temperature, centre in OPTIONS:
            p = target(asked, bank, temperature, centre)
            share = 100 * p.gather(1, own[:, None]).mean()
            spread = torch.special.entr(p).sum(dim=1).exp().mean()
            name = f"T {temperature:g}{', centred' if centre else ''}"
            row[name] = f"{share:.2f} % / {spread:.0f}"
        rows.append(row)
    print(f"{len(slots)} identities in the bank; share of the own identity / perplexity of the target")
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    run_script(main)
