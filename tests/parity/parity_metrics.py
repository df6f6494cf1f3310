"""Golden checks of ranking metrics, protocols' rules and mAP at instruction thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from parity_common import Kind, Row, exact, max_error

from utils.retrieval.exclusion import Labels
from utils.retrieval.metrics import evaluate, evaluate_features, threshold_name
from utils.retrieval.options import MetricOptions
from utils.retrieval.result import RetrievalResult

Golden = Mapping[str, Any]


def _load(path: Path) -> Golden:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _search(golden: Golden, scores: np.ndarray, **options: Any) -> RetrievalResult:
    """Metrics with the file's person ids and, where it has them, cameras."""
    cameras = {}
    for name in ("camids", "cams"):
        if f"q_{name}" in golden:
            cameras = {"query_cameras": golden[f"q_{name}"], "gallery_cameras": golden[f"g_{name}"]}
    return evaluate(scores, golden["q_pids"], golden["g_pids"], **cameras, **options)


def _fractions(result: RetrievalResult, golden: Golden, names: Mapping[str, str], tolerance: float) -> list[Row]:
    """Compare cmc, mAP and mINP, in [0, 1], with the golden fields of the given names."""
    actual = {"cmc": result.cmc / 100, "mAP": result.mAP / 100, "mINP": result.mINP / 100}
    return [Row(field, max_error(actual[quantity], golden[field]), tolerance) for quantity, field in names.items()]


def _guard(result: RetrievalResult, golden: Golden, wrong: str, right: str) -> Row:
    """A guard: the wrong value of the file must not be what we compute, unless right and wrong coincide there."""
    actual = result.mAP if wrong.endswith("mAP") else result.cmc
    distinct = max_error(golden[wrong], golden[right]) > 1e-6
    return exact(not distinct or max_error(np.asarray(actual) / 100, golden[wrong]) > 1e-6, f"differs from {wrong}")


def check_rank(path: Path) -> list[Row]:
    """ReID5o: CMC, mAP, mINP in percent, and the ten best items."""
    golden = _load(path)
    result = _search(golden, golden["similarity"])
    rows = [
        Row("cmc10", max_error(result.cmc[:10], golden["cmc10"]), 1e-4),
        Row("cmc_1_5_10", max_error([result.R1, result.R5, result.R10], golden["cmc_1_5_10"]), 1e-4),
        Row("mAP", max_error(result.mAP, golden["mAP"]), 1e-4),
        Row("mINP", max_error(result.mINP, golden["mINP"]), 1e-4),
    ]
    # Where the reference has its first match among the ten best, so have we.
    matches = golden["g_pids"][golden["top10_indices"]] == golden["q_pids"][:, None]
    expected = np.where(matches.any(1), matches.argmax(1) + 1, 0)
    ours = np.where(result.first_rank <= 10, result.first_rank, 0)
    return [*rows, exact(np.array_equal(ours, expected), "first match among the ten best")]


def check_threshold(path: Path) -> list[Row]:
    """mAP at thresholds: per-query AP and both means, with and without cut and camera filter."""
    golden = _load(path)
    taus = golden["taus"].tolist()
    rows = []
    for depth_name, depth in (("all", None), (str(int(golden["n"])), int(golden["n"]))):
        for filter_name, rule in (("nofilter", "none"), ("camfilter", "same_camera")):
            results = {
                policy: _search(
                    golden,
                    -golden["dist"],
                    rule=rule,
                    thresholds=taus,
                    ap_depth=depth,
                    no_positive=policy,
                    query_instructions=golden["q_instr"],
                    gallery_instructions=golden["g_instr"],
                )
                for policy in ("zero", "skip")
            }
            for tau in taus:
                key, name = f"tau{tau}_n{depth_name}_{filter_name}", threshold_name(tau)
                rows.append(
                    Row(f"AP_{key}", max_error(results["zero"].threshold_ap[name] / 100, golden[f"AP_{key}"]), 1e-12)
                )
                for policy, result in results.items():
                    field = f"mAP{policy}_{key}"
                    rows.append(Row(field, max_error(result[name] / 100, golden[field]), 1e-12))
    return rows


