"""Searches measured the plain way: one query at a time, Python loops, float64; and a stand-in model for them."""

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.vocabulary import Modality
from datasets.protocols import Search
from datasets.structures import Record, Source
from model.interface import Instructions, RetrievalModel, Tokens

DIM = 5


class ToyModel(RetrievalModel):
    """One linear map per modality and a tanh; what is said beside an image is added before it. Counts its rows, and
    the distinct instructions of each batch."""

    statistics = "clip"

    def __init__(self, follows: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.num_identities, self.rows, self.told = DIM, 2, 0, 0
        self.follows_instructions = follows
        draw = torch.Generator().manual_seed(11)
        self.maps = {kind: torch.randn(24, DIM, generator=draw) for kind in Modality}

    def encode_batch(
        self, inputs: Mapping[Modality, Tensor], instructions: Mapping[Modality, Instructions] | None = None
    ) -> dict[Modality, Tokens]:
        return {kind: self._encoded(kind, rows, (instructions or {}).get(kind, ())) for kind, rows in inputs.items()}

    def _encoded(self, modality: Modality, inputs: Tensor, instructions: Instructions) -> Tokens:
        self.rows += len(inputs)
        hidden = inputs.flatten(1).to(torch.float32) @ self.maps[modality]
        for told in instructions:
            self.told += len(told.inputs)
            said = told.inputs.flatten(1).to(torch.float32) @ self.maps[Modality.TEXT] * 0.3
            hidden = hidden + torch.cat([said, torch.zeros(1, DIM)])[told.rows]
        return Tokens(tokens=torch.tanh(hidden)[:, None], pooled=torch.tanh(hidden))

    def identity_logits(self, features: Tensor) -> Tensor:
        raise AssertionError("an evaluation classifies nothing")

    def compile_blocks(self, **options: Any) -> None:
        raise AssertionError("an evaluation compiles nothing")


class ToyReader:
    """Pixels or token ids that depend on the source's text and crop alone, for sources and instructions alike."""

    def __call__(self, source: Source) -> Tensor:
        return read(source)

    def annotation(self, source: Source) -> Tensor:
        return self(source)


def read(source: Source) -> Tensor:
    """Pixels or token ids that depend on the source's text and crop alone."""
    digest = hashlib.sha256(f"{source.modality.value}{source.value}{source.crop}".encode()).digest()
    if source.modality is Modality.TEXT:
        return torch.tensor([byte % 7 - 3 for byte in digest[:24]])
    return torch.tensor(list(digest[:24]), dtype=torch.uint8).view(3, 4, 2)


def plain_feature(model: ToyModel, source: Source, said: Source | None = None, mirror: bool = False) -> np.ndarray:
    def numbers(one: Source) -> np.ndarray:
        values = read(one).numpy().astype(np.float64)
        if one.modality is Modality.TEXT:
            return values
        if mirror and one is source:
            values = values[:, :, ::-1]
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        return ((values / 255 - mean[:, None, None]) / std[:, None, None]).reshape(-1)

    hidden = numbers(source) @ model.maps[source.modality].double().numpy()
    if said is not None:
        hidden = hidden + numbers(said) @ model.maps[Modality.TEXT].double().numpy() * 0.3
    vector = np.tanh(hidden)
    return vector / math.sqrt(float((vector**2).sum()))


def counts_for(rule: str, query: Record, item: Record) -> bool:
    """Whether an item stays in a query's ranking. Clothes and cameras below 0 are unknown."""
    camera_known = query.camera_id >= 0 and item.camera_id >= 0
    clothes_known = query.clothes_id >= 0 and item.clothes_id >= 0
    here = camera_known and query.camera_id == item.camera_id
    dressed_alike = clothes_known and query.clothes_id == item.clothes_id
    dressed_otherwise = clothes_known and query.clothes_id != item.clothes_id
    if rule == "sysu":
        return not (query.camera_id == 3 and item.camera_id == 2)
    if query.person_id != item.person_id:
        return True
    return not {
        "none": False,
        "same_camera": here,
        "same_camera_or_clothes": here or dressed_alike,
        "same_camera_or_other_clothes": here or dressed_otherwise,
        "same_clothes": dressed_alike,
        "other_clothes": dressed_otherwise,
    }[rule]


Feature = Callable[[Record], np.ndarray]


def plain_queries(
    search: Search,
    feature: Feature,
    *,
    topk: int | None = None,
    relevant: Callable[[Record, Record], bool] = lambda query, item: True,
) -> list[dict[str, float] | None]:
    """Per query: rank of the first match, AP and INP; None for one without a valid match. topk: AP's cut before the
    exclusion.
    """
    vectors = [feature(item) for item in search.gallery]
    found: list[dict[str, float] | None] = []
    for query in search.query:
        own = next(iter(query.sources.values()))
        vector = feature(query)
        alive = [index for index, item in enumerate(search.gallery) if own not in item.sources.values()]
        order = sorted(alive, key=lambda index: (-float(vectors[index] @ vector), index))
        in_cut = set(order if topk is None else order[:topk])
        ranked = [index for index in order if counts_for(search.exclusion_rule, query, search.gallery[index])]
        hits, precision, first, last, seen = 0, [], 0, 0, []
        matches = 0
        for rank, index in enumerate(ranked, start=1):
            item = search.gallery[index]
            if item.person_id not in seen:
                seen.append(item.person_id)
            if item.person_id != query.person_id:
                continue
            matches, last = matches + 1, rank
            first = first or (rank if search.cmc == "image" else seen.index(query.person_id) + 1)
            if index in in_cut and relevant(query, item):
                hits += 1
                precision.append(hits / rank)
        if matches:
            found.append({"rank": first, "AP": sum(precision) / hits if hits else 0.0, "INP": matches / last})
        else:
            found.append(None)
    return found


def plain_metrics(found: Sequence[dict[str, float] | None]) -> dict[str, float]:
    scored = [row for row in found if row is not None]
    shares = {f"R{depth}": 100 * sum(row["rank"] <= depth for row in scored) / len(scored) for depth in (1, 5, 10, 20)}
    return shares | {
        "median_rank": statistics.median(row["rank"] for row in scored),
        "mAP": 100 * sum(row["AP"] for row in scored) / len(scored),
        "mINP": 100 * sum(row["INP"] for row in scored) / len(scored),
    }
