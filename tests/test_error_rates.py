"""Covers: solver/evaluation/verification, solver/reports/error_rates. Error rates of an evaluated split against every
comparison counted by itself, and what readers see of them.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from protocol_oracle import ToyModel, ToyReader, counts_for, plain_feature

from configs.schema.evaluation import EvalConfig
from configs.vocabulary import Modality, Task
from datasets.protocols import Search, assemble_split
from datasets.structures import Record, Source
from solver.evaluation.evaluator import evaluate_split
from solver.evaluation.result import EvaluationResult
from solver.evaluation.spec import EvaluationSpec
from solver.evaluation.verification import POOLED, error_rates, rate_name
from solver.reports import error_rates as report
from utils.retrieval.error_rates import OperatingPoint, Rate, Thresholds

pytestmark = pytest.mark.figures

CPU = torch.device("cpu")


def record(person: int, camera: int, number: int, modality: Modality = Modality.RGB) -> Record:
    name = f"{modality.value}/{person}_c{camera}_{number}.jpg"
    return Record(
        person_id=person,
        sources={modality: Source(modality=modality, value=name, record=name)},
        camera_id=camera,
        task=Task.TRAD,
        name=name,
    )


def crowd(cameras: Sequence[int], each: int, modality: Modality = Modality.RGB, persons: int = 8) -> list[Record]:
    return [
        record(person, camera, number, modality)
        for person, camera, number in itertools.product(range(1, persons + 1), cameras, range(each))
    ]


def searches() -> list[Search]:
    """Infrared queries in three galleries that overlap, under two rules; visible ones, some in their own gallery; and
    drawings of a person that nobody else asks for.
    """
    pool = crowd((1, 2, 4), 3)
    infrared = crowd((3, 6), 2, Modality.NIR)
    found = [
        Search(
            title=f"nir {number}",
            protocol="nir",
            query=infrared[number:],
            gallery=[item for index, item in enumerate(pool) if index % (number + 2)],
            exclusion_rule="none" if number else "sysu",
            group="nir",
        )
        for number in range(3)
    ]
    visible = [record(person, 1, 0) for person in range(1, 9)] + [record(99, 2, 0)]
    found.append(Search(title="rgb", protocol="rgb", query=visible, gallery=pool, exclusion_rule="same_camera"))
    return [*found, Search(title="cp", protocol="cp", query=[record(5, 1, 0, Modality.CP)], gallery=pool)]


def evaluated(lists: Sequence[Search]) -> EvaluationResult:
    split = assemble_split("test", lists, {search.protocol: search.protocol for search in lists}, None)
    return evaluate_split(ToyModel(), split, ToyReader(), EvaluationSpec(config=EvalConfig(batch_size=7)), CPU)


def every_comparison(lists: Sequence[Search]) -> dict[str, dict[tuple[str, str], tuple[bool, float]]]:
    """By modality: (query, image) -> same person, similarity; each once, whichever list compares it."""
    model = ToyModel()
    found: dict[str, dict[tuple[str, str], tuple[bool, float]]] = {}
    for search in lists:
        for query, item in itertools.product(search.query, search.gallery):
            (asked,), (shown,) = query.sources.values(), item.sources.values()
            if asked == shown or not counts_for(search.exclusion_rule, query, item):
                continue
            score = float(plain_feature(model, asked) @ plain_feature(model, shown))
            kept = found.setdefault(asked.modality.name, {})
            kept[asked.value, shown.value] = (query.person_id == item.person_id, score)
    return found


def test_each_comparison_of_a_combination_counts_once() -> None:
    lists = searches()
    rates = error_rates(evaluated(lists))
    expected = every_comparison(lists)
    assert set(rates.combinations) == set(expected) == {"NIR", "RGB", "CP"}
    together = [pair for pairs in expected.values() for pair in pairs.values()]
    assert list(rates.rows()) == [*rates.combinations, POOLED] and rates.persons == 9
    for name, one in rates.rows().items():
        pairs = together if name == POOLED else list(expected[name].values())
        genuine = [score for same, score in pairs if same]
        impostor = [score for same, score in pairs if not same]
        assert (one.genuine, one.impostor) == (len(genuine), len(impostor))
        assert [point.target for point in one.matching] == [
            target for target in (0.1, 0.01, 0.001, 0.0001) if target * len(impostor) >= 3
        ]
        for point in one.matching:
            # A cosine in float32 may stand on the other side of a threshold that is made of one.
            assert abs(point.missed.errors - sum(score < point.threshold for score in genuine)) <= 1
            assert abs(point.false.errors - sum(score >= point.threshold for score in impostor)) <= 1
    # One search supports no false alarm rate, and one person no interval.
    drawing = rates.combinations["CP"]
    assert not drawing.identification and (drawing.matching[0].missed.low, drawing.matching[0].missed.high) == (0, 1)
    # 99 is not searched: a query without a genuine comparison, and a search that can only be a false alarm.
    visible = rates.combinations["RGB"]
    assert (visible.queries, visible.present_searches, visible.absent_searches) == (9, 8, 9)


def test_thresholds_from_elsewhere_are_measured_as_they_are() -> None:
    lists, threshold = searches(), 0.123
    given = {"NIR": Thresholds(matching={0.01: threshold}, identification={0.1: threshold})}
    rates = error_rates(evaluated(lists), given)
    (point,), (search,) = rates.combinations["NIR"].matching, rates.combinations["NIR"].identification
    pairs = every_comparison(lists)["NIR"]
    assert point.threshold == search.threshold == threshold
    assert point.false.errors == sum(score >= threshold for same, score in pairs.values() if not same)
    best: dict[str, float] = {}
    for (query, _), (same, score) in pairs.items():
        if same:
            best[query] = max(score, best.get(query, -2.0))
    assert (search.missed.errors, search.missed.trials) == (sum(s < threshold for s in best.values()), len(best))
    assert not rates.combinations["RGB"].matching, "no threshold was given for it"


def test_the_order_of_parts_is_no_other_combination() -> None:
    assert rate_name((Modality.TEXT, Modality.NIR)) == rate_name((Modality.NIR, Modality.TEXT)) == "NIR+TEXT"


def test_unreadable_queries_and_images_are_left_out() -> None:
    lists = searches()
    result = evaluated(lists)
    lost = dataclasses.replace(result.lists[3], first_rank=np.where(np.arange(9) == 2, -1, result.lists[3].first_rank))
    damaged = dataclasses.replace(result, lists=(*result.lists[:3], lost, *result.lists[4:]))
    without = error_rates(damaged).combinations["RGB"]
    assert (without.queries, error_rates(result).combinations["RGB"].queries) == (8, 9)


@pytest.mark.parametrize(
    "rate, shown",
    [
        (Rate(errors=0, trials=400, low=0.0, high=0.0075), "< 0.75"),
        (Rate(errors=1, trials=8, low=0.0, high=0.3), "12.50 [0.0, 30.0]"),
        (Rate(errors=0, trials=0), "-"),
        (Rate(errors=0, trials=2), "< 100"),
        # One error is no 0, however many trials there were.
        (Rate(errors=1, trials=100_000, low=0.0, high=0.00003), "0.001 [0.0, 0.003]"),
        (Rate(errors=8, trials=200_000, low=0.0002, high=0.0007), "0.004 [0.02, 0.1]"),
    ],
)
def test_a_rate_for_readers(rate: Rate, shown: str) -> None:
    assert report.percent(rate) == shown


def test_tables_results_and_curves(tmp_path: Path) -> None:
    result = evaluated(searches())
    rates = report.measure_rates(result, None)
    text = rates.text()
    assert "FNMR at FMR 0.01 %" in text and "FNIR at FPIR 10 %" in text and "pooled" in text
    assert "thresholds set on these very scores" in text and "infer.py --calibrate" in text
    assert "`-`: fewer than 3 / rate comparisons" in text
    document = json.loads(json.dumps(rates.document(), allow_nan=False))
    (point,) = [p for p in document["own_thresholds"]["error_rates"]["RGB"]["matching"] if p["fmr_target"] == 0.1]
    measured = rates.own.combinations["RGB"].matching[0]
    assert point["fnmr"]["rate"] == measured.missed.value and point["threshold"] == measured.threshold
    assert "calibrated" not in document
    curves = json.loads(report.write_curves(tmp_path / "c.json", rates.own).read_text())
    assert set(curves["fmr_fnmr"]) == {"NIR", "RGB", "CP", POOLED}
    false = [row[1] for row in curves["fmr_fnmr"]["NIR"]]
    missed = [row[2] for row in curves["fmr_fnmr"]["NIR"]]
    assert false == sorted(false, reverse=True) and missed == sorted(missed) and len(false) > 5
    assert report.draw_error_curves(tmp_path / "c.png", rates.own).read_bytes().startswith(b"\x89PNG")


def test_without_an_error_no_rate_is_written() -> None:
    point = OperatingPoint(
        target=0.1, threshold=0.5, false=Rate(errors=2, trials=40, low=0.0, high=0.1), missed=Rate(errors=0, trials=6)
    )
    found = report._point(point, "fmr", "fnmr")
    assert "rate" not in found["fnmr"] and found["fnmr"]["below"] == 0.5 and found["fmr"]["rate"] == 0.05
