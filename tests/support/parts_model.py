"""A model whose features have a part for identity and one for captions, and both done by hand in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from protocol_oracle import DIM, ToyModel, read
from torch import Tensor

from configs.vocabulary import Combination, Modality
from datasets.structures import EvalSplit, QueryList, Source
from model.interface import Instructions, Tokens
from utils.retrieval.options import Similarity

RGB, TEXT = Modality.RGB, Modality.TEXT
PARTS = {TEXT: slice(DIM, 2 * DIM)}
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


class PartsModel(ToyModel):
    """[identity | caption]: an image fills both, an instructed one the first, a caption the second."""

    def __init__(self, similarity: Similarity = "cosine") -> None:
        super().__init__(follows=True)
        self.embed_dim, self.similarity = 2 * DIM, similarity

    def compared(self, combination: Combination) -> slice:
        return PARTS.get(combination[0], slice(0, DIM))

    def _encoded(self, modality: Modality, inputs: Tensor, instructions: Instructions) -> Tokens:
        hidden = inputs.flatten(1).to(torch.float32) @ self.maps[modality]
        told = torch.zeros_like(hidden)
        instructed = torch.zeros(len(hidden), 1)
        for given in instructions:
            said = given.inputs.flatten(1).to(torch.float32) @ self.maps[TEXT] * 0.3
            told += torch.cat([said, torch.zeros(1, DIM)])[given.rows]
            instructed[given.rows >= 0] = 1.0
        identity = (hidden + told).tanh() * (hidden.abs().mean(1, keepdim=True) + 1)
        caption = hidden.flip(1).tanh() * (1 - instructed) * 3
        if modality is TEXT:
            identity = torch.zeros_like(identity)
        pooled = torch.cat([identity, caption], dim=1)
        return Tokens(tokens=pooled[:, None], pooled=pooled)


def by_hand(model: ToyModel, source: Source, said: Source | None = None, mirror: bool = False) -> np.ndarray:
    """The feature (2 * DIM,) of one source alone, not normalised."""

    def numbers(one: Source, turned: bool = False) -> np.ndarray:
        values = read(one).numpy().astype(np.float64)
        if one.modality is TEXT:
            return values
        values = values[:, :, ::-1] if turned else values
        return ((values / 255 - MEAN[:, None, None]) / STD[:, None, None]).reshape(-1)

    hidden = numbers(source, mirror) @ model.maps[source.modality].double().numpy()
    told = hidden if said is None else hidden + numbers(said) @ model.maps[TEXT].double().numpy() * 0.3
    identity = np.tanh(told) * (np.abs(hidden).mean() + 1) * (source.modality is not TEXT)
    caption = np.tanh(hidden[::-1]) * 3 * (said is None)
    return np.concatenate([identity, caption])


def image(number: int, person: int) -> Source:
    return Source(modality=RGB, value=f"{number}_{person}.jpg", record=f"image {number}")


def text(value: str) -> Source:
    return Source(modality=TEXT, value=value, record=value)


def split_of(queries: int = 9, gallery: int = 23, persons: int = 4, **lists: Any) -> EvalSplit:
    """Images under instructions, images alone and captions search one gallery; equal captions among them."""
    draw = np.random.default_rng(5)
    asked, items = draw.integers(0, persons, queries).tolist(), draw.integers(0, persons, gallery).tolist()
    images = tuple((image(100 + number, person),) for number, person in enumerate(asked))
    captions = tuple((text(f"caption {number // 2}"),) for number in range(queries))
    told = tuple(text(f"told {number % 3}") for number in range(queries))
    return EvalSplit(
        name="test",
        protocol="made up",
        gallery=tuple(image(number, person) for number, person in enumerate(items)),
        gallery_ids=tuple(items),
        query_lists=(
            QueryList(combination=(RGB,), entries=images, instructions=told, person_ids=asked, title="told", **lists),
            QueryList(
                combination=(RGB,), entries=images, instructions=(None,) * queries, person_ids=asked, title="alone"
            ),
            QueryList(
                combination=(TEXT,),
                entries=captions,
                instructions=(None,) * queries,
                person_ids=tuple(asked[number // 2 * 2] for number in range(queries)),
                title="captions",
            ),
        ),
    )


def similarity_by_hand(split: EvalSplit, number: int, model: PartsModel, flip: bool = False) -> np.ndarray:
    """(Q, G): of one list, each pair by itself."""
    listed = split.query_lists[number]
    columns = slice(DIM, None) if listed.combination == (TEXT,) else slice(DIM)

    def vector(source: Source, said: Source | None) -> np.ndarray:
        rows = [by_hand(model, source, said, mirror)[columns] for mirror in ((False, True) if flip else (False,))]
        if model.similarity == "euclidean":
            return np.mean(rows, axis=0)
        mean = np.sum([row / np.sqrt(row @ row) for row in rows], axis=0)
        return mean / np.sqrt(mean @ mean)

    queries = [vector(entry[0], said) for entry, said in zip(listed.entries, listed.instructions)]
    items = [vector(source, None) for source in split.gallery]
    if model.similarity == "euclidean":
        return np.array([[-((query - item) ** 2).sum() for item in items] for query in queries])
    return np.array([[query @ item for item in items] for query in queries])


def precision_by_hand(similarity: np.ndarray, asked: list[int], items: list[int]) -> list[float]:
    """Average precision in percent of every query, NaN without a match."""
    found = []
    for row, person in zip(similarity, asked):
        order = sorted(range(len(items)), key=lambda item: (-row[item], item))
        ranks = [rank for rank, item in enumerate(order, start=1) if items[item] == person]
        found.append(100 * float(np.mean([hit / rank for hit, rank in enumerate(ranks, start=1)])) if ranks else np.nan)
    return found
