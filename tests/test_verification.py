"""Covers: utils/retrieval/verification, utils/retrieval/error_rates, utils/retrieval/score_counts. Error rates of
thresholds against cases worked by hand, a slow oracle and planted distributions.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from utils.errors import UserError
from utils.retrieval import verification
from utils.retrieval.error_rates import Rate, Thresholds, allowed_errors, is_supported
from utils.retrieval.score_counts import ScoreCounts, key_score, score_keys
from utils.retrieval.verification import ComparisonSet, verify

NORMAL = NormalDist()


def comparisons(scores, query, gallery, counted=None, block=3):
    scores = np.asarray(scores, dtype=np.float32)
    counted = np.ones(scores.shape, dtype=bool) if counted is None else counted

    def blocks():
        for first in range(0, len(scores), block):
            yield first, scores[first : first + block], counted[first : first + block]

    return ComparisonSet(query_persons=np.asarray(query), gallery_persons=np.asarray(gallery), blocks=blocks)


def by_target(points):
    return {point.target: point for point in points}


def slow_rates(sets, threshold):
    """FMR and FNMR as (errors, trials) by two loops, in Python numbers."""
    false, impostors, missed, genuine = 0, 0, 0, 0
    for one in sets:
        for first, scores, counted in one.blocks():
            for row in range(len(scores)):
                for column in range(len(one.gallery_persons)):
                    if not counted[row, column]:
                        continue
                    match = float(scores[row, column]) >= threshold
                    if one.query_persons[first + row] == one.gallery_persons[column]:
                        genuine += 1
                        missed += not match
                    else:
                        impostors += 1
                        false += match
    return (false, impostors), (missed, genuine)


def test_a_case_worked_by_hand(monkeypatch):
    # Ten persons, each asked for once, one image each: 10 genuine and 90 impostor comparisons.
    scores = np.zeros((10, 10), dtype=np.float32)
    off = [(row, column) for row in range(10) for column in range(10) if row != column]
    for number, (row, column) in enumerate(off):
        scores[row, column] = number / 100  # 0.00 .. 0.89
    scores[np.arange(10), np.arange(10)] = [0.5, 0.7, 0.79, 0.8, 0.81, 0.85, 0.9, 0.9, 0.9, 0.95]
    found = verify([comparisons(scores, range(10), range(10))], persons=10, seed=1)
    assert (found.genuine, found.impostor, found.persons, found.queries) == (10, 90, 10, 10)
    # 0.1 of 90 allows the nine scores 0.81 .. 0.89; the threshold lies just above 0.80. Below it: 0.5, 0.7, 0.79, 0.8.
    point = by_target(found.matching)[0.1]
    assert point.threshold == pytest.approx(0.80, abs=1e-6) and point.threshold > np.float32(0.80)
    assert (point.false.errors, point.false.trials) == (9, 90)
    assert (point.missed.errors, point.missed.trials) == (4, 10)
    # 1 in 100 takes 300 comparisons by the rule of 3.
    assert [one.target for one in found.matching] == [0.1]
    # Ten searches for an absent person: 0.1 takes 30.
    assert found.identification == () and found.absent_searches == 10
    # Everybody in a part of their own: each search of an absent person sees the nine others.
    monkeypatch.setattr(verification, "PARTS", 10)
    assert verify([comparisons(scores, range(10), range(10))], persons=10, seed=1).searched_images == 9


def test_misses_and_false_alarms_worked_by_hand(monkeypatch):
    """Searches are judged by their best image: 40 persons, two images each, everybody in a part of their own."""
    monkeypatch.setattr(verification, "PARTS", 40)
    query, gallery = np.arange(40), np.repeat(np.arange(40), 2)
    scores = np.full((40, 80), -1.0, dtype=np.float32)
    for person in range(40):
        # Its own: one poor image, and one of 0.30, 0.31, ..., 0.69.
        scores[person, 2 * person], scores[person, 2 * person + 1] = 0.0, 0.30 + person / 100
        # The best of the others: 0.00, 0.01, ... 0.39.
        scores[person, (2 * person + 2) % 80] = person / 100
    found = verify([comparisons(scores, query, gallery, block=7)], persons=40, seed=3)
    (point,) = found.identification
    # 0.1 of 40 searches are four: 0.36 .. 0.39 are allowed; T is just above 0.35. Missed: 0.30 .. 0.35, six persons.
    assert point.target == 0.1 and point.threshold == pytest.approx(0.35, abs=1e-6)
    assert (point.false.errors, point.false.trials) == (4, 40)
    assert (point.missed.errors, point.missed.trials) == (6, 40)
    # A similarity that is the threshold is a match, on both sides.
    at = Thresholds(identification={0.1: float(np.float32(0.35))})
    (point,) = verify([comparisons(scores, query, gallery)], persons=40, seed=3, thresholds=at).identification
    assert (point.false.errors, point.missed.errors) == (5, 5)


def test_ties_are_on_one_side_of_a_threshold():
    scores = np.full((10, 40), 0.25, dtype=np.float32)
    found = verify([comparisons(scores, np.arange(10), np.arange(40))], persons=40, seed=0)
    for point in found.matching:
        # No threshold tells equal scores apart: the rate stays below the target, at nothing.
        assert point.false.errors == 0 and point.threshold > 0.25 and point.missed.errors == 10


@pytest.mark.parametrize("seed", range(4))
def test_rates_are_those_of_a_slow_count(seed):
    draw = np.random.default_rng(seed)
    sets = []
    for number in range(3):
        queries, images = 9 + number, 60
        # Few different values, so that ties are common, on both sides of zero.
        scores = np.round(draw.normal(0, 0.3, (queries, images)), 2 - number % 2)
        counted = draw.random((queries, images)) < 0.8
        sets.append(
            comparisons(scores, draw.integers(0, 8, queries), draw.integers(0, 12, images), counted, block=2 + number)
        )
    found = verify(sets, persons=12, seed=seed)
    every = np.sort(
        np.concatenate(
            [
                scores[counted & (one.query_persons[first : first + len(scores), None] != one.gallery_persons)]
                for one in sets
                for first, scores, counted in one.blocks()
            ]
        )
    )[::-1]
    assert found.impostor == len(every) and [point.target for point in found.matching] == [0.1, 0.01]
    for point in found.matching:
        rank = math.floor(point.target * len(every))
        assert point.threshold == np.nextafter(every[rank], np.float32(2))
        false, missed = slow_rates(sets, point.threshold)
        assert (point.false.errors, point.false.trials) == false and point.false.value <= point.target
        assert (point.missed.errors, point.missed.trials) == missed
    for place in found.matching_curve:
        (false, impostors), (missed, genuine) = slow_rates(sets, place.threshold)
        assert (place.false, place.missed) == pytest.approx((false / impostors, missed / genuine), abs=1e-12)
    given = Thresholds(matching={0.1: 0.2, 0.01: -0.1})
    for point in verify(sets, persons=12, seed=seed, thresholds=given).matching:
        assert point.threshold == given.matching[point.target]
        false, missed = slow_rates(sets, np.float32(point.threshold))
        assert ((point.false.errors, point.false.trials), (point.missed.errors, point.missed.trials)) == (false, missed)


def test_blocks_and_the_order_of_sets_change_nothing():
    draw = np.random.default_rng(5)
    scores, query, gallery = draw.normal(size=(50, 70)), draw.integers(0, 20, 50), draw.integers(0, 20, 70)
    one = verify([comparisons(scores, query, gallery, block=50)], persons=20, seed=9)
    assert one == verify([comparisons(scores, query, gallery, block=1)], persons=20, seed=9)
    halves = [comparisons(scores[half], query[half], gallery) for half in (slice(0, 20), slice(20, 50))]
    assert verify(halves, persons=20, seed=9) == verify(halves[::-1], persons=20, seed=9) == one
    assert one != verify([comparisons(scores, query, gallery)], persons=20, seed=10)


def planted(seed, persons=60, images=4, shift=2.5):
    """Independent scores: impostors N(0, 1), genuine N(shift, 1)."""
    draw = np.random.default_rng(seed)
    query, gallery = np.repeat(np.arange(persons), 8), np.repeat(np.arange(persons), images)
    scores = draw.normal(size=(len(query), len(gallery))).astype(np.float32)
    scores[query[:, None] == gallery] += shift
    return comparisons(scores, query, gallery, block=128)


def test_planted_rates_are_inside_their_intervals():
    inside: dict[str, list[bool]] = {name: [] for name in ("FMR", "FNMR", "FPIR", "FNIR")}
    for seed in range(12):
        found = verify([planted(seed)], persons=60, seed=seed, replicates=300)
        assert [point.target for point in found.matching] == [0.1, 0.01, 0.001, 0.0001]
        assert [point.target for point in found.identification] == [0.1, 0.01]
        points = found.matching[:3]
        inside["FMR"] += [p.false.low <= 1 - NORMAL.cdf(p.threshold) <= p.false.high for p in points]
        inside["FNMR"] += [p.missed.low <= NORMAL.cdf(p.threshold - 2.5) <= p.missed.high for p in found.matching]
        # A search sees the images outside its person's part: 48 persons of four images.
        assert found.searched_images == 192
        alarms = [(p, 1 - NORMAL.cdf(p.threshold) ** 192) for p in found.identification]
        inside["FPIR"] += [p.false.low <= rate <= p.false.high for p, rate in alarms]
        missed = [(p, NORMAL.cdf(p.threshold - 2.5) ** 4) for p in found.identification]
        inside["FNIR"] += [p.missed.low <= rate <= p.missed.high for p, rate in missed]
        for p in found.matching:
            assert p.false.value == pytest.approx(p.target, rel=0.3), "the number of errors is set, not drawn"
    # The intervals are of 95 %; a threshold set on the same scores fixes the false rate, and frees its true value.
    assert all(np.mean(found) >= 0.85 for found in inside.values()), {k: np.mean(v) for k, v in inside.items()}
    # And they say something: none is everything.
    assert all(p.missed.high - p.missed.low < 0.1 for p in found.matching[:3])


def test_persons_that_differ_widen_the_interval():
    """Half of the persons are never missed and half always: 400 comparisons say no more than 40 persons do."""
    query, gallery = np.repeat(np.arange(40), 10), np.arange(40)
    scores = np.full((400, 40), -1.0, dtype=np.float32)
    scores[query[:, None] == gallery] = np.where(query % 2, 0.9, 0.1)
    given = Thresholds(matching={0.1: 0.5})
    (point,) = verify([comparisons(scores, query, gallery)], persons=40, seed=2, thresholds=given).matching
    assert point.missed.value == 0.5
    # One person with most of the comparisons, all missed: a share of what was drawn, whoever was drawn.
    many = np.concatenate([np.zeros(90, dtype=np.int64), np.arange(1, 20)])
    poor = np.where(many[:, None] == np.arange(20), np.where(many == 0, 0.1, 0.9)[:, None], -1.0)
    (whole,) = verify([comparisons(poor, many, np.arange(20))], persons=20, seed=2, thresholds=given).matching
    assert 0 <= whole.missed.low < 0.5 and 0.9 < whole.missed.high <= 1
    # Binomial over 40: 0.5 +- 1.96 * sqrt(0.25 / 40) = 0.155; over 400 it would be 0.049.
    assert point.missed.high - point.missed.low == pytest.approx(2 * 0.155, abs=0.06)


def test_without_errors_a_rate_is_bounded_not_zero():
    assert Rate(errors=0, trials=300).bound == 0.01 and Rate(errors=0, trials=2).bound == 1
    assert math.isnan(Rate(errors=0, trials=0).value)
    scores = np.where(np.arange(40)[:, None] == np.arange(40), np.float32(0.9), np.float32(0.1))
    found = verify([comparisons(scores, range(40), range(40))], persons=40, seed=0)
    point = found.matching[0]
    assert (point.missed.errors, point.missed.low, point.missed.high) == (0, 0, 3 / 40)
    # 1560 impostor comparisons: 3 / 1560 supports 1e-2, and neither 1e-3 nor 1e-4.
    assert [one.target for one in found.matching] == [0.1, 0.01]
    assert is_supported(1e-4, 30_000) and not is_supported(1e-4, 29_999)
    assert allowed_errors(0.29, 100) == 29, "0.29 * 100 is 28.999... in floating point"


def test_more_persons_than_units_are_drawn_in_groups(monkeypatch):
    one = planted(1)
    alone = verify([one], persons=60, seed=4)
    monkeypatch.setattr(verification, "MAX_UNITS", 30)
    grouped = verify([one], persons=60, seed=4)
    for ours, theirs in zip(alone.matching, grouped.matching):
        assert (ours.false.value, ours.missed.value) == (theirs.false.value, theirs.missed.value)
        assert theirs.missed.high - theirs.missed.low == pytest.approx(ours.missed.high - ours.missed.low, rel=0.6)


def test_ranks_of_scores_by_their_bits():
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(size=4000), [0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38], np.full(50, 0.125)])
    scores = scores.astype(np.float32)
    draw.shuffle(scores)
    keys = score_keys(scores)
    assert [key_score(int(key)) for key in keys] == scores.tolist()
    assert (np.argsort(keys, kind="stable") == np.argsort(scores, kind="stable")).all()
    ranks, counts, pair = [0, 1, 7, 2000, 4055], ScoreCounts(), np.array([0.5, -0.5], dtype=np.float32)
    for part in np.array_split(scores, 7):
        counts.add(np.append(part, pair), pair[::-1])
    counts.start_refining(counts.bins(ranks))
    for part in np.array_split(scores, 3):
        counts.refine(np.repeat(part, 2), np.tile([True, False], len(part)))
    falling = np.sort(scores)[::-1]
    for rank in ranks:
        assert counts.above(rank) == float(np.nextafter(falling[rank], np.float32(np.inf)))
        assert counts.larger(rank) == int((falling > falling[rank]).sum())
    with pytest.raises(IndexError):
        counts.bins([4056])


def test_what_cannot_be_measured_is_refused():
    scores = np.full((3, 3), np.nan, dtype=np.float32)
    with pytest.raises(UserError, match="not a finite number"):
        verify([comparisons(scores, range(3), range(3))], persons=3, seed=0)
    with pytest.raises(UserError, match="no query is compared"):
        verify([comparisons(np.zeros((3, 3)), range(3), range(3), np.zeros((3, 3), dtype=bool))], persons=3, seed=0)
    with pytest.raises(UserError, match="no query is compared"):
        verify([], persons=0, seed=0)
