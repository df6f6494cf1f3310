"""Covers: utils/retrieval/metrics, utils/retrieval/result, utils/retrieval/options, utils/retrieval/exclusion,
utils/retrieval/annotation_vectors. Metrics against hand-worked 5 x 5 cases, and against a plain loop over sorted rows.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.retrieval.annotation_vectors import AnnotationVectors, SparseRows
from utils.retrieval.exclusion import RULES, Labels
from utils.retrieval.metrics import METRICS, Metric, QueryMatches, evaluate, evaluate_blocks, evaluate_features
from utils.retrieval.options import MetricOptions
from utils.retrieval.result import RetrievalResult

# Five queries and five gallery items; every row of scores ranks the gallery 0, 1, 2, 3, 4.
DESCENDING = [[5.0, 4.0, 3.0, 2.0, 1.0]] * 5
QUERY = {"ids": [1, 1, 2, 3, 9], "cameras": [1, 3, 1, 3, 1], "clothes": [0, 1, 5, 7, 2]}
GALLERY = {"ids": [2, 1, 1, 3, 1], "cameras": [2, 1, 3, 2, 2], "clothes": [5, 0, 1, 8, 1]}

# Per query the ranks of the matches that the rule keeps, worked out by hand from the two tables above.
KEPT_RANKS = {
    "none": [[2, 3, 5], [2, 3, 5], [1], [4], []],
    # Query 0 (camera 1) loses item 1, query 1 (camera 3) loses item 2.
    "same_camera": [[2, 4], [2, 4], [1], [4], []],
    # Query 0 loses item 1 (camera, clothes 0), query 1 items 2 and 4 (clothes 1), query 2 item 0 (clothes 5).
    "same_camera_or_clothes": [[2, 4], [2], [], [4], []],
    # Query 0 loses 1 (camera), 2 and 4 (clothes 1); query 1 loses 1 (clothes 0) and 2 (camera); query 3 loses 3.
    "same_camera_or_other_clothes": [[], [3], [1], [], []],
    "same_clothes": [[2, 4], [2], [], [4], []],
    "other_clothes": [[2], [2, 4], [1], [], []],
    # Queries 1 and 3 (camera 3) lose items 0, 3 and 4 (camera 2), whoever they show.
    "sysu": [[2, 3, 5], [1, 2], [1], [], []],
}


def run_case(rule: str, **options: Any) -> RetrievalResult:
    return evaluate(
        DESCENDING,
        QUERY["ids"],
        GALLERY["ids"],
        query_cameras=QUERY["cameras"],
        gallery_cameras=GALLERY["cameras"],
        query_clothes=QUERY["clothes"],
        gallery_clothes=GALLERY["clothes"],
        rule=rule,
        **options,
    )


@pytest.mark.parametrize("rule", RULES)
def test_five_by_five(rule: str) -> None:
    result = run_case(rule, max_rank=5)
    kept = [ranks for ranks in KEPT_RANKS[rule] if ranks]
    assert result.unmatched == tuple(row for row, ranks in enumerate(KEPT_RANKS[rule]) if not ranks)
    assert (result.queries, result.gallery, result.absent) == (len(kept), 5, (4,))
    assert result.first_rank.tolist() == [ranks[0] if ranks else 0 for ranks in KEPT_RANKS[rule]]
    expected_ap = [sum((place + 1) / rank for place, rank in enumerate(ranks)) / len(ranks) for ranks in kept]
    assert result.mAP == pytest.approx(100 * sum(expected_ap) / len(kept), abs=1e-12)
    assert result.mINP == pytest.approx(100 * sum(len(ranks) / ranks[-1] for ranks in kept) / len(kept), abs=1e-12)
    for rank in range(1, 6):
        assert result[f"R{rank}"] == pytest.approx(100 * sum(ranks[0] <= rank for ranks in kept) / len(kept), abs=1e-12)


def test_figures_written_out() -> None:
    result = run_case("none")
    # AP 1/3 (1/2 + 2/3 + 3/5) = 53/90 twice, 1 and 1/4; INP 3/5 twice, 1 and 1/4; first ranks 2, 2, 1, 4.
    assert result.per_query["mAP"][:4] == pytest.approx([100 * 53 / 90, 100 * 53 / 90, 100.0, 25.0], abs=1e-12)
    assert math.isnan(result.per_query["mAP"][4]) and math.isnan(result.per_query["mINP"][4])
    assert result.mAP == pytest.approx((53 / 90 * 2 + 1.25) / 4 * 100, abs=1e-12)
    assert result["mINP"] == pytest.approx((0.6 * 2 + 1.25) / 4 * 100, abs=1e-12)
    assert (result.R1, result.R5, result.R10) == (25.0, 100.0, 100.0)
    assert result.cmc[:4].tolist() == [25.0, 75.0, 75.0, 100.0] and len(result.cmc) == 50


def test_trapezoid_by_hand() -> None:
    result = run_case("none", ap="trapezoid")
    # Ranks 2, 3, 5: before/at 0/1, 1/2; 1/2, 2/3; 2/4, 3/5. Rank 1: 1, 1. Rank 4: 0, 1/4.
    three = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3
    assert result.per_query["mAP"][:4] == pytest.approx([100 * three, 100 * three, 100.0, 12.5], abs=1e-12)


def test_persons_counted_once_under_the_identity_curve() -> None:
    result = run_case("none", cmc="identity")
    # Persons by their best item: 2, 1, 3. Person 3 stands at place 3 although its item has rank 4.
    assert result.first_rank.tolist() == [2, 2, 1, 3, 0]
    assert result.mAP == run_case("none").mAP
    # Camera 3 drops items 0, 3, 4: persons left are 1 alone.
    assert run_case("sysu", cmc="identity").first_rank.tolist() == [2, 1, 1, 0, 0]


def test_cut_before_and_after_the_exclusion() -> None:
    # Without item 1, query 0 has matches at ranks 2 and 4, which were 3 and 5.
    before = run_case("same_camera", ap_topk=3)
    assert before.per_query["mAP"][0] == pytest.approx(100 * 1 / 2, abs=1e-12)
    after = run_case("same_camera", ap_depth=3)
    assert after.per_query["mAP"][0] == pytest.approx(100 * 1 / 2, abs=1e-12)
    # Item 2 has rank 3 before the exclusion: no positive within the cut.
    assert run_case("same_camera", ap_topk=2).per_query["mAP"][0] == 0.0
    assert math.isnan(run_case("same_camera", ap_topk=2, no_positive="skip").per_query["mAP"][0])
    assert run_case("same_camera", ap_depth=2).per_query["mAP"][0] == pytest.approx(100 * 1 / 2, abs=1e-12)
    # The curve and INP do not see the cut.
    assert before.mINP == run_case("same_camera").mINP and before.R5 == run_case("same_camera").R5


def test_matched_queries_without_a_positive_in_the_cut() -> None:
    # Only query 2 has its match at rank 1; query 4 has none at all.
    assert run_case("none", ap_depth=1).mAP == pytest.approx(100 / 4)
    assert run_case("none", ap_depth=1, no_positive="zero_matched").mAP == pytest.approx(100 / 4)
    assert run_case("none", ap_depth=1, no_positive="skip").mAP == pytest.approx(100)


def test_the_median_of_first_ranks_by_hand() -> None:
    # First ranks: 2, 2, 1, 4 and none: the middle of 1, 2, 2, 4. The mean would be 2.25.
    result = run_case("none")
    assert result["median_rank"] == 2.0 and result.per_query["median_rank"][:4].tolist() == [2.0, 2.0, 1.0, 4.0]
    assert math.isnan(result.per_query["median_rank"][4])
    # After the exclusion 3 and 1 are left: an even number has its middle between two.
    assert run_case("same_camera_or_other_clothes")["median_rank"] == 2.0
    # Without query 3 (dropped with item 3): 2, 2, 1.
    assert run_case("other_clothes")["median_rank"] == 2.0
    # Cuts are AP's alone; persons are counted where the curve counts them: 2, 1, 1.
    assert run_case("none", ap_depth=1)["median_rank"] == 2.0
    assert run_case("sysu", cmc="identity")["median_rank"] == 1.0
    assert math.isnan(evaluate([[1.0]], [1], [2])["median_rank"])


def test_a_metric_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more line in the table, and the value is in the result: here the rank of the last match, its maximum."""

    def last_ranks(matches: QueryMatches) -> np.ndarray:
        last = np.full(matches.count, np.nan)
        last[matches.queries] = matches.ranks
        return last

    monkeypatch.setitem(METRICS, "worst_rank", Metric(per_query=last_ranks, summary=lambda values: float(values.max())))
    result = run_case("none")
    assert result["worst_rank"] == 5.0 and result.per_query["worst_rank"][:4].tolist() == [5.0, 5.0, 1.0, 4.0]


