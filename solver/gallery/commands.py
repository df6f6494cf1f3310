"""What the commands of solver.gallery do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from configs.vocabulary import Modality
from datasets.build import build_source_reader
from datasets.structures import Source
from solver.commands.opening import ModelChoice, Opened, instructions_taken, open_trained
from solver.gallery.adding import SHOWN, Added, Encode, add_images, all_images, changed_files, named_ids
from solver.gallery.approximate import make, told
from solver.gallery.arguments import GalleryOptions, worker_place
from solver.gallery.encoding import (
    encode_images,
    features_depend_on,
    instruction_record,
    statistics_of,
    told_with,
)
from solver.gallery.index import GalleryIndex, open_index
from solver.gallery.jobs import Job, begun, finished, open_jobs, run_job
from solver.gallery.layout import DTYPES, IndexState, read_state
from solver.gallery.listing import ListedImage, listed_images
from solver.gallery.place import is_index
from solver.gallery.ray_engine import encode_with_ray, load_ray
from solver.gallery.writing import check_same, check_unused, writing
from solver.runs import model_identity
from solver.search.queries import instruction_from
from utils.errors import UserError, shortened
from utils.files import check_folder
from utils.log import configure_logging
from utils.threads import available_cores

Answer = tuple[str, int]
"""What is printed, and the exit code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adding:
    """Images that are to be added, and what encodes them."""

    images: Sequence[ListedImage]
    state: IndexState
    """Of a new index of the model."""
    encode: Encode
    model: str
    """Names the model."""


def add(options: GalleryOptions) -> Answer:
    """Encode images into an index. Raises UserError, before the weights are read, for what can be known to be wrong."""
    configure_logging()
    folder = Path(options.index)
    if options.engine == "ray":
        load_ray()
        # Its workers have the devices.
        job, encode = job_of(replace(options, device="cpu"))
        return begun(job) or finished(job, encode_with_ray(partial(job_of, options), job.shards, options.device)), 0
    if options.shards:
        place, workers = options.part or worker_place()
        job, encode = job_of(replace(options, device=own_device(options.device, place, workers)))
        return run_job(job, encode, place, workers), 0
    adding = opened(options)
    with writing(folder, adding.state) as writer:
        check_same(writer.state, adding.state.model, folder, adding.model)
        done = add_images(writer, adding.images, adding.encode)
        index = writer.read()
    return "\n".join(_said(folder, done, index)), 0


def opened(options: GalleryOptions) -> Adding:
    """Return what is to be added, with the model loaded. Raises UserError, see `add`."""
    choice = ModelChoice.of(options)
    folder = Path(options.index)
    check_folder(folder, "--index")
    images = listed_images(options.photos, options.manifest, Modality(options.modality))
    said = instruction_from(options.instruction, options.instruction_image, "--instruction")
    crop = options.gallery_instruction == "crop"
    record = instruction_record(said, crop)
    if is_index(folder):
        check_told(read_state(folder), record, options.dtype, folder)
    elif folder.is_dir():
        check_unused(folder)
    if (said is not None or crop) and not instructions_taken(choice).gallery:
        raise UserError("this model tells gallery images nothing; leave the instruction out, or use one that does")
    model = open_trained(choice)
    check_encodable(model, images)
    return Adding(
        images=images,
        state=index_state(model, record, DTYPES[options.dtype or "fp32"]),
        encode=encoder(model, said, crop),
        model=options.run or str(model.trained.checkpoint),
    )


def job_of(options: GalleryOptions) -> tuple[Job, Encode]:
    """Return the sharded job of a command, and what encodes its parts. Raises UserError, see `add`."""
    adding = opened(options)
    # One thread, whatever the launcher says: the sums of a part do not depend on how many workers there are.
    torch.set_num_threads(1)
    job = Job(
        folder=Path(options.index),
        state=adding.state,
        images=adding.images,
        shards=options.shards,
        model=adding.model,
    )
    return job, adding.encode


def own_device(device: str, place: int, workers: int) -> str:
    """Return the device of a worker: of several on one machine with several GPUs each has one."""
    if device == "auto" and workers > 1 and torch.cuda.is_available():
        return f"cuda:{place % torch.cuda.device_count()}"
    return device


def check_told(state: IndexState, record: Mapping[str, object], dtype: str, folder: Path) -> None:
    """Raise UserError for an index whose images were told something else, or that keeps features otherwise."""
    if dict(state.instruction) != dict(record):
        raise UserError(
            f"the images of {folder} were told {described(state.instruction)}, and these would be told "
            f"{described(record)}; their features cannot be compared, make an index of its own"
        )
    if dtype and DTYPES[dtype] != state.dtype:
        raise UserError(f"{folder} keeps features as {state.dtype}; leave --dtype {dtype} out, or make another index")


def described(record: Mapping[str, object]) -> str:
    """Return what an index's images were told, in words."""
    words = {"none": "nothing", "crop": "their own upper bodies", "picture": "a picture", "text": "a text"}
    kind = words.get(str(record.get("told")), "something else")
    return f"{kind}: {record['text']!r}" if "text" in record else kind


