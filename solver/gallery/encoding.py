"""From images to features: what an index keeps of them, and what these features depend on.

Shapes: n images, N of them readable, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.vocabulary import BOX, Modality
from datasets.loading.readers import OR_SKIP, Reader
from datasets.modalities import MODALITIES, STATISTICS
from datasets.structures import Source
from model.interface import RetrievalModel
from solver.evaluation.comparison import Comparison
from solver.evaluation.encoding import SourceEncoder, encode_sources, inference
from solver.evaluation.plan import SourceTable, gallery_slots
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.token_cache import CacheBudget
from utils.errors import UserError
from utils.files import sha256_of
from utils.retrieval.ranking import unit_length

NOTHING_TOLD: Mapping[str, Any] = {"told": "none"}
"""The instruction of an index whose images were encoded alone."""


def encode_images(
    model: RetrievalModel,
    reader: Reader,
    spec: EvaluationSpec,
    device: torch.device,
    sources: Sequence[Source],
    instructions: Sequence[Source | None] = (),
) -> tuple[np.ndarray, dict[int, str]]:
    """Return features (N, D) float32 of the readable images in their order, and the reason by place of each other one.

    instructions: what the model is told with each image, or empty. Raises UserError for an unreadable image, unless the
    spec says to skip them.
    """
    table = SourceTable()
    slots = gallery_slots(table, sources, instructions)
    encoder = SourceEncoder(model, reader, spec, device)
    with inference(model, device, spec.config.precision):
        budget = CacheBudget(device_bytes=0, host_bytes=0)
        encoded = encode_sources(encoder, table, np.zeros(len(table), dtype=bool), budget)
    # They are skipped already.
    reasons = {slot: reason.removesuffix(OR_SKIP) for slot, reason in encoded.failures.items()}
    failures = {index: reasons[int(slot)] for index, slot in enumerate(slots) if int(slot) in reasons}
    readable = torch.from_numpy(np.delete(slots, list(failures))).to(encoded.pooled.device)
    return kept_form(encoded.pooled[readable], model).cpu().numpy(), failures


def kept_form(features: Tensor, model: RetrievalModel) -> Tensor:
    """Return features (n, D) float32 as an index keeps them: of length 1 where only the cosine of whole features is
    ever compared, which changes no similarity; else as the model gives them.
    """
    comparison, width = Comparison.of(model), features.shape[1]
    asked = [*((modality,) for modality in Modality), tuple(Modality)]
    whole = all(comparison.columns(combination, width) == (0, width) for combination in asked)
    return unit_length(features) if whole and comparison.similarity == "cosine" else features.float()


def statistics_of(model: RetrievalModel) -> dict[str, Any]:
    """Return by which statistics a model's images are normalised, for readers of index.json."""
    mean, std = STATISTICS[model.statistics]
    return {"name": model.statistics, "mean": list(mean), "std": list(std)}


def features_depend_on(identity: Mapping[str, Any], spec: EvaluationSpec) -> dict[str, Any]:
    """Return what the features of an image depend on besides its file. identity: see `solver.runs.model_identity`."""
    return {"precision": spec.config.precision, **identity}


def told_with(instruction: Source | None, crop: bool, sources: Sequence[Source]) -> tuple[Source | None, ...]:
    """Return what a model is told with each image: one instruction, or (crop) the image's own upper body."""
    if crop:
        return tuple(Source(modality=Modality.RGB, value=source.value, crop=BOX) for source in sources)
    return () if instruction is None else (instruction,) * len(sources)


def instruction_record(instruction: Source | None, crop: bool) -> dict[str, Any]:
    """Return what an index says of what its images were told: a text, or the content of a picture.

    Raises UserError for a picture that cannot be read.
    """
    if crop:
        return {"told": "crop"}
    if instruction is None:
        return dict(NOTHING_TOLD)
    if not MODALITIES[instruction.modality].is_image:
        return {"told": "text", "text": instruction.value}
    return {"told": "picture", "sha256": content_of(instruction)}


def content_of(instruction: Source) -> str:
    """Return a text, or the digest of a picture. Raises UserError for a picture that cannot be read."""
    if not MODALITIES[instruction.modality].is_image:
        return instruction.value
    try:
        return sha256_of(instruction.value)
    except OSError as error:
        raise UserError(
            f"{instruction.value}: the gallery's instruction cannot be read ({error.strerror}); correct the path"
        ) from error