def check_threshold_by_hand(path: Path) -> list[Row]:
    """The one-query case that can be checked on paper."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    expected = {float(name[3:]): value for name, value in golden["result"].items() if name.startswith("tau")}
    result = evaluate(
        -np.asarray(golden["dist"]),
        golden["q_pids"],
        golden["g_pids"],
        thresholds=tuple(expected),
        query_instructions=golden["q_instr"],
        gallery_instructions=golden["g_instr"],
    )
    return [
        Row(f"tau{tau}", max_error(result[threshold_name(tau)] / 100, value), 1e-12) for tau, value in expected.items()
    ]


def check_released_irm(path: Path) -> list[Row]:
    """IRM's released evaluator without and with its cut of the ranking before the exclusion."""
    golden = _load(path)
    rows = []
    for name, cut in (("none", None), ("500", 500)):
        result = _search(golden, -golden["distmat"], rule="same_camera", ap_topk=cut, max_rank=int(golden["max_rank"]))
        rows += _fractions(result, golden, {"cmc": f"cmc_{name}", "mAP": f"mAP_{name}"}, 1e-6)
    return rows


def check_sysu(path: Path) -> list[Row]:
    """SYSU-MM01's camera rule, curve over distinct persons, and per-query values."""
    golden = _load(path)
    max_rank = int(golden["max_rank"])
    result = _search(golden, -golden["distmat"], rule="sysu", cmc="identity", max_rank=max_rank)
    rows = _fractions(result, golden, {"cmc": "ref_cmc", "mAP": "ref_mAP"}, 1e-6)
    rows += _fractions(result, golden, {"cmc": "own64_cmc", "mAP": "own64_mAP", "mINP": "own64_mINP"}, 1e-9)
    return rows + [
        exact(np.array_equal(result.first_rank > 0, golden["own64_valid"]), "own64_valid"),
        Row("own64_AP", max_error(result.per_query["mAP"] / 100, golden["own64_AP"]), 1e-9),
        Row("own64_INP", max_error(result.per_query["mINP"] / 100, golden["own64_INP"]), 1e-9),
        exact(np.array_equal(result.first_rank - 1, golden["own64_first_rank"]), "own64_first_rank"),
        *(
            _guard(result, golden, field, f"own64_{field.rsplit('_', 1)[1]}")
            for field in golden
            if field.startswith("wrong_")
        ),
    ]


def check_image_curve(path: Path) -> list[Row]:
    """The same camera rule with a curve over items, and Market-1501's rule on the same data."""
    golden = _load(path)
    scores, options = -golden["distmat"], {"max_rank": int(golden["max_rank"])}
    result = _search(golden, scores, rule="sysu", **options)
    market = _search(golden, scores, rule="same_camera", **options)
    return [
        *_fractions(result, golden, {"cmc": "ref_cmc", "mAP": "ref_mAP"}, 1e-6),
        *_fractions(result, golden, {"cmc": "own64_cmc", "mAP": "own64_mAP", "mINP": "own64_mINP"}, 1e-9),
        *_fractions(market, golden, {"cmc": "market_rule_cmc", "mAP": "market_rule_mAP"}, 1e-6),
    ]


def check_regdb(path: Path) -> list[Row]:
    """RegDB: no exclusion, both directions."""
    golden = _load(path)
    max_rank = int(golden["max_rank"])
    forward = _search(golden, -golden["distmat"], max_rank=max_rank)
    backward = evaluate(-golden["distmat"].T, golden["g_pids"], golden["q_pids"], max_rank=max_rank)
    reverse = {"cmc": "own64_reverse_cmc", "mAP": "own64_reverse_mAP", "mINP": "own64_reverse_mINP"}
    return [
        *_fractions(forward, golden, {"cmc": "ref_cmc", "mAP": "ref_mAP"}, 1e-6),
        *_fractions(forward, golden, {"mINP": "own64_mINP"}, 1e-9),
        *_fractions(backward, golden, reverse, 1e-9),
    ]


