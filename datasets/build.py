"""From configuration to benchmark, readers and loaders. Data sets are registered in datasets.catalogue."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.schema import AugmentConfig, DataConfig, InstructionConfig, TrainConfig
from configs.vocabulary import Modality, Task
from datasets.benchmark import build_from_release, exclude_listed
from datasets.catalogue import CATALOGUE, dataset_entry
from datasets.image_cache import build_cache
from datasets.instructions import InstructionMaker
from datasets.modalities import MODALITIES
from datasets.orbench import load_orbench
from datasets.readers import PillowReader, SourceReader
from datasets.record_dataset import CaptionMasking, Failure, RecordDataset, collate
from datasets.release import ReadOptions
from datasets.samplers import Batches, IdentityBatches, Key, ModalityBatches, RandomBatches
from datasets.structures import Batch, Benchmark, Record, Source, distinct_sources
from datasets.task_mixture import MixtureSpec, TaskBatches, infrared_rows, person_names
from datasets.tokenizers import ClipTokenizer
from datasets.transforms import ImageAugmentation
from utils.errors import UserError, nearest
from utils.threads import available_cores

logger = logging.getLogger(__name__)

ORBENCH = "orbench"
DATASETS = (ORBENCH, *CATALOGUE)
PREFETCH = 4
SHOWN_LISTS = 4

SourceBatch = tuple[Tensor, Tensor, list[tuple[int, str]]]


def build_benchmark(
    data: DataConfig, *, select: str, need_train: bool, instruction: InstructionConfig = InstructionConfig()
) -> Benchmark:
    """Read the annotations of data.dataset. select: val takes the data set's validation identities or cuts some from
    train.

    instruction: what a model that follows instructions is given. Raises UserError for an unknown data set and for
    whatever its reader or protocol refuses.
    """
    _check_known(data.dataset)
    select_val = select == "val" and need_train
    if data.dataset == ORBENCH:
        return _build_orbench(data, select_val, need_train)
    entry = dataset_entry(data.dataset)
    options = ReadOptions(
        check_files=data.on_error == "raise",
        need_train=need_train,
        variant=data.variant,
        merge_val=data.merge_val,
        trial=data.trial,
        crop=instruction.crop,
        members=data.members,
    )
    release = entry.read(Path(data.root), options)
    if data.exclude:
        release = exclude_listed(release, Path(data.exclude), Path(data.root), need_train)
    return build_from_release(
        entry,
        release,
        protocols=data.protocols,
        need_train=need_train,
        select_val=select_val,
        val_fraction=data.val_fraction,
        maker=InstructionMaker(**dataclasses.asdict(instruction)),
    )


def number_of_trials(dataset: str) -> int:
    """Return how many trials a data set has, 0 for one without. Raises UserError for an unknown data set."""
    _check_known(dataset)
    return 0 if dataset == ORBENCH else dataset_entry(dataset).trials


def _check_known(dataset: str) -> None:
    if dataset not in DATASETS:
        raise UserError(f"data.dataset = {dataset!r}: {nearest(dataset, DATASETS)}")


def _build_orbench(data: DataConfig, select_val: bool, need_train: bool) -> Benchmark:
    if data.exclude:
        raise UserError(f"data.exclude = {data.exclude!r}: ORBench's lists are its own; leave it empty")
    if data.protocols:
        raise UserError(f"data.protocols = {list(data.protocols)}: ORBench has one protocol only; leave it empty")
    if select_val and data.val_fraction <= 0:
        raise UserError("train.select = 'val' needs data.val_fraction > 0; set it, or select test or last")
    return load_orbench(
        data.root,
        need_train=need_train,
        val_fraction=data.val_fraction if select_val else 0.0,
        check_files=data.on_error == "raise",
    )


def build_source_reader(data: DataConfig, model: Any, benchmark: Benchmark | None = None) -> SourceReader:
    """Return the reader of single sources at the model's input size.

    With data.cache_dir and a benchmark, every image of it is decoded into the cache first. A model whose text_length is
    0 reads images only. Raises UserError for a benchmark with sources that the model does not encode.
    """
    if benchmark is not None:
        check_encodable(benchmark, model.modalities)
    images: Any = PillowReader(tuple(model.image_size))
    if data.cache_dir and benchmark is not None:
        images = build_cache(image_paths(benchmark), tuple(model.image_size), data.cache_dir, available_cores())
    if not model.text_length:
        return SourceReader(images, _no_text)
    tokenizer = ClipTokenizer()
    if model.vocab_size < tokenizer.vocab_size:
        raise UserError(f"model.vocab_size = {model.vocab_size}: the tokenizer has {tokenizer.vocab_size} ids")
    return SourceReader(images, partial(_tokenize, tokenizer, model.text_length))


def check_encodable(benchmark: Benchmark, modalities: Sequence[Modality]) -> None:
    """Raise UserError when training records or query lists of a benchmark need a modality that a model does not encode.

    Partners of training records are not required: an objective may leave them out.
    """
    known = " and ".join(modality.name for modality in modalities)
    trained = {modality for record in benchmark.train for modality in record.sources}
    if not trained <= set(modalities):
        raise UserError(
            f"the training records of {benchmark.name} hold {_names(trained)}, and this model encodes {known} only; "
            "choose another data.dataset or a configuration of another family"
        )
    for split in benchmark.splits.values():
        unknown = {modality for queries in split.query_lists for modality in queries.combination} - set(modalities)
        if unknown:
            asked = [queries.name for queries in split.query_lists if unknown & set(queries.combination)]
            more = f" and {len(asked) - SHOWN_LISTS} more" if len(asked) > SHOWN_LISTS else ""
            raise UserError(
                f"the queries of {benchmark.name} hold {_names(unknown)} ({', '.join(asked[:SHOWN_LISTS])}{more}), and "
                f"this model encodes {known} only; choose another data.dataset, other protocols (data.protocols) or a "
                "model of another family"
            )


def _names(modalities: Collection[Modality]) -> str:
    return " and ".join(modality.name for modality in Modality if modality in modalities)


def _no_text(text: str) -> Tensor:
    raise UserError(
        f"this model reads images only, not the text {text[:40]!r}; choose another family or other protocols "
        "(data.protocols)"
    )


def _tokenize(tokenizer: ClipTokenizer, length: int, text: str) -> Tensor:
    return tokenizer(text, length)


def image_paths(benchmark: Benchmark) -> list[str]:
    """Return every distinct image file of a benchmark, sorted."""
    sources = [source for record in benchmark.train for source in record.sources.values()]
    for partners in {id(record.partners): record.partners for record in benchmark.train}.values():
        sources += [source for candidates in partners.values() for source in candidates]
    for split in benchmark.splits.values():
        sources += [source for group in distinct_sources(split).values() for source in group]
    return sorted({source.value for source in sources if MODALITIES[source.modality].is_image})


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

    def __init__(self, dataset: RecordDataset, batches: Batches, workers: int, skip: bool) -> None:
        self.records, self.steps_per_epoch, self.skipped = dataset.records, len(batches), []  # type: ignore[var-annotated]
        self.batches, self._skip, self._batches = batches, skip, _EpochBatches(batches)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, after a resumption (`batches.load_state_dict`) those not yet used.

        Raises UserError for an unreadable image unless data.on_error is skip.
        """
        self._batches.current = epoch
        first = self.batches.resumes_at(epoch)
        for number, (batch, failures) in enumerate(self._loader, start=first + 1):
            self.batches.used(epoch, number)
            for failure in failures:
                if not self._skip:
                    raise UserError(failure.reason)
                if failure.reason not in self.skipped:
                    self.skipped.append(failure.reason)
                    logger.warning("skipped: %s", failure.reason)
            if batch is not None and self._usable(batch, failures):
                yield batch

    def _usable(self, batch: Batch, failures: Sequence[Failure]) -> bool:
        """Whether losses are defined: one row has no negative, and what was skipped may have taken all of a modality or
        of the others.
        """
        if not failures:
            return len(batch.person_ids) > 1
        skipped = [self.records[failure.record_id] for failure in failures]
        listed = {modality for record in skipped for modality in (*record.sources, *record.partners)}
        return listed <= set(batch.inputs) and len(batch.person_ids.unique()) > 1