INSTRUCTIONS: dict[str, Any] = {
    "query_instructions": [[1.0, 0.0]] * 5,
    # Cosines with every query: 1, 0.8, 0.6, 0, -1.
    "gallery_instructions": [[2.0, 0.0], [0.8, 0.6], [0.3, 0.4], [0.0, 3.0], [-1.0, 0.0]],
}


def test_thresholds_by_hand() -> None:
    taus: tuple[float, ...] = (-1, 0.5, 0.7, 1.0, 1.1)
    result = run_case("none", thresholds=taus, no_positive="zero", **INSTRUCTIONS)
    # Queries 0 and 1 have matches at ranks 2, 3, 5 with cosines 0.8, 0.6, -1; query 2 at rank 1 with 1; query 3 at 4
    # with 0.
    expected: dict[float, list[float]] = {
        -1: [53 / 90, 53 / 90, 1, 1 / 4],
        0.5: [7 / 12, 7 / 12, 1, 0],
        0.7: [1 / 2, 1 / 2, 1, 0],
        1.0: [0, 0, 1, 0],
        1.1: [0, 0, 0, 0],
    }
    positives: dict[float, int] = {-1: 4, 0.5: 3, 0.7: 3, 1.0: 1, 1.1: 0}
    share: dict[float, float] = {-1: 8 / 8, 0.5: 5 / 8, 0.7: 3 / 8, 1.0: 1 / 8, 1.1: 0}
    for tau in taus:
        name = f"mAP@{tau:g}"
        assert result[name] == pytest.approx(100 * sum(expected[tau]) / 5, abs=1e-12)
        assert result.kept_share[name] == pytest.approx(share[tau])
        assert result.threshold_queries[name] == 5
        matched = run_case("none", thresholds=taus, no_positive="zero_matched", **INSTRUCTIONS)
        assert matched[name] == pytest.approx(100 * sum(expected[tau]) / 4, abs=1e-12)
        skipped = run_case("none", thresholds=taus, no_positive="skip", **INSTRUCTIONS)
        assert skipped.threshold_queries[name] == positives[tau]
        if positives[tau]:
            assert skipped[name] == pytest.approx(100 * sum(expected[tau]) / positives[tau], abs=1e-12)
        else:
            assert math.isnan(skipped[name])


