"""Fixed encoders of annotations, independent of any model under test: what mAP at a threshold calls similar.

Shapes: m distinct annotations, D dimensions.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.loading.captions import preprocess_caption
from datasets.loading.tokenizers import ClipTokenizer, WordPieces
from model.weights.model_folders import read_configuration
from utils.errors import UserError
from utils.foreign import foreign_file
from utils.processes import ALONE, Processes
from utils.progress import progress_bar
from utils.retrieval.annotation_vectors import SparseRows

CLS_BATCH = 64
CLOTHES_BATCH = 64
"""Pictures of clothes that are encoded together; processes share them out so many at a time."""

CLOTHES_SIZE = 64
CENTRE = (0.3, 0.15)
"""Spread of the attention, as shares of height and width: what lies around the clothes differs between a crop and a
template.
"""
COLOUR_BINS = (3, 12, 12)
COLOUR_RANGE = ((0.0, 100.0), (-60.0, 60.0), (-60.0, 60.0))
ORIENTATIONS = 8
FULL_GRADIENT = 20.0
COLOUR_WEIGHT = 0.9


class TextEncoder(Protocol):
    """Texts to vectors. name: stamps the results."""

    name: str

    def pieces(self, text: str) -> list[int]:
        """Return the word pieces of a text; none for an empty one, which is no annotation."""

    def encode(self, texts: Sequence[list[int]], processes: Processes = ALONE) -> tuple[np.ndarray | SparseRows, str]:
        """Return vectors (m, D) of the distinct texts of a split, given as pieces, and a digest of whatever they depend
        on. processes: all call this with the same texts, and may share them out.
        """


class ClothesEncoder(Protocol):
    """Pictures of clothes to vectors. name: stamps the results."""

    name: str

    def encode(self, images: Iterable[Image.Image], count: int) -> tuple[np.ndarray, str]:
        """Return vectors (m, D) of `count` pictures, and a digest of whatever they depend on."""


class TfIdf:
    """Term frequency times inverse document frequency of CLIP's word pieces, the frequencies from the split's distinct
    texts.

    Texts are in lower case and without punctuation (`preprocess_caption`, not cut). idf = ln((1 + m) / (1 + documents
    with the piece)) + 1, so that a split of one text has a direction too.
    """

    name = "tfidf-clip-pieces"

    def __init__(self) -> None:
        self._tokenizer = ClipTokenizer()

    def pieces(self, text: str) -> list[int]:
        """Return CLIP's word pieces."""
        return self._tokenizer.encode(preprocess_caption(text, max_words=len(text)))

    def encode(self, texts: Sequence[list[int]], processes: Processes = ALONE) -> tuple[SparseRows, str]:
        """Return the vectors; the digest covers the pieces that occur and their idf. Counting takes no time worth
        sharing: every process does it all.
        """
        counts = [Counter(pieces) for pieces in texts]
        documents = Counter(piece for count in counts for piece in count)
        known = np.array(sorted(documents), dtype=np.int64)
        present = np.array([documents[piece] for piece in known.tolist()], dtype=np.float64)
        idf = np.log((1 + len(texts)) / (1 + present)) + 1
        columns = np.searchsorted(
            known, np.array([piece for count in counts for piece in sorted(count)], dtype=np.int64)
        )
        times = np.array([count[piece] for count in counts for piece in sorted(count)], dtype=np.float64)
        starts = np.append(0, np.cumsum([len(count) for count in counts])).astype(np.int64)
        vectors = SparseRows(starts=starts, columns=columns, values=times * idf[columns], size=max(len(known), 1))
        return vectors, digest([known, idf])


