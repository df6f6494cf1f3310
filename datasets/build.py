"""From configuration to benchmark, readers and loaders. Data sets are registered in datasets.catalogue."""

from __future__ import annotations

import logging
from pathlib import Path

from configs.schema.data import DataConfig, InstructionConfig
from configs.schema.family import FollowsInstructions, ModelSection, ReadsText
from datasets.benchmark import build_from_release, exclude_listed
from datasets.catalogue import dataset_entry, read_release
from datasets.fitting import ModelNeeds
from datasets.instructions import InstructionMaker
from datasets.loading.image_cache import build_cache
from datasets.loading.readers import ImageReader, PillowReader, SourceReader
from datasets.loading.tokenizers import build_text_reader
from datasets.modalities import MODALITIES
from datasets.structures import Benchmark, ReadOptions, Source, distinct_sources
from utils.threads import available_cores

logger = logging.getLogger(__name__)


def build_benchmark(
    data: DataConfig,
    *,
    select: str,
    need_train: bool,
    instruction: InstructionConfig = InstructionConfig(),
    needs: ModelNeeds = ModelNeeds(),
) -> Benchmark:
    """Read the annotations of data.dataset. select: val takes the data set's validation identities or cuts some from
    train.

    instruction: what a model that follows instructions is given. needs: what a model and its objective take;
    the rest is left aside with a note. Raises UserError for an unknown data set and for whatever its reader or protocol
    refuses.
    """
    entry = dataset_entry(data.dataset)
    options = ReadOptions(data=data, check_files=data.on_error == "raise", need_train=need_train, crop=instruction.crop)
    release = read_release(entry, Path(data.root), options)
    if data.exclude:
        release = exclude_listed(release, Path(data.exclude), Path(data.root), need_train)
    return build_from_release(
        entry,
        release,
        protocols=data.protocols,
        need_train=need_train,
        select_val=select == "val" and need_train,
        val_fraction=data.val_fraction,
        maker=InstructionMaker(instruction),
        needs=needs,
    )


def number_of_trials(dataset: str) -> int:
    """Return how many trials a data set has, 0 for one without. Raises UserError for an unknown data set."""
    return dataset_entry(dataset).trials


def build_source_reader(
    data: DataConfig, model_config: ModelSection, benchmark: Benchmark | None = None
) -> SourceReader:
    """Return the reader of single sources, and of annotations for a model that follows instructions.

    With data.cache_dir and a benchmark, every image of it is decoded into the cache first. Raises UserError for a
    tokenizer that does not fit.
    """
    images: ImageReader = PillowReader(model_config.image_size)
    if data.cache_dir and benchmark is not None:
        images = build_cache(
            image_sources(benchmark),
            model_config.image_size,
            data.cache_dir,
            available_cores(),
            gigabytes=data.cache_gb,
            days=data.cache_days,
        )
    texts, annotation_images = None, None
    if isinstance(model_config, ReadsText):
        texts = build_text_reader(model_config.tokenizer, model_config.text_length, model_config.vocab_size)
    if isinstance(model_config, FollowsInstructions):
        annotation_images = PillowReader(model_config.instruction_size)
    return SourceReader(images, texts, annotation_images)


def image_sources(benchmark: Benchmark) -> list[Source]:
    """Return every image source of a benchmark; one file may come several times, with other parts of it."""
    sources = [source for record in benchmark.train for source in record.sources.values()]
    sources += dict.fromkeys(
        source for record in benchmark.train for candidates in record.partners.values() for source in candidates
    )
    for split in benchmark.splits.values():
        sources += [source for group in distinct_sources(split).values() for source in group]
    return [source for source in sources if MODALITIES[source.modality].is_image]