def test_threshold_invariances() -> None:
    random = np.random.default_rng(0)
    similarity, ids, gallery_ids = (
        random.standard_normal((20, 60)),
        random.integers(0, 5, 20),
        random.integers(0, 5, 60),
    )
    query, gallery = random.standard_normal((20, 7)), random.standard_normal((60, 7))
    options: dict[str, Any] = {"thresholds": (-1.0, 0.25, 1.0), "ap_depth": 30, "no_positive": "zero"}
    result = evaluate(similarity, ids, gallery_ids, query_instructions=query, gallery_instructions=gallery, **options)
    scaled = evaluate(
        similarity,
        ids,
        gallery_ids,
        query_instructions=query * 1e-3,
        gallery_instructions=gallery * np.arange(1, 61)[:, None],
        **options,
    )
    assert dict(scaled) == pytest.approx(dict(result), abs=1e-12)
    assert result["mAP@-1"] == result.mAP and result["mAP@1"] == 0.0 and result.mAP > result["mAP@0.25"] > 0
    # One direction per person, at many lengths: cosines of 1 up to rounding, and of -1 from the opposite side.
    person, lengths = random.standard_normal((5, 7)), np.arange(1, 61)[:, None] / 7
    for tau, sign in ((1.0, 1), (-1.0, -1)):
        alike = evaluate(
            similarity,
            ids,
            gallery_ids,
            query_instructions=person[ids],
            thresholds=(tau,),
            ap_depth=30,
            gallery_instructions=sign * lengths * person[gallery_ids],
        )
        assert alike[f"mAP@{tau:g}"] == result.mAP and alike.kept_share[f"mAP@{tau:g}"] == 1.0


