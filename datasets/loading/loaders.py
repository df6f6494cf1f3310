"""Loaders: batches of training records, and single sources in order. The table of samplers."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.schema.data import AugmentConfig, DataConfig, InstructionConfig
from configs.schema.train import TrainConfig
from configs.vocabulary import Modality, Task
from datasets.instruction_pairing import TrainingInstructions
from datasets.instructions import InstructionMaker
from datasets.loading.readers import SourceReader
from datasets.loading.record_dataset import CaptionMasking, Failure, RecordDataset, collate
from datasets.loading.samplers import Batches, IdentityBatches, Key, ModalityBatches, RandomBatches
from datasets.loading.shares import Part, completed, is_usable, part_of
from datasets.loading.task_mixture import MixtureSpec, TaskBatches, infrared_rows, person_names
from datasets.loading.transforms import ImageAugmentation
from datasets.structures import Batch, Benchmark, Record, Source
from utils.errors import UserError
from utils.processes import ALONE, Processes

logger = logging.getLogger(__name__)

PREFETCH = 4


SourceBatch = tuple[Tensor, Tensor, list[tuple[int, str]]]


def _people(records: Sequence[Record]) -> list[int]:
    return [record.person_id for record in records]


def _modality_batches(records: Sequence[Record], train: TrainConfig, seed: int) -> ModalityBatches:
    infrared = infrared_rows(records)
    if records and len(set(infrared)) == 1:
        raise UserError(
            f"all {len(records)} training images are {'infrared' if infrared[0] else 'visible'}, and train.sampler = "
            "'modality' takes both; choose a visible-infrared data set, or another sampler"
        )
    return ModalityBatches(_people(records), infrared, train.batch_size, seed, train.instances, person_names(records))


def _task_batches(records: Sequence[Record], train: TrainConfig, seed: int) -> TaskBatches:
    spec = MixtureSpec(
        mixture=train.mixture,
        default_instances=train.instances,
        weights={Task(name): weight for name, weight in train.task_weights.items()},
        instances={Task(name): count for name, count in train.task_instances.items()},
    )
    return TaskBatches(records, train.batch_size, seed, spec)


SAMPLERS: dict[str, Callable[[Sequence[Record], TrainConfig, int], Batches]] = {
    "random": lambda records, train, seed: RandomBatches(_people(records), train.batch_size, seed, train.drop_last),
    "identity": lambda records, train, seed: IdentityBatches(
        _people(records), train.batch_size, seed, train.instances, person_names(records)
    ),
    "modality": _modality_batches,
    "tasks": _task_batches,
}
"""train.sampler -> builder from (training records, section `train`, seed)."""


class TrainLoader:
    """Batches of an epoch, the same for the same (seed, epoch) whatever the number of workers."""

    def __init__(
        self, dataset: RecordDataset, batches: Batches, workers: int, skip: bool, processes: Processes = ALONE
    ) -> None:
        """processes: among which the rows of each batch are shared out."""
        self.records, self.steps_per_epoch = dataset.records, len(batches)
        self.skipped: list[str] = []
        self.batches, self._skip, self._batches = batches, skip, _EpochBatches(batches, processes)
        self._processes = processes
        if workers:
            atexit.unregister(_end_workers)
            atexit.register(_end_workers)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_worker,
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, after `load_state_dict` those not yet used; of several processes each gets
        its rows of them, which may be none.

        Raises UserError for an unreadable image unless data.on_error is skip.
        """
        self._batches.current = epoch
        first = self.batches.resumes_at(epoch)
        for number, (batch, failures) in enumerate(self._loader, start=first + 1):
            self.batches.used(epoch, number)
            for failure in failures:
                if not self._skip:
                    raise UserError(failure.reason)
            parts = self._processes.told(self._part(batch, failures))
            for reason in dict.fromkeys(reason for part in parts for reason in part.skipped):
                if reason not in self.skipped:
                    self.skipped.append(reason)
                    logger.warning("skipped: %s", reason)
            if is_usable(parts):
                yield completed(batch, parts)

    @property
    def position(self) -> Key:
        """Epoch and number of the batch that comes next."""
        return self.batches.position

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what was skipped, as plain values."""
        return {"batches": self.batches.state_dict(), "skipped": list(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved position. Raises UserError when the state is of other batches."""
        self.batches.load_state_dict(state["batches"])
        self.skipped = list(state["skipped"])

    def _part(self, batch: Batch | None, failures: Sequence[Failure]) -> Part:
        skipped = [self.records[failure.record_id] for failure in failures]
        missed = {modality for record in skipped for modality in (*record.sources, *record.partners)}
        return part_of(batch, [failure.reason for failure in failures], sorted(missed))


