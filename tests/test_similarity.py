"""Covers: utils/retrieval/similarity, solver/evaluation/comparison, model/interface. Features of several parts and
Euclidean similarity, in every place that measures, against the same done pair by pair in float64.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from parts_model import PartsModel, precision_by_hand, similarity_by_hand, split_of
from protocol_oracle import DIM, ToyReader
from test_rerank import dense_reference

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import Modality
from datasets.structures import EvalSplit
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.reports.features_file import export_evaluation
from solver.reports.results import Provenance, format_result, result_document
from solver.search.gallery import Gallery
from solver.search.gallery_cache import GalleryEncoder
from solver.search.queries import Query
from solver.search.ranked import encode_queries, search
from utils.retrieval.options import Similarity
from utils.retrieval.similarity import gallery_side, mirrored_mean, query_side

CPU = torch.device("cpu")
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
PROVENANCE = Provenance(
    checkpoint="c.pth", checkpoint_fingerprint="f", selected_on="val", dataset="made up", data_fingerprint="d"
)


def evaluated(model: PartsModel, split: EvalSplit, **options: object) -> EvaluationResult:
    config = EvalConfig(batch_size=7, **options)  # type: ignore[arg-type]
    return evaluate_split(model, split, ToyReader(), EvaluationSpec(config=config), CPU)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_products_are_similarities(similarity: Similarity) -> None:
    draw = np.random.default_rng(1)
    queries, items = draw.standard_normal((4, 6)) * 3, draw.standard_normal((5, 6)) * 7
    found = query_side(torch.tensor(queries), similarity) @ gallery_side(torch.tensor(items), similarity).T
    if similarity == "cosine":
        wanted = queries @ items.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(items, axis=1))
    else:
        wanted = -(np.linalg.norm(queries[:, None] - items[None], axis=2) ** 2)
    assert found.dtype == torch.float32 and found.numpy() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_mean_of_mirror_images_by_hand() -> None:
    plain, mirrored = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert mirrored_mean(plain, mirrored, "cosine").tolist() == [[pytest.approx(0.6), pytest.approx(1.8)]]
    assert mirrored_mean(plain, mirrored, "euclidean").tolist() == [[1.5, 3.0]]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_list_is_measured_within_its_part(similarity: Similarity) -> None:
    model, split = PartsModel(similarity), split_of()
    result = evaluated(model, split, flip=True)
    for number, queries in enumerate(split.query_lists):
        for found, flip in ((result.lists[number], False), (result.lists[number + 3], True)):
            scores = similarity_by_hand(split, number, model, flip)
            wanted = precision_by_hand(scores, list(queries.person_ids), list(split.gallery_ids))
            assert found.per_query["mAP"] == pytest.approx(wanted, abs=1e-5, nan_ok=True), found.task
        scores = similarity_by_hand(split, number, model)
        for entry in range(len(queries.entries)):
            places, values = result.ranked.search(queries.name, entry, 99)
            order = sorted(range(len(split.gallery)), key=lambda item: (-scores[entry][item], item))
            assert places.tolist() == order
            assert values == pytest.approx(scores[entry][order], rel=1e-5, abs=2e-4)
    told, alone, captions = (listed.per_query["mAP"].tolist() for listed in result.plain_lists)
    assert told != alone and alone != captions


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_reranking_takes_distances_within_the_part(similarity: Similarity) -> None:
    model, split = PartsModel(similarity), split_of(queries=7, gallery=15)
    result = evaluated(model, split, rerank=True, rerank_k1=5, rerank_k2=2)
    plain = result.ranked
    for number, queries in enumerate(split.query_lists):
        columns = slice(DIM, None) if queries.combination == (Modality.TEXT,) else slice(DIM)
        # What is asked twice is one query.
        rows, asked = np.unique(plain.plan.lists[number].rows, return_inverse=True)
        features = plain.features[rows][:, columns].numpy()
        items = plain.gallery_features[:, columns].numpy()
        scores = -dense_reference(features, items, 5, 2, 0.3, normalize=similarity == "cosine")
        wanted = precision_by_hand(np.round(scores, 6)[asked], list(queries.person_ids), list(split.gallery_ids))
        assert result.lists[number + 3].per_query["mAP"] == pytest.approx(wanted, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_search_compares_each_query_within_its_part(similarity: Similarity, tmp_path: Path) -> None:
    model, split = PartsModel(similarity), split_of()
    encoder = GalleryEncoder(model, ToyReader(), EvaluationSpec(), CPU, identity={}, cache=tmp_path)
    gallery = Gallery(name="g", location="here", sources=split.gallery)
    # Kinds of query alternate, so that their order is not that of the parts.
    asked = [(number, entry) for entry in range(4) for number in range(3)]
    queries = [
        Query(
            name=f"{number} {entry}",
            sources=split.query_lists[number].entries[entry],
            instruction=split.query_lists[number].instructions[entry],
        )
        for number, entry in asked
    ]
    encoded = encode_queries(model, queries, ToyReader(), EvaluationSpec(), CPU)
    for found, (number, entry) in zip(search(encoded, encoder.encode(gallery), 30), asked, strict=True):
        scores = similarity_by_hand(split, number, model)[entry]
        order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
        assert found.query.name == f"{number} {entry}"
        assert [item.index for item in found.results] == order
        assert [item.similarity for item in found.results] == pytest.approx(scores[order], rel=1e-5, abs=2e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_is_written_names_the_similarity_and_the_columns(similarity: Similarity, tmp_path: Path) -> None:
    model, split = PartsModel(similarity), split_of()
    result = evaluated(model, split)
    name = {"cosine": "cosine similarity", "euclidean": "minus squared Euclidean distance"}[similarity]
    assert result_document(result, PROVENANCE)["similarity"] == name and f"; {name};" in format_result(result)
    arrays = np.load(export_evaluation(str(tmp_path / "f"), result.ranked, "w"))
    assert arrays["similarity"] == similarity
    assert arrays["told/columns"].tolist() == [0, DIM] and arrays["captions/columns"].tolist() == [DIM, 2 * DIM]
    assert np.array_equal(arrays["features"], result.ranked.features.numpy()), "as the model gives them"


def test_features_of_one_part_are_exported_for_products(tmp_path: Path) -> None:
    split = split_of()
    images = dataclasses.replace(split, query_lists=split.query_lists[:2])
    model = PartsModel()
    model.compared = lambda combination: slice(None)  # type: ignore[method-assign]
    arrays = np.load(export_evaluation(str(tmp_path / "f"), evaluated(model, images).ranked, "w"))
    assert np.linalg.norm(arrays["features"], axis=1) == pytest.approx(1, abs=1e-6)