def test_a_query_never_finds_itself() -> None:
    # Queries 0 and 1 are items 2 and 1; queries 2 to 4 are in no gallery, which is how -1 and 77 are meant.
    items: dict[str, Any] = {"query_items": [12, 11, -1, -1, 77], "gallery_items": [10, 11, 12, -1, 14]}
    result = run_case("none", **items)
    assert result.first_rank.tolist() == [2, 2, 1, 4, 0] and result.per_query["mINP"][:2] == pytest.approx(
        [100 * 2 / 4] * 2
    )
    # Matches left: items 1 and 4 at ranks 2 and 4 of query 0 (items 0, 1, 3, 4 remain), items 2 and 4 of query 1.
    assert result.per_query["mAP"][:2] == pytest.approx([100 * (1 / 2 + 2 / 4) / 2] * 2)
    # With a camera rule as well, query 0 loses item 1 too: item 4 alone, at rank 3 of items 0, 3, 4.
    assert run_case("same_camera", **items).per_query["mAP"][0] == pytest.approx(100 / 3)
    # Under SYSU's rule query 1 keeps items 1 and 2; its own is 1.
    assert run_case("sysu", cmc="identity", **items).first_rank.tolist() == [2, 1, 1, 0, 0]
    # The own image does not even use up a place of the cut: items 0 and 1 are the first two of query 0.
    cut = run_case("none", ap_topk=2, query_items=[10, -1, -1, -1, -1], gallery_items=[10, 11, 12, 13, 14])
    assert cut.per_query["mAP"][:2] == pytest.approx([100 * (1 + 1) / 2, 100 * 1 / 2])
    alone = evaluate([[1.0, 2.0]], [1], [2, 1], query_items=[5], gallery_items=[4, 5])
    assert alone.unmatched == (0,) and alone.absent == ()


KINDS = {
    "clothes": (
        AnnotationVectors(vectors=[[1.0, 0.0]], rows=np.array([0, -1, 0, -1, -1])),
        AnnotationVectors(vectors=[[2.0, 0.0], [0.6, 0.8]], rows=np.array([0, 1, -1, 0, 0])),
    ),
    "description": (
        AnnotationVectors(vectors=[[0.0, 1.0, 0.0], [0.0, 0.0, 3.0]], rows=np.array([-1, 0, -1, 1, 1])),
        AnnotationVectors(vectors=[[0.0, 1.0, 1.0]], rows=np.array([0, 0, 0, -1, -1])),
    ),
}


def by_kind(kinds: dict[str, tuple[AnnotationVectors, AnnotationVectors]]) -> dict[str, Any]:
    return {
        f"{side}_instructions": {kind: pair[place] for kind, pair in kinds.items()}
        for place, side in enumerate(("query", "gallery"))
    }