def check_encodable(opened: Opened, images: Sequence[ListedImage]) -> None:
    """Raise UserError for images that the model does not encode."""
    known = opened.trained.config.model.modalities
    unknown = sorted({image.source.modality.name for image in images if image.source.modality not in known})
    if unknown:
        raise UserError(
            f"this model encodes {', '.join(modality.name for modality in known)}, not {', '.join(unknown)}; leave "
            "those images out, or use a model of another family"
        )


def index_state(opened: Opened, record: Mapping[str, object], dtype: str) -> IndexState:
    """Return the state of a new index of a model."""
    return IndexState(
        model=features_depend_on(model_identity(opened.trained), opened.spec),
        statistics=statistics_of(opened.trained.model),
        dimension=opened.trained.model.embed_dim,
        dtype=dtype,
        instruction=record,
    )


def encoder(opened: Opened, told: Source | None, crop: bool) -> Encode:
    """Return what encodes images with a model; those that cannot be read are left out and listed."""
    reader = build_source_reader(opened.trained.config.data, opened.trained.config.model)
    spec = replace(opened.spec, skip_unreadable=True)

    def encode(images: Sequence[ListedImage]) -> tuple[np.ndarray, dict[int, str]]:
        sources = [image.source for image in images]
        instructions = told_with(told, crop, sources)
        return encode_images(opened.trained.model, reader, spec, opened.device, sources, instructions)

    return encode


def _said(folder: Path, done: Added, index: GalleryIndex) -> list[str]:
    lines = [
        f"{folder}: {done.added:,} images added, {done.replaced:,} of them for changed ones; {done.unchanged:,} were "
        f"there; {index.count:,} in all"
    ]
    if done.unreadable:
        first = done.unreadable[0]
        lines.append(f"{len(done.unreadable):,} images cannot be read and are left out, the first: {first.reason}")
    return lines


def remove(options: GalleryOptions) -> Answer:
    """Take images out of an index."""
    configure_logging()
    with writing(options.index) as writer:
        ids = named_ids(writer.read(), options.photos, options.missing)
        writer.remove(ids)
        count = writer.read().count
    return f"{options.index}: {len(ids):,} images removed, {count:,} left; compact gives their place back", 0


def compact(options: GalleryOptions) -> Answer:
    """Write an index anew without what was removed."""
    configure_logging()
    with writing(options.index) as writer:
        before = _bytes(writer.state)
        writer.compact()
        after, shards = _bytes(writer.state), len(writer.state.shards)
    return f"{options.index}: {before:,} bytes before, {after:,} now, in {shards} shards", 0


def _bytes(state: IndexState) -> int:
    return sum(size for shard in state.shards for size, _ in shard.files.values())


def info(options: GalleryOptions) -> Answer:
    """Say what is in an index; with --check also whether its files, and those of its images, are what they were."""
    index = open_index(options.index, verify=options.check)
    state = index.state
    unreadable = [row for _, row in index.unreadable()]
    lines = [
        f"{options.index}: {index.count:,} images ({', '.join(m.name for m in index.modalities) or 'none'}), "
        f"{state.rows - index.count:,} removed, {len(unreadable):,} unreadable",
        f"features: {state.dimension} x {state.dtype}, {_bytes(state):,} bytes in {len(state.shards)} shards",
        "model: " + ", ".join(f"{name} {value}" for name, value in state.model.items()),
        f"statistics: {state.statistics.get('name')}; told: {described(state.instruction)}; persons: "
        + ("known" if index.persons_known else "unknown"),
    ]
    if unreadable:
        lines.append(f"unreadable: {shortened([row.path for row in unreadable], SHOWN)}")
    for job in open_jobs(Path(options.index)):
        lines.append(f"unfinished: {job.folder}, {job.done} of {job.shards} parts; start the same command again")
    if not options.check:
        return "\n".join(lines), 0
    found = changed_files(row for _, row in all_images(index))
    for what, paths in (("changed", found.changed), ("missing", found.missing)):
        if paths:
            lines.append(f"{len(paths):,} images are {what}: {shortened(paths, SHOWN)}")
    wrong = bool(found.changed or found.missing)
    lines.append("add the same images again, or remove --missing" if wrong else "every file is what was encoded")
    return "\n".join(lines), int(wrong)


def approximate(options: GalleryOptions) -> Answer:
    """Make codes for an approximate search, and say how well they do."""
    configure_logging()
    torch.set_num_threads(available_cores())
    with writing(options.index) as writer:
        measured = make(writer.read(), options.lists, options.code_bytes)
    return f"{options.index}: {told(measured)}", 0


COMMANDS: Mapping[str, Callable[[GalleryOptions], Answer]] = {
    "add": add,
    "remove": remove,
    "compact": compact,
    "approximate": approximate,
    "info": info,
}