def check_features(path: Path) -> list[Row]:
    """From un-normalised features to the SYSU and RegDB figures."""
    golden = _load(path)
    count = int(golden["num_query"])
    features = torch.from_numpy(golden["feats"])
    query, gallery = (
        Labels(ids=golden["pids"][part], cameras=golden["camids"][part])
        for part in (slice(None, count), slice(count, None))
    )
    rows = []
    cases: tuple[tuple[str, str, Literal["image", "identity"]], ...] = (
        ("sysu", "sysu", "identity"),
        ("regdb", "none", "image"),
    )
    for name, rule, cmc in cases:
        options = MetricOptions(rule=rule, cmc=cmc, max_rank=len(golden[f"ref_{name}_cmc"]))
        result = evaluate_features(features[:count], features[count:], query, gallery, options=options)
        rows += _fractions(result, golden, {"cmc": f"ref_{name}_cmc", "mAP": f"ref_{name}_mAP"}, 1e-5)
    return rows


def check_sysu_protocol(path: Path) -> list[Row]:
    """All-search and indoor-search with one and ten images per person and camera."""
    golden = _load(path)
    every = np.ones(len(golden["g_pids"]), dtype=bool)
    rows = []
    for mode, area in (("all", every), ("indoor", golden["indoor_mask"])):
        for shots, drawn in (("single", golden["single_shot_mask"]), ("multi10", every)):
            kept, name = area & drawn, f"{mode}_{shots}"
            result = evaluate(
                -golden["distmat"][:, kept],
                golden["q_pids"],
                golden["g_pids"][kept],
                rule="sysu",
                cmc="identity",
                query_cameras=golden["q_camids"],
                gallery_cameras=golden["g_camids"][kept],
                max_rank=len(golden[f"{name}_cmc"]),
            )
            rows += _fractions(result, golden, {field: f"{name}_{field}" for field in ("cmc", "mAP", "mINP")}, 1e-9)
            rows.append(exact(np.array_equal(result.first_rank > 0, golden[f"{name}_valid"]), f"{name}_valid"))
            rows.append(_guard(result, golden, f"{name}_wrong_per_image_cmc", f"{name}_cmc"))
    return rows


def check_llcm_protocol(path: Path) -> list[Row]:
    """LLCM: same person in the same camera dropped, curve over distinct persons."""
    golden = _load(path)
    result = _search(golden, -golden["distmat"], rule="same_camera", cmc="identity", max_rank=len(golden["own64_cmc"]))
    return [
        *_fractions(result, golden, {"cmc": "own64_cmc", "mAP": "own64_mAP", "mINP": "own64_mINP"}, 1e-9),
        exact(np.array_equal(result.first_rank > 0, golden["own64_valid"]), "own64_valid"),
        _guard(result, golden, "wrong_no_rule_mAP", "own64_mAP"),
    ]


KINDS: tuple[Kind, ...] = (
    Kind("ranking metrics (ReID5o)", r"rank_.*\.npz", check_rank),
    Kind("mAP at thresholds, by hand (IRM)", r"h_maptau_hand.*\.json", check_threshold_by_hand),
    Kind("mAP at thresholds (IRM)", r"h_maptau_.*\.npz", check_threshold),
    Kind("released evaluator (IRM)", r"b_eval_.*\.npz", check_released_irm),
    Kind("SYSU-MM01 rule (visible-infrared)", r"eval_sysu_.*\.npz", check_sysu),
    Kind("curve over images (visible-infrared)", r"eval_func_.*\.npz", check_image_curve),
    Kind("RegDB directions (visible-infrared)", r"eval_regdb_.*\.npz", check_regdb),
    Kind("metrics from features (visible-infrared)", r"r1_map_.*\.npz", check_features),
    Kind("SYSU-MM01 protocol (visible-infrared)", r"sysu_protocol_.*\.npz", check_sysu_protocol),
    Kind("LLCM protocol (visible-infrared)", r"llcm_protocol_.*\.npz", check_llcm_protocol),
)