def test_each_kind_is_compared_with_its_own() -> None:
    result = run_case("none", thresholds=(-1, 0.65, 0.8), no_positive="zero", **by_kind(KINDS))
    # Query 0 (clothes): matches 1, 2, 4 at ranks 2, 3, 5 with cosines 0.6, none, 1. Query 1 (description): 1, 2, 4 with
    # 0.707, 0.707, none. Query 2 (clothes): item 0 at rank 1 with 1. Query 3 (description): item 3 at rank 4, none.
    expected = {
        -1: [(1 / 2 + 2 / 5) / 2, (1 / 2 + 2 / 3) / 2, 1, 0, 0],
        0.65: [1 / 5, (1 / 2 + 2 / 3) / 2, 1, 0, 0],
        0.8: [1 / 5, 0, 1, 0, 0],
    }
    for tau, values in expected.items():
        assert result[f"mAP@{tau}"] == pytest.approx(100 * sum(values) / 5, abs=1e-12)
        assert np.nan_to_num(result.threshold_ap[f"mAP@{tau}"]) == pytest.approx(100 * np.array(values), abs=1e-12)
    # 8 pairs; 3 of them with an item (2, 4 and 3) that lacks the kind.
    assert (result.unannotated, result.unannotated_items) == (3, 3)
    assert list(result.kept_share.values()) == pytest.approx([5 / 8, 4 / 8, 2 / 8])
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (document["unannotated"], document["unannotated_items"]) == (3, 3)
    # Two queries of which one item alone lacks the kind: two pairs, one item.
    first, second = (AnnotationVectors(vectors=[[1.0]], rows=np.array(rows)) for rows in ([0, 0], [0, -1]))
    lacking = evaluate(
        [[1.0, 0.5], [1.0, 0.5]], [1, 1], [1, 1], thresholds=(0.5,), **by_kind({"clothes": (first, second)})
    )
    assert (lacking.unannotated, lacking.unannotated_items) == (2, 1)
    # A kind that no gallery item has keeps nothing.
    bare = by_kind(KINDS)
    del bare["gallery_instructions"]["description"]
    assert run_case("none", thresholds=(-1,), **bare).unannotated == 1 + 3 + 1


def sparse(rows: np.ndarray) -> SparseRows:
    return SparseRows(
        starts=np.append(0, np.cumsum((rows != 0).sum(1))),
        columns=rows.nonzero()[1],
        values=rows[rows != 0],
        size=rows.shape[1],
    )


def test_sparse_vectors_shared_vectors_and_one_matrix_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    vectors = random.random((6, 15)) * (random.random((6, 15)) < 0.4)
    vectors[np.arange(6), np.arange(6)] = 1.0
    similarity, ids, gallery_ids = (
        random.standard_normal((12, 40)),
        random.integers(0, 3, 12),
        random.integers(0, 3, 40),
    )
    rows, gallery_rows = random.integers(0, 6, 12), random.integers(0, 6, 40)
    found = []
    for chunk in (1 << 21, 30):
        monkeypatch.setattr("utils.retrieval.annotation_vectors.CHUNK_VALUES", chunk)
        matrix: dict[str, Any] = {"query_instructions": vectors[rows], "gallery_instructions": vectors[gallery_rows]}
        forms: list[Any] = [vectors, torch.from_numpy(vectors), sparse(vectors)]
        kinds = [
            by_kind(
                {
                    "text": (
                        AnnotationVectors(vectors=form, rows=rows),
                        AnnotationVectors(vectors=form, rows=gallery_rows),
                    )
                }
            )
            for form in forms
        ]
        found += [
            evaluate(similarity, ids, gallery_ids, thresholds=(0.1, 0.3, 1.0), **instructions)
            for instructions in (matrix, *kinds)
        ]
    cosines = (vectors @ vectors.T) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    same = ids[:, None] == gallery_ids
    for tau in (0.1, 0.3, 1.0):
        share = (cosines[rows][:, gallery_rows][same] >= tau - 1e-12).mean()
        assert found[0].kept_share[f"mAP@{tau:g}"] == pytest.approx(share) and 0 < share < 1
    assert all(dict(other) == dict(found[0]) for other in found[1:])


def test_parts_of_annotations() -> None:
    part = AnnotationVectors(vectors=np.eye(2), rows=np.array([0, -1, 1, 0])).take(np.array([2, 1]))
    assert part.rows.tolist() == [1, -1]


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_blocks_of_scores_give_the_same_metrics(rows: int) -> None:
    labels = Labels(**QUERY, items=[1, 2, 3, 4, 5]), Labels(**GALLERY, items=[9, 1, 9, 9, 2])
    scores = torch.tensor(DESCENDING).double()
    blocks = [(start, scores[start : start + rows]) for start in range(0, 5, rows)]
    found = evaluate_blocks(iter(blocks), *labels, (5, 5), options=MetricOptions(rule="same_camera"))
    expected = run_case("same_camera", query_items=[1, 2, 3, 4, 5], gallery_items=[9, 1, 9, 9, 2])
    assert dict(found) == dict(expected) and found.per_query["mAP"] == pytest.approx(
        expected.per_query["mAP"], nan_ok=True
    )
    with pytest.raises(UserError, match="query 0 is due"):
        evaluate_blocks([(1, scores[1:])], *labels, (5, 5))
    with pytest.raises(UserError, match="end at query 4 of 5"):
        evaluate_blocks([(0, scores[:4])], *labels, (5, 5))


