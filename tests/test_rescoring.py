"""Covers: utils/retrieval/rescoring, solver/evaluation/matching, solver/evaluation/kept_tokens. The best images of each
query scored again by a matching head, against the same done pair by pair.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts_model import PartsModel, precision_by_hand, similarity_by_hand, split_of, text
from protocol_oracle import ToyModel, ToyReader, read
from torch import Tensor

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import Combination, Modality
from datasets.structures import EvalSplit, Source
from model.interface import Instructions, Matches, Tokens
from solver.evaluation import token_cache
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.reports.results import Provenance, format_result, write_results
from utils.errors import UserError
from utils.retrieval.rescoring import rescored

CPU = torch.device("cpu")
PROVENANCE = Provenance(
    checkpoint="c.pth", checkpoint_fingerprint="f", selected_on="val", dataset="made up", data_fingerprint="d"
)


class MatchingModel(PartsModel, Matches):
    """Three tokens of an image, two of a text, of which the second may be padding; counts the pairs it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = 0

    def _encoded(self, modality: Modality, inputs: Tensor, instructions: Instructions) -> Tokens:
        plain = super()._encoded(modality, inputs, instructions)
        values = inputs.flatten(1).float()[:, :10]
        if modality is not Modality.TEXT:
            return Tokens(tokens=torch.stack([values, values.sin(), values.cos()], dim=1), pooled=plain.pooled)
        mask = torch.stack([torch.ones(len(values)), values[:, 0] > 0], dim=1).bool()
        return Tokens(tokens=torch.stack([values, values * 3 + 1], dim=1), pooled=plain.pooled, mask=mask)

    def rescores(self, combination: Combination) -> bool:
        return combination == (Modality.TEXT,)

    def match(self, text: Tokens, image: Tokens) -> Tensor:
        assert text.mask is not None and image.mask is None and not self.training
        self.pairs += len(text.tokens)
        said = (text.tokens * text.mask[:, :, None]).sum(1)
        return (said * image.tokens.tanh().sum(1)).sum(1) + text.pooled.sum(1) * image.pooled.sum(1)


def judged_by_hand(split: EvalSplit, number: int, features: dict[Source, np.ndarray]) -> np.ndarray:
    """(Q, G): the head's score of every pair, one after the other."""

    def first(source: Source) -> np.ndarray:
        values = read(source).numpy().astype(np.float64).reshape(-1)
        if source.modality is Modality.TEXT:
            return values[:10]
        return normalised(source).reshape(-1)[:10]

    rows = []
    for entry in split.query_lists[number].entries:
        values = first(entry[0])
        said = values + (values * 3 + 1 if values[0] > 0 else 0)
        row = []
        for item in split.gallery:
            pixels = first(item)
            seen = np.tanh(pixels) + np.tanh(np.sin(pixels)) + np.tanh(np.cos(pixels))
            row.append(said @ seen + features[entry[0]].sum() * features[item].sum())
        rows.append(row)
    return np.array(rows)


def normalised(source: Source) -> np.ndarray:
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return (read(source).numpy() / 255 - mean[:, None, None]) / std[:, None, None]


def evaluated(model: ToyModel, split: EvalSplit, **options: Any) -> EvaluationResult:
    config = EvalConfig(**{"batch_size": 7, **options})
    return evaluate_split(model, split, ToyReader(), EvaluationSpec(config=config), CPU)


def test_by_hand() -> None:
    order = torch.tensor([[3, 0, 2, 1], [1, 2, 3, 0]])
    scores = rescored(order, torch.tensor([[1.0, 5.0, 1.0], [-2.0, -3.0, -1.0]]))
    assert scores.tolist() == [[0.0, -3.0, -2.0, -1.0], [-3.0, -1.0, -2.0, 0.0]]
    assert rescored(order, torch.zeros(2, 0)).argsort(dim=1, descending=True).tolist() == order.tolist()
    many = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[None]
    assert rescored(many, torch.zeros(1, 2999)).argsort(dim=1, descending=True).tolist() == many.tolist(), "ties stay"
    assert rescored(order, torch.zeros(2, 4)).argsort(dim=1, descending=True).tolist() == order.tolist()


