"""How each modality is read and normalised; the one place a new modality is described."""

from __future__ import annotations

from dataclasses import dataclass

from configs.vocabulary import Modality

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "clip": (CLIP_MEAN, CLIP_STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel of values in [0, 1]; a model says by which its images are normalised."""


@dataclass(frozen=True)
class ModalitySpec:
    """is_image: read as a picture, else as text. folder: ORBench's name of it."""

    is_image: bool
    folder: str = ""


MODALITIES: dict[Modality, ModalitySpec] = {
    Modality.RGB: ModalitySpec(is_image=True, folder="vis"),
    Modality.NIR: ModalitySpec(is_image=True, folder="nir"),
    Modality.CP: ModalitySpec(is_image=True, folder="cp"),
    Modality.SK: ModalitySpec(is_image=True, folder="sk"),
    Modality.TEXT: ModalitySpec(is_image=False),
}