def loop_metrics(
    similarity: np.ndarray, ids: np.ndarray, gallery_ids: np.ndarray, dropped: np.ndarray
) -> dict[str, float]:
    """AP, INP, CMC and the median rank by walking down each sorted row."""
    values: dict[str, list[float]] = {"mAP": [], "mINP": [], "R1": [], "R5": [], "R10": [], "R20": []}
    first: list[int] = []
    for row in range(len(similarity)):
        order = [item for item in np.argsort(-similarity[row], kind="stable") if not dropped[row, item]]
        good = [place + 1 for place, item in enumerate(order) if gallery_ids[item] == ids[row]]
        if not good:
            continue
        first.append(min(good))
        values["mAP"].append(float(np.mean([np.sum(np.array(good) <= rank) / rank for rank in good])))
        values["mINP"].append(len(good) / max(good))
        for rank in (1, 5, 10, 20):
            values[f"R{rank}"].append(min(good) <= rank)
    means = {name: 100 * float(np.mean(entries)) for name, entries in values.items()}
    return means | {"median_rank": float(statistics.median(first))}


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("gallery_size", [1, 7, 120])
def test_random_rankings_equal_the_loop(digits: int | None, gallery_size: int) -> None:
    random = np.random.default_rng(gallery_size)
    similarity = random.standard_normal((40, gallery_size)).astype(np.float32)
    similarity = similarity if digits is None else np.round(similarity, digits)
    ids, gallery_ids = random.integers(0, 8, 40), random.integers(0, 6, gallery_size)
    ids[0] = gallery_ids[0]
    cameras, gallery_cameras = random.integers(0, 3, 40), random.integers(0, 3, gallery_size)
    cameras[0] = gallery_cameras[0] + 1
    for rule in ("none", "same_camera"):
        dropped = (ids[:, None] == gallery_ids) & (cameras[:, None] == gallery_cameras) & (rule == "same_camera")
        result = evaluate(
            similarity, ids, gallery_ids, query_cameras=cameras, gallery_cameras=gallery_cameras, rule=rule
        )
        assert dict(result) == pytest.approx(loop_metrics(similarity, ids, gallery_ids, dropped), abs=1e-9)


def test_perfect_worst_and_tied_rankings() -> None:
    ids, gallery_ids = [0, 1], [0, 1] * 6
    perfect = evaluate(np.equal.outer(ids, gallery_ids).astype(float), ids, gallery_ids)
    assert {name: value for name, value in perfect.items() if value != 100.0} == {"median_rank": 1.0}
    worst = evaluate(-np.equal.outer(ids, gallery_ids).astype(float), ids, gallery_ids)
    assert worst.R5 == 0.0 and worst.R10 == 100.0 and worst.mINP == 50.0
    # All scores equal: the ranking is the gallery's order, so item 0 leads.
    tied = evaluate(np.zeros((2, 12)), ids, gallery_ids)
    assert tied.first_rank.tolist() == [1, 2] and tied.R1 == 50.0


