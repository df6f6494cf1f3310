"""IRM at its full size (ViT-B/16, BERT, 256x128) with random weights: time and memory of one training step of 8 rows
and of one evaluation of 16 images.

    python benchmarks/irm_full_size.py [--device auto] [--threads N]

The rows are made up: four under pictures of clothes (two persons), four with captions; every loss of the paper is on.
The evaluation encodes 16 images under texts, 4 captions and as many images alone, and scores the pairs of these with
the matching head. Memory is the peak of the process, on a CUDA device that of its allocator.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from solver.training.families import FAMILIES, build_objective
from utils.threads import configure_threads

configure_threads()

import resource  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from configs.load import build_experiment  # noqa: E402
from configs.schema.irm import IrmConfig  # noqa: E402
from configs.vocabulary import Modality, Task  # noqa: E402
from datasets.loading.tokenizers import ClipTokenizer  # noqa: E402
from datasets.structures import Annotations, Batch, Record, Source  # noqa: E402
from model.build import build_model, initialise  # noqa: E402
from model.interface import Instruction  # noqa: E402
from model.irm import IRM  # noqa: E402
from solver.evaluation.encoding import inference  # noqa: E402
from solver.objectives.base import ObjectiveContext  # noqa: E402
from solver.training.optimizer import build_optimizer  # noqa: E402
from solver.training.param_groups import apply_policy  # noqa: E402
from utils.device import describe_device, exact_float32, resolve_device  # noqa: E402

IDENTITIES, GIB = 1041, 2**30
TASKS = (*[Task.CTCC] * 4, *[Task.T2I] * 4)
PERSONS = (0, 0, 1, 1, 2, 3, 4, 5)
EVALUATED, CAPTIONS = 16, 4


def texts(tokenizer: ClipTokenizer, length: int, count: int) -> Tensor:
    """Token ids (count, length) of made-up descriptions."""
    return torch.stack([tokenizer(f"a person with {number} bags and a long coat", length) for number in range(count)])


def made_up_batch(config: IrmConfig, tokenizer: ClipTokenizer) -> Batch:
    """Eight rows: see the module."""
    pictures = torch.randint(0, 256, (4, 3, *config.instruction_size), dtype=torch.uint8)
    rows = len(TASKS)
    return Batch(
        inputs={Modality.RGB: torch.randint(0, 256, (rows, 3, *config.image_size), dtype=torch.uint8)},
        erased={},
        person_ids=torch.tensor(PERSONS),
        record_ids=torch.arange(rows),
        tasks=TASKS,
        annotations={
            Modality.TEXT: Annotations(
                inputs=texts(tokenizer, config.text_length, 4), rows=torch.tensor([-1, -1, -1, -1, 0, 1, 2, 3])
            ),
            Modality.RGB: Annotations(inputs=pictures, rows=torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])),
        },
        instructed=torch.tensor([task is not Task.T2I for task in TASKS]),
    )


def records() -> list[Record]:
    """Records of the made-up rows."""
    found = []
    for task, person in zip(TASKS, PERSONS, strict=True):
        sources = {Modality.RGB: Source(modality=Modality.RGB, value="x.png")}
        if task is Task.T2I:
            sources[Modality.TEXT] = Source(modality=Modality.TEXT, value="a person")
        found.append(Record(person_id=person, sources=sources, task=task))
    return found


def timed(name: str, device: torch.device, run: Callable[[], Any]) -> None:
    """Run, and print how long it took and the peak of memory since the start of the process."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{name}: {time.perf_counter() - start:.1f} s, peak so far {peak / GIB:.2f} GiB", flush=True)


def evaluate(model: IRM, device: torch.device, tokenizer: ClipTokenizer) -> None:
    """Encode 16 images under instructions and 4 beside captions; score the pairs of the latter."""
    config = model.config
    images = torch.randn(EVALUATED, 3, *config.image_size, device=device)
    spoken = texts(tokenizer, config.text_length, CAPTIONS).to(device)
    told = Instruction(modality=Modality.TEXT, inputs=spoken, rows=torch.arange(EVALUATED, device=device) % CAPTIONS)
    with inference(model, device, "fp32"):
        pooled = model.encode(Modality.RGB, images, (told,)).pooled
        captions, alone = model.encode(Modality.TEXT, spoken), model.encode(Modality.RGB, images[:CAPTIONS])
        scores = model.match(captions, alone)
    assert pooled.isfinite().all() and scores.isfinite().all(), "random weights give finite features"


def main() -> None:
    """Print the machine and one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parsed = parser.parse_args()
    device = resolve_device(parsed.device)
    exact_float32()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    print(
        f"{describe_device(device)}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"torch {torch.__version__}"
    )
    config = build_experiment([("full size", {"family": "irm", "data": {"dataset": "omnireid"}, "train": SAMPLER})])
    torch.manual_seed(0)
    model = build_model(config.family, config.model, IDENTITIES)
    assert isinstance(model, IRM) and isinstance(config.model, IrmConfig)
    timed("random weights", device, lambda: initialise(config.family, model, config.model))
    model.to(device).train()
    print(f"{sum(value.numel() for value in model.parameters()) / 1e6:.1f} M parameters")
    tokenizer = ClipTokenizer()
    context = ObjectiveContext(seed=0, model=model, records=records(), tokenizer=tokenizer)
    objective = build_objective(config.family, config.objective, context).to(device)
    policy = apply_policy(
        model.named_parameters(), FAMILIES[config.family].policy(config.optimizer), lr=config.optimizer.lr, freeze=()
    )
    optimizer, batch = (
        build_optimizer(policy.groups, config.optimizer),
        made_up_batch(config.model, tokenizer).to(device),
    )

    def train_step() -> None:
        objective.step(model, batch, 0).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    timed("training step of 8 rows", device, train_step)
    timed("a second one", device, train_step)
    timed("evaluation of 16 images", device, lambda: evaluate(model, device, tokenizer))


SAMPLER = {"sampler": "tasks", "batch_size": 8, "instances": 2}

if __name__ == "__main__":
    main()