def _end_workers() -> None:
    """At the exit, end the processes that do not listen to SIGTERM; what comes after this would wait for them."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _EpochBatches:
    def __init__(self, batches: Batches, processes: Processes) -> None:
        self.batches, self.processes, self.current = batches, processes, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches.epoch(self.current, rank=self.processes.rank, world_size=self.processes.count)


def build_batches(benchmark: Benchmark, train: TrainConfig, seed: int) -> Batches:
    """Return the batches of train.sampler. Raises UserError for records that the sampler cannot use, and when they form
    no whole batch.
    """
    batches = SAMPLERS[train.sampler](benchmark.train, train, seed)
    if not len(batches):
        raise UserError(
            f"train.batch_size = {train.batch_size} with the {train.sampler} sampler forms no batch out of "
            f"{len(benchmark.train)} records of {benchmark.num_identities} identities; lower it"
        )
    return batches


def build_train_loader(
    benchmark: Benchmark,
    data: DataConfig,
    augment: AugmentConfig,
    reader: SourceReader,
    batches: Batches,
    *,
    seed: int,
    workers: int,
    instruction: InstructionConfig | None = None,
    processes: Processes = ALONE,
) -> TrainLoader:
    """Return the loader of training batches. instruction: how that of each row is drawn; None = none is followed.
    processes: among which the rows of each batch are shared out.
    Raises UserError for a record without the annotation that its task needs.
    """
    annotate = TrainingInstructions(benchmark.train, InstructionMaker(instruction)) if instruction is not None else None
    dataset = RecordDataset(
        benchmark.train, reader, ImageAugmentation(augment), _masking(reader, augment), seed, annotate
    )
    return TrainLoader(dataset, batches, workers, data.on_error == "skip", processes)


def _masking(reader: SourceReader, augment: AugmentConfig) -> CaptionMasking | None:
    if reader.texts is None:
        return None
    tokenizer = reader.texts.tokenizer
    return CaptionMasking(
        share=augment.caption_mask,
        mask_id=tokenizer.mask_id,
        ordinary_ids=tokenizer.ordinary_ids,
        keep_eot=augment.keep_eot,
    )


class _SourceDataset(Dataset[tuple[int, Tensor | None, str]]):
    def __init__(self, sources: Sequence[Source], read: Callable[[Source], Tensor]) -> None:
        self.sources, self.read = sources, read

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.read(self.sources[index]), ""
        except UserError as error:
            return index, None, str(error)


def source_loader(
    sources: Sequence[Source],
    read: Callable[[Source], Tensor],
    batch_size: int,
    workers: int,
    batches: Sequence[Sequence[int]] | None = None,
) -> Iterable[SourceBatch]:
    """Return a loader over sources of ONE modality. batches: indices of each batch; None = all in order.

    It yields (indices (b,) int64, inputs (b, ...), failures [(index, reason)]); b may be smaller than batch_size, even
    0.
    """
    modalities = {Modality(source.modality) for source in sources}
    assert len(modalities) <= 1, "sources of one loader share a modality"
    size: dict[str, Any] = {"batch_size": batch_size} if batches is None else {"batch_sampler": batches}
    loader: DataLoader[Any] = DataLoader(
        _SourceDataset(sources, read),
        num_workers=workers,
        collate_fn=_collate_sources,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
        **size,
    )
    return loader


def _collate_sources(items: Sequence[tuple[int, Tensor | None, str]]) -> SourceBatch:
    good = [(index, value) for index, value, _ in items if value is not None]
    failures = [(index, reason) for index, value, reason in items if value is None]
    inputs = torch.stack([value for _, value in good]) if good else torch.empty(0)
    return torch.tensor([index for index, _ in good], dtype=torch.int64), inputs, failures


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _quiet_worker(worker: int) -> None:
    """Leave the signals that end a run to the process that trains: it finishes its step, for which it needs batches.

    They reach the loader processes too, by Ctrl-C and from job systems.
    """
    _one_thread(worker)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