def test_input_kinds_and_block_sizes_agree() -> None:
    random = np.random.default_rng(2)
    features, gallery = (torch.from_numpy(random.standard_normal((count, 12))).float() for count in (30, 90))
    ids, gallery_ids = random.integers(0, 9, 30), random.integers(0, 9, 90)
    similarity = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).t()
    names = np.array([f"person {label}" for label in range(9)])
    expected = evaluate(similarity, ids, gallery_ids)
    others = [
        evaluate(similarity.tolist(), ids.tolist(), gallery_ids.tolist()),
        evaluate(similarity.numpy(), names[ids].tolist(), names[gallery_ids].astype(object)),
        evaluate(similarity, torch.from_numpy(ids), torch.from_numpy(gallery_ids).int(), memory_mb=0.001),
        evaluate_features(features, gallery, Labels(ids=ids), Labels(ids=gallery_ids), memory_mb=0.001),
        evaluate_features(features * 3, gallery, Labels(ids=ids), Labels(ids=gallery_ids), memory_mb=1000),
    ]
    for other in others:
        assert dict(other) == dict(expected)
        assert np.array_equal(other.per_query["mAP"], expected.per_query["mAP"], equal_nan=True)
        assert np.array_equal(other.first_rank, expected.first_rank)


def test_unknown_cameras_never_match_and_strings_name_clothes() -> None:
    for cameras, queries in ((-1, 1), (4, 0)):
        seen: dict[str, Any] = {"query_cameras": [cameras], "gallery_cameras": [cameras]}
        assert evaluate([[1.0]], [1], [1], rule="same_camera", **seen).queries == queries
    clothes: dict[str, Any] = {"query_clothes": ["1"], "gallery_clothes": ["1", "1C"]}
    assert evaluate([[2.0, 1.0]], [1], [1, 1], rule="same_clothes", **clothes).mINP == 100.0
    assert evaluate([[2.0, 1.0]], [1], [2, 1], rule="same_clothes", **clothes).mINP == 50.0


def test_nothing_matches() -> None:
    result = evaluate([[1.0, 2.0]], [5], [1, 2])
    assert result.queries == 0 and result.unmatched == (0,) and math.isnan(result.mAP) and math.isnan(result.R1)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["mAP"] is None and document["unmatched"] == [0] and document["per_query"]["first_rank"] == [0]
    assert evaluate(np.zeros((0, 2)), [], [1, 2]).queries == 0


def test_result_is_frozen_and_a_mapping() -> None:
    result = run_case("none", thresholds=(0.25,), **INSTRUCTIONS)
    assert list(result) == ["R1", "R5", "R10", "mAP", "mINP", "R20", "median_rank", "mAP@0.25"] and len(result) == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.queries = 3  # type: ignore[misc]
    with pytest.raises(KeyError, match="R51"):
        result["R51"]
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["mAP@0.25"] == result["mAP@0.25"] and document["kept_share"]["mAP@0.25"] == 5 / 8
    assert document["per_query"]["mAP"][2] == 100.0 and document["per_query"]["mAP"][4] is None


