"""ALBEF's encoders as fixed encoders of annotations: the instruction features F_T of Instruct-ReID's eq. 8.

The layer is the class token before any projection, of the text encoder's layers that see no image and of the momentum
image encoder, which the paper's instruction encoder starts from.
Shapes: m distinct annotations, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs.schema.irm import IrmConfig
from configs.vocabulary import Modality
from datasets.loading.tokenizers import VOCAB_FILE, WordPieces
from datasets.loading.transforms import model_input
from model.editing import ImageTower, TowerSpec
from model.instruction_encoders import TextEncoder, TextSpec
from model.weights.irm_sources import TowerSource, read_albef_clothes, read_albef_text
from model.weights.positions import resize_grid
from solver.evaluation.annotation_encoders import CLOTHES_BATCH, PieceCls, digest
from utils.errors import UserError
from utils.progress import progress_bar

CLOTHES_SIZE = (128, 128)
"""Height and width of a picture of clothes, as in the paper."""
HEAD_COLUMNS = 64
"""Columns of an attention head, as in every BERT and ViT of ALBEF's kind; its file does not say."""
Part = TypeVar("Part", TextEncoder, ImageTower)
NO_FUSION = IrmConfig(fusion_layers=0)
"""What is read of a file: the layers that see the text alone."""


class AlbefTexts(PieceCls):
    """Class token of ALBEF's text encoder. It reads texts as `TextCls` does; padding is masked."""

    def __init__(self, place: str) -> None:
        """place: ALBEF's checkpoint, with the vocabulary of its BERT, vocab.txt, beside it. Raises UserError."""
        folder = Path(place).parent
        source = read_albef_text(place, NO_FUSION)
        if not (folder / VOCAB_FILE).is_file():
            raise UserError(
                f"{place}: texts are read by the vocabulary of its BERT, and there is no {VOCAB_FILE} beside it; copy "
                "that of bert-base-uncased there"
            )
        tokenizer = WordPieces(str(folder))
        if tokenizer.vocab_size > source.sizes["vocab_size"]:
            raise UserError(
                f"{folder}/{VOCAB_FILE} has {tokenizer.vocab_size} pieces and {place} weights for "
                f"{source.sizes['vocab_size']}; they do not belong together"
            )
        super().__init__(f"albef:{place}", tokenizer)
        spec = TextSpec(
            vocab_size=source.sizes["vocab_size"],
            positions=len(source.tensors["embeddings.position_embeddings.weight"]),
            width=source.sizes["width"],
            heads=_heads(source.sizes["width"]),
            layers=source.sizes["text_layers"],
            fusion_layers=0,
            hidden=len(source.tensors["layers.0.intermediate.dense.weight"]),
        )
        self._model = _filled(TextEncoder(spec), source.tensors, place)

    def weights(self) -> Mapping[str, Tensor]:
        """Return what the vectors depend on."""
        return self._model.state_dict()

    def cls(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the class tokens (n, D) of rows of ids."""
        return self._model(ids).cls


class AlbefClothes:
    """Class token of ALBEF's momentum image encoder, pictures at 128x128 and normalised as ALBEF's are (CLIP's
    statistics); its positions are resized bicubically, as the released IRM does.
    """

    def __init__(self, place: str) -> None:
        """place: ALBEF's checkpoint. Raises UserError."""
        source = read_albef_clothes(place, NO_FUSION)
        self.name = f"albef:{place}"
        spec = TowerSpec(
            image_size=CLOTHES_SIZE,
            patch_size=source.sizes["patch_size"],
            width=source.sizes["width"],
            layers=source.sizes["layers"],
            heads=_heads(source.sizes["width"]),
        )
        self._model = _filled(ImageTower(spec), _on_grid(source, spec.grid), place)

    @torch.inference_mode()
    def encode(self, images: Iterable[Image.Image], count: int) -> tuple[np.ndarray, str]:
        """Return vectors (m, D) of `count` pictures, and a digest of the weights."""
        vectors = []
        rows: list[Tensor] = []
        for number, image in enumerate(progress_bar(images, count, "clothes", "image"), start=1):
            resized = image.convert("RGB").resize(CLOTHES_SIZE[::-1], Image.Resampling.BILINEAR)
            rows.append(torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy()))
            if len(rows) == CLOTHES_BATCH or number == count:
                vectors.append(self._model(model_input(Modality.RGB, torch.stack(rows), statistics="clip")).cls)
                rows = []
        state = self._model.state_dict()
        return torch.cat(vectors).double().numpy(), digest(state[name] for name in sorted(state))


def _on_grid(source: TowerSource, grid: tuple[int, int]) -> dict[str, Tensor]:
    tensors = dict(source.tensors)
    assert source.grid is not None, "a tower has positions"
    if source.grid != grid:
        rows = tensors["embed.patch_positions"][0]
        tensors["embed.patch_positions"] = resize_grid(rows, source.grid, grid, source.method)[None]
    return tensors


def _heads(width: int) -> int:
    return max(width // HEAD_COLUMNS, 1)


def _filled(part: Part, tensors: Mapping[str, Tensor], place: str) -> Part:
    """Return a tower with its weights, at test. Raises UserError where they do not fit."""
    expected = part.state_dict()
    wrong = [name for name, value in tensors.items() if name not in expected or expected[name].shape != value.shape]
    lost = [name for name, _ in part.named_parameters() if name not in tensors]
    if wrong or lost:
        raise UserError(
            f"{place} is no ALBEF that annotations can be encoded by: {(wrong + lost)[0]} is missing, unknown or of "
            "another shape; give ALBEF.pth"
        )
    part.load_state_dict(dict(tensors), strict=False)
    return part.eval()