class PieceCls(ABC):
    """Class tokens of a text encoder that reads BERT's word pieces.

    It reads texts as IRM's text branch does: `preprocess_caption`, [CLS] and at most 69 word pieces, no [SEP].
    """

    centred = False
    """The vectors are what is left after their mean over the split's distinct texts of a kind is taken away."""

    def __init__(self, name: str, tokenizer: WordPieces) -> None:
        self.name, self._tokenizer = name, tokenizer

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return what the vectors depend on beside the vocabulary."""

    @abstractmethod
    def cls(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return class tokens (n, D). ids, mask (n, L) int64: mask 0 = padding."""

    def pieces(self, text: str) -> list[int]:
        """Return BERT's word pieces."""
        return self._tokenizer.encode(preprocess_caption(text))

    @torch.inference_mode()
    def encode(self, texts: Sequence[list[int]], processes: Processes = ALONE) -> tuple[np.ndarray, str]:
        """Return the vectors; the digest covers the weights, the vocabulary and the mean."""
        rows = [[self._tokenizer.start_id, *pieces][: self._tokenizer.length] for pieces in texts]
        distinct = list(dict.fromkeys(map(tuple, rows)))
        starts = range(0, len(distinct), CLS_BATCH)[processes.share(-(-len(distinct) // CLS_BATCH))]
        own = [
            self._batch(distinct[start : start + CLS_BATCH]).double().numpy()
            for start in progress_bar(starts, None, "annotations", "batch")
        ]
        places = {row: place for place, row in enumerate(distinct)}
        vectors = np.concatenate([batch for found in processes.told(own) for batch in found])
        mean = vectors.mean(axis=0) if self.centred and len(distinct) > 1 else np.zeros(vectors.shape[1])
        state = self.weights()
        words = np.frombuffer("\n".join(self._tokenizer.vocabulary).encode(), dtype=np.uint8)
        checksum = digest([*(state[name] for name in sorted(state)), words, mean])
        return (vectors - mean)[[places[tuple(row)] for row in rows]], checksum

    def _batch(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._tokenizer.pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        return self.cls(ids, mask)


class TextCls(PieceCls):
    """CLS of the last layer of a pretrained BERT (`t_s`); centred = minus its mean over the split's distinct texts of a
    kind.

    The CLS of all texts lie close together, so that raw cosines are above every threshold; the mean takes that away. A
    single text is not centred: nothing would be left.
    """

    def __init__(self, place: str, centred: bool) -> None:
        """place: folder of a BERT with its vocabulary, or a hub id. Raises UserError when it cannot be read as such."""
        tokenizer, self._model = _read_bert(place)
        super().__init__(f"{'t_s_centred' if centred else 't_s'}:{place}", tokenizer)
        self.centred = centred

    def weights(self) -> Mapping[str, Tensor]:
        """Return BERT's."""
        return self._model.state_dict()

    def cls(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the class tokens of the last layer."""
        return self._model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]


def _read_bert(place: str) -> tuple[WordPieces, Any]:
    """Tokenizer and model, without pooler. Raises UserError."""
    from transformers import BertConfig, BertModel

    remedy = "give a folder with config.json, model.safetensors and vocab.txt, or check the hub id and the network"
    with foreign_file(f"{place} cannot be read as a BERT", remedy):
        loaded: Any = BertModel.from_pretrained(
            place,
            config=read_configuration(BertConfig, place, place, "bert-base-uncased"),
            add_pooling_layer=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, loading = loaded
    if loading["missing_keys"]:
        raise UserError(
            f"{place} lacks {len(loading['missing_keys'])} of its model's weights, "
            f"{sorted(loading['missing_keys'])[0]} first; download it again"
        )
    tokenizer = WordPieces(place)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{place} has a vocabulary of {tokenizer.vocab_size} pieces and weights for {model.config.vocab_size}; "
            "they do not belong together"
        )
    return tokenizer, model.eval()


class ClothesHistogram:
    """Colour and texture of a picture of clothes as one vector whose cosine is a weighted overlap of histograms.

    CIELAB colours (D65) in 3 x 12 x 12 cells, shared linearly between neighbouring cells; orientations of the lightness
    gradient in 8 directions and one entry for flat areas. Pixels count by a normal weight around the centre. The square
    roots of both histograms have length 1 and are joined, so that the cosine is 0.9 x the Bhattacharyya coefficient of
    the colours + 0.1 x that of the textures.
    """

    name = "lab-gradient-histogram"

    def encode(self, images: Iterable[Image.Image], count: int) -> tuple[np.ndarray, str]:
        """Return vectors (m, D) float32 of `count` pictures, and a digest of the histogram's layout."""
        vectors = [histogram(image) for image in progress_bar(images, count, "clothes", "image")]
        layout = repr((CLOTHES_SIZE, CENTRE, COLOUR_BINS, COLOUR_RANGE, ORIENTATIONS, FULL_GRADIENT, COLOUR_WEIGHT))
        width = int(np.prod(COLOUR_BINS)) + ORIENTATIONS + 1
        return np.array(vectors, dtype=np.float32).reshape(-1, width), digest(
            [np.frombuffer(layout.encode(), dtype=np.uint8)]
        )


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) uint8 to CIELAB of the D65 white, float64. Source: IEC 61966-2-1 and CIE 15."""
    values = pixels / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    ratio = linear @ (matrix / matrix.sum(1, keepdims=True)).T
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    light, red, blue = np.moveaxis(root, -1, 0)[[1, 0, 2]]
    return np.stack([116 * light - 16, 500 * (red - light), 200 * (light - blue)], axis=-1)


def histogram(image: Image.Image) -> np.ndarray:
    """Return the vector (441,) float64 of one picture; its length is 1."""
    size = (CLOTHES_SIZE, CLOTHES_SIZE)
    colours = lab(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)))
    weights = _centre_weights()
    parts = (
        np.sqrt(_colour_shares(colours.reshape(-1, 3), weights.reshape(-1))),
        np.sqrt(_texture_shares(colours[..., 0], weights)),
    )
    return np.concatenate([np.sqrt(COLOUR_WEIGHT) * parts[0], np.sqrt(1 - COLOUR_WEIGHT) * parts[1]])


def _centre_weights() -> np.ndarray:
    """Weight of each pixel; their sum is 1."""
    place = np.linspace(-0.5, 0.5, CLOTHES_SIZE)
    down, right = (np.exp(-0.5 * (place / spread) ** 2) for spread in CENTRE)
    weights = np.outer(down, right)
    return weights / weights.sum()


def _colour_shares(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of each colour cell; a colour is divided between the eight cells whose centres surround it."""
    shares = np.zeros(int(np.prod(COLOUR_BINS)))
    below, above = [], []
    for axis, (bins, (low, high)) in enumerate(zip(COLOUR_BINS, COLOUR_RANGE)):
        place = np.clip((colours[:, axis] - low) / (high - low) * bins - 0.5, 0, bins - 1)
        below.append(np.minimum(place.astype(np.int64), bins - 2))
        above.append(place - below[-1])
    for corner in np.ndindex(2, 2, 2):
        cell = np.ravel_multi_index([start + step for start, step in zip(below, corner)], COLOUR_BINS)
        part = np.prod([rest if step else 1 - rest for rest, step in zip(above, corner)], axis=0)
        shares += np.bincount(cell, weights=weights * part, minlength=len(shares))
    return shares


def _texture_shares(lightness: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of each direction (without sign) of the gradient, and of flat areas; a weak gradient counts partly as
    flat.
    """
    down, right = np.gradient(lightness)
    strength = np.minimum(np.hypot(down, right) / FULL_GRADIENT, 1) * weights
    turn = np.mod(np.arctan2(down, right) / np.pi, 1) * ORIENTATIONS
    direction = np.minimum(turn.astype(np.int64), ORIENTATIONS - 1)
    shares = np.bincount(direction.reshape(-1), weights=strength.reshape(-1), minlength=ORIENTATIONS)
    return np.append(shares, max(1 - strength.sum(), 0))


def digest(arrays: Iterable[np.ndarray | Tensor]) -> str:
    """SHA-256 of arrays with their types and shapes."""
    found = hashlib.sha256()
    for array in arrays:
        values = array.detach().cpu().contiguous().numpy() if isinstance(array, Tensor) else np.ascontiguousarray(array)
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()