SIMILARITY = np.zeros((2, 3))
refused: Any = evaluate
"""`evaluate` for arguments of the wrong type."""
WRONG: dict[str, Callable[[], object]] = {
    "query_ids has 3 entries": lambda: evaluate(SIMILARITY, [1, 2, 3], [1, 2, 3]),
    "gallery_ids has 2 entries": lambda: evaluate(SIMILARITY, [1, 2], [1, 2]),
    "query_cameras has 1 entries": lambda: evaluate(
        SIMILARITY, [1, 2], [1, 2, 3], query_cameras=[1], gallery_cameras=[1, 2, 3], rule="same_camera"
    ),
    "needs query_cameras": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], rule="same_camera"),
    "did you mean 'same_camera'": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], rule="same_cam"),
    "gallery is empty": lambda: evaluate(np.zeros((2, 0)), [1, 2], []),
    "not finite in row 1": lambda: evaluate([[0.0], [math.nan]], [1, 2], [1]),
    "matrix": lambda: evaluate([0.0, 1.0], [1, 2], [1]),
    "real numbers": lambda: evaluate([["a"]], [1], [1]),
    "they never match": lambda: evaluate(SIMILARITY, ["1", "2"], [1, 2, 3]),
    "integers or strings": lambda: evaluate(SIMILARITY, [1.5, 2.0], [1.0, 2.0, 3.0]),
    "flat lists": lambda: evaluate(SIMILARITY, [[1], [2]], [1, 2, 3]),
    "rows of different lengths": lambda: evaluate([[1, 2, 3], [1, 2]], [1, 2], [1, 2, 3]),
    "thresholds = 0.5: give a list": lambda: refused(SIMILARITY, [1, 2], [1, 2, 3], thresholds=0.5),
    r"thresholds = \['a'\]: give a list": lambda: refused(SIMILARITY, [1, 2], [1, 2, 3], thresholds=["a"]),
    "ap = 'area'": lambda: refused(SIMILARITY, [1, 2], [1, 2, 3], ap="area"),
    "no_positive = 'drop'": lambda: refused(SIMILARITY, [1, 2], [1, 2, 3], no_positive="drop"),
    "ap_depth = 0": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], ap_depth=0),
    "max_rank = None": lambda: refused(SIMILARITY, [1, 2], [1, 2, 3], max_rank=None),
    "memory_mb = 0": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], memory_mb=0),
    "thresholds need": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], thresholds=[0.5]),
    "query_instructions row 1 is zero": lambda: evaluate(
        SIMILARITY,
        [1, 2],
        [1, 2, 3],
        thresholds=[0.5],
        query_instructions=[[1.0], [0.0]],
        gallery_instructions=[[1.0]] * 3,
    ),
    "gallery_instructions has 2 rows": lambda: evaluate(
        SIMILARITY,
        [1, 2],
        [1, 2, 3],
        thresholds=[0.5],
        query_instructions=[[1.0]] * 2,
        gallery_instructions=[[1.0]] * 2,
    ),
    "give both or neither": lambda: evaluate(SIMILARITY, [1, 2], [1, 2, 3], query_items=[1, 2]),
    "gallery_items has 2 entries": lambda: evaluate(
        SIMILARITY, [1, 2], [1, 2, 3], query_items=[1, 2], gallery_items=[1, 2]
    ),
    "both be matrices or both be by kind": lambda: run_case(
        "none", thresholds=[0.5], **by_kind(KINDS) | {"query_instructions": [[1.0]] * 5}
    ),
    "query 1 has instructions of 0 kinds": lambda: run_case(
        "none", thresholds=[0.5], **by_kind({"clothes": KINDS["clothes"]})
    ),
    "query 0 has instructions of 2 kinds": lambda: run_case(
        "none", thresholds=[0.5], **by_kind(KINDS | {"more": KINDS["clothes"]})
    ),
    r"gallery_instructions \(clothes\) has 2 rows": lambda: evaluate(
        SIMILARITY,
        [1, 2],
        [1, 2, 3],
        thresholds=[0.5],
        **by_kind(
            {
                "clothes": (
                    AnnotationVectors(vectors=[[1.0]], rows=np.zeros(2, dtype=int)),
                    AnnotationVectors(vectors=[[1.0]], rows=np.zeros(2, dtype=int)),
                )
            }
        ),
    ),
    "names a row outside its 1 vectors": lambda: evaluate(
        SIMILARITY,
        [1, 2],
        [1, 2, 3],
        thresholds=[0.5],
        **by_kind(
            {
                "clothes": (
                    AnnotationVectors(vectors=[[1.0]], rows=np.ones(2, dtype=int)),
                    AnnotationVectors(vectors=[[1.0]], rows=np.zeros(3, dtype=int)),
                )
            }
        ),
    ),
    "3 dimensions": lambda: evaluate_features(
        torch.ones(2, 3), torch.ones(3, 4), Labels(ids=[1, 2]), Labels(ids=[1, 2, 3])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_sentence(message: str) -> None:
    with pytest.raises(UserError, match=message):
        WRONG[message]()


def test_options_are_checked_when_made() -> None:
    with pytest.raises(UserError, match="cmc = 'person'"):
        MetricOptions(cmc="person")  # type: ignore[arg-type]


def test_a_result_is_shown_in_one_line() -> None:
    result = evaluate(np.eye(2, 3), [0, 1], [0, 1, 1])
    assert repr(result).startswith("RetrievalResult(R1 100.00, ") and repr(result).endswith(
        "; 2 queries, 3 gallery items)"
    )
    assert "\n" not in repr(result) and len(repr(result)) < 200