@pytest.mark.parametrize("depth", [1, 6, 128])
@pytest.mark.parametrize("where", ["device", "host", "disk"])
def test_the_head_orders_the_best_and_similarity_the_tail(
    depth: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache.tempfile, "tempdir", str(tmp_path))
    split, model = split_of(), MatchingModel()
    budget = {f"cache_{tier}_mb": 9 if tier == where else 0 for tier in ("device", "host")}
    result = evaluated(model, split, rescore=depth, batch_size=5, **budget)
    assert not list(tmp_path.iterdir()), "nothing stays on the disk"
    stamp, captions = f"matching top-{depth}", split.query_lists[2]
    assert [entry.task for entry in result.lists] == ["told", "alone", "captions", f"captions [{stamp}]"]
    features = dict(zip(split.gallery, result.ranked.gallery_features.double().numpy()))
    for entry, row in zip(captions.entries, result.ranked.plan.lists[2].rows):
        features[entry[0]] = result.ranked.features[int(row)].double().numpy()
    similarity, judged = similarity_by_hand(split, 2, model), judged_by_hand(split, 2, features)
    final = np.full(similarity.shape, np.nan)
    for row in range(len(final)):
        order = sorted(range(len(split.gallery)), key=lambda item: (-similarity[row][item], item))
        best, tail = order[:depth], order[depth:]
        for place, item in enumerate([*sorted(best, key=lambda item: -judged[row][item]), *tail]):
            final[row, item] = -place
    wanted = precision_by_hand(final, list(captions.person_ids), list(split.gallery_ids))
    plain, scored = result.lists[2].per_query["mAP"], result.lists[3].per_query["mAP"]
    assert scored == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert (scored.tolist() == plain.tolist()) == (depth == 1), "scoring the first image alone moves nothing"
    asked = {(entry[0].value, person) for entry, person in zip(captions.entries, captions.person_ids)}
    assert len(asked) < len(captions.entries)
    assert model.pairs == len(asked) * min(depth, 23), "what is asked twice is scored once"
    assert f"rows [{stamp}]: the {depth} best images" in format_result(result)


def test_files_of_a_result_hold_rows_of_some_lists(tmp_path: Path) -> None:
    split = split_of()
    write_results(tmp_path, evaluated(MatchingModel(), split, rescore=3, flip=True), PROVENANCE)
    arrays = np.load(tmp_path / "per_query.npz")
    names = [str(name) for name in arrays if str(name).endswith("/sources")]
    assert len(names) == 3 + 3 + 1 and "captions [matching top-3]/sources" in names
    assert np.array_equal(arrays["captions [matching top-3]/sources"], arrays["captions/sources"])


def test_unreadable_captions_and_images_are_left_out() -> None:
    class Reader(ToyReader):
        def __call__(self, source: Source) -> Tensor:
            if source.value in ("caption 1", split.gallery[2].value):
                raise UserError("cannot be read")
            return read(source)

    split = split_of()
    spec = EvaluationSpec(config=EvalConfig(rescore=4), skip_unreadable=True)
    result = evaluate_split(MatchingModel(), split, Reader(), spec, CPU)
    fewer = [number for number in range(len(split.gallery)) if number != 2]
    smaller = dataclasses.replace(
        split,
        gallery=tuple(split.gallery[number] for number in fewer),
        gallery_ids=tuple(split.gallery_ids[number] for number in fewer),
    )
    wanted = evaluated(MatchingModel(), smaller, rescore=4).lists[3].per_query["mAP"]
    wanted[2:4] = np.nan
    assert result.lists[3].per_query["mAP"] == pytest.approx(wanted, nan_ok=True)


def test_nothing_is_kept_and_nothing_scored_where_no_list_is_served() -> None:
    split, model = split_of(), MatchingModel()
    images = dataclasses.replace(split, query_lists=split.query_lists[:2])
    result = evaluated(model, images, rescore=128)
    assert [entry.stamp for entry in result.lists] == ["", ""] and model.pairs == 0


def test_a_model_without_the_head_is_refused_before_it_encodes() -> None:
    model = PartsModel()
    with pytest.raises(UserError, match=r"eval\.rescore=128: this model has no matching head"):
        evaluated(model, split_of(), rescore=128)
    assert model.rows == 0
    with pytest.raises(ValueError, match="eval.rescore"):
        EvalConfig(rescore=-1)


def test_texts_beside_one_another_share_no_padding() -> None:
    """Whatever else is in the batch, a pair has one score."""
    split, model = split_of(), MatchingModel()
    captions = split.query_lists[2]
    single = dataclasses.replace(captions, entries=((text("caption 3"),),), instructions=(None,), person_ids=(1,))
    alone = evaluated(model, dataclasses.replace(split, query_lists=(single,)), rescore=9).lists[1].per_query["mAP"]
    more = dataclasses.replace(captions, person_ids=(1,) * 9)
    all_of_them = evaluated(model, dataclasses.replace(split, query_lists=(more,)), rescore=9).lists[1]
    assert all_of_them.per_query["mAP"][6] == pytest.approx(alone[0])
