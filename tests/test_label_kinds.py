"""Covers: utils/retrieval/exclusion, utils/retrieval/metrics, utils/retrieval/ranking. Labels and scores of kinds that
meet badly: unsigned beside signed, complex, truth values, rows too long or too short to be squared.
"""

from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.retrieval.exclusion import Labels
from utils.retrieval.metrics import evaluate, evaluate_features
from utils.retrieval.ranking import unit_length

SCORES = np.array([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize("large", [2**53, 2**60, 2**63 - 2, 2**63, 2**64 - 2])
def test_large_persons_of_both_kinds_stay_apart(large: int) -> None:
    unsigned = np.array([large, 5], np.uint64)
    same = evaluate(SCORES, unsigned, unsigned)
    assert same["mAP"] == 100 and len(same.unmatched) == 0
    other = np.array([large + 1, 5], np.uint64)
    assert evaluate(SCORES, unsigned, other).unmatched == (0,)
    if large < 2**63:
        assert evaluate(SCORES, unsigned, [large + 1, 5]).unmatched == (0,)
        assert evaluate(SCORES, unsigned, [large, 5])["mAP"] == 100


def test_large_unsigned_cameras_are_known_or_refused() -> None:
    def cameras(value: int) -> Any:
        return dict.fromkeys(("query_cameras", "gallery_cameras"), np.array([value] * 2, np.uint64))

    dropped = evaluate(SCORES, [1, 2], [1, 2], **cameras(2**62), rule="same_camera")
    assert dropped.unmatched == (0, 1)
    with pytest.raises(UserError, match=r"query_cameras and gallery_cameras: 9223372036854779904 is too large"):
        evaluate(SCORES, [1, 2], [1, 2], **cameras(2**63 + 4096), rule="same_camera")


@pytest.mark.parametrize("kind", [torch.complex64, torch.bool])
def test_scores_that_are_no_real_numbers(kind: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"similarity must hold real numbers, not {str(kind)[6:]}"):
        evaluate(torch.tensor(SCORES).to(kind), [1, 2], [1, 2])
    features, labels = torch.eye(2).to(kind), Labels(ids=[1, 2])
    with pytest.raises(UserError, match="query_features must hold real numbers"):
        evaluate_features(features, torch.eye(2), labels, labels)


@pytest.mark.parametrize("size", [3e38, 1e30, 1.0, 1e-25, 1e-38])
def test_cosines_do_not_depend_on_the_length_of_rows(size: float) -> None:
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 2.0]])
    expected = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [-1 / 3, 2 / 3, 2 / 3]])
    torch.testing.assert_close(unit_length(rows / 4 * size), expected, atol=1e-6, rtol=1e-6)


def test_ordinary_rows_keep_every_digit() -> None:
    rows = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(unit_length(rows), torch.nn.functional.normalize(rows, dim=1))
    assert torch.equal(unit_length(rows * 2.0**70), unit_length(rows))
    assert unit_length(torch.zeros(2, 0)).shape == (2, 0)