class _EpochBatches:
    def __init__(self, batches: Batches) -> None:
        self.batches, self.current = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches.epoch(self.current)


def build_train_loader(
    benchmark: Benchmark,
    data: DataConfig,
    augment: AugmentConfig,
    reader: SourceReader,
    train: TrainConfig,
    *,
    seed: int,
    workers: int,
    instruction: InstructionConfig | None = None,
) -> TrainLoader:
    """Return the loader of training batches. instruction: how that of each row is drawn; None = the model follows none.

    Raises UserError when no whole batch can be formed.
    """
    masking = CaptionMasking(share=augment.caption_mask, mask_id=ClipTokenizer.mask_id, keep_eot=augment.keep_eot)
    images = ImageAugmentation(flip=augment.flip, pad=augment.pad_crop, erase=augment.erase, channel=augment.channel)
    batches = SAMPLERS[train.sampler](benchmark.train, train, seed)
    if not len(batches):
        raise UserError(
            f"train.batch_size = {train.batch_size} with the {train.sampler} sampler forms no batch out of "
            f"{len(benchmark.train)} records of {benchmark.num_identities} identities; lower it"
        )
    instruct = InstructionMaker(**dataclasses.asdict(instruction)).for_training if instruction is not None else None
    dataset = RecordDataset(benchmark.train, reader, images, masking, seed, instruct)
    return TrainLoader(dataset, batches, workers, data.on_error == "skip")


class _SourceDataset(Dataset[tuple[int, Tensor | None, str]]):
    def __init__(self, sources: Sequence[Source], reader: SourceReader) -> None:
        self.sources, self.reader = sources, reader

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            return index, self.reader(self.sources[index]), ""
        except UserError as error:
            return index, None, str(error)


def source_loader(
    sources: Sequence[Source], reader: SourceReader, batch_size: int, workers: int
) -> DataLoader[SourceBatch]:
    """Return a loader over sources of ONE modality, in order.

    It yields (indices (b,) int64, inputs (b, ...), failures [(index, reason)]); b may be smaller than batch_size, even
    0.
    """
    modalities = {Modality(source.modality) for source in sources}
    assert len(modalities) <= 1, "sources of one loader share a modality"
    return DataLoader(
        _SourceDataset(sources, reader),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate_sources,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )


def _collate_sources(items: Sequence[tuple[int, Tensor | None, str]]) -> SourceBatch:
    good = [(index, value) for index, value, _ in items if value is not None]
    failures = [(index, reason) for index, value, reason in items if value is None]
    inputs = torch.stack([value for _, value in good]) if good else torch.empty(0)
    return torch.tensor([index for index, _ in good], dtype=torch.int64), inputs, failures


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
