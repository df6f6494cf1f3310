"""Section `eval`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.schema.checks import require


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int = 512
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ap: Literal["sum", "trapezoid"] = "sum"
    """Average precision: the reference's sum form, or the trapezoid of the Oxford protocol."""
    memory_mb: int = 1024
    """Budget of one block of similarities and its working copies."""
    cache_device_mb: int = 2048
    """Token cache on the compute device; what exceeds it goes to host memory, then to disk."""
    cache_host_mb: int = 8192
    max_rank: int = 50
    thresholds: tuple[float, ...] = ()
    """tau of mAP@tau, for data whose queries and gallery have annotations, for instance [0.25, 0.5, 0.75]; empty =
    none.
    """
    relevance: str = "tfidf"
    """What compares annotations: of texts tfidf, or t_s:FOLDER-OR-HUB-ID, t_s_centred:FOLDER-OR-HUB-ID (CLS of a BERT),
    beside histograms of clothes pictures; or albef:FILE, CLS of ALBEF's encoders of both (vocab.txt beside the file).
    """
    no_positive: Literal["zero", "zero_matched", "skip"] = "zero_matched"
    """mAP@tau of a query without a positive at tau: 0; 0 unless its person is not searched at all; or left out."""
    ap_depth: int = 0
    """AP sees only so many ranks after the exclusion (the n of mAP@tau); 0 = all."""
    ap_topk: int = 0
    """Further rows `[ap_topk=N]` with the released IRM evaluator's AP, cut before the exclusion (500 there); 0 =
    none.
    """
    flip: bool = False
    """Further rows `[flip]`: each feature is the mean of the image's and of its mirror image's."""
    verification: bool = False
    """test.py also measures error rates: FNMR at FMR, FNIR at FPIR, their curves, and those of a calibration."""
    rerank: bool = False
    """Further rows `[re-ranked]`: k-reciprocal re-ranking."""
    rescore: int = 0
    """Further rows `[matching top-N]`, for models with a matching head and the queries that it serves: the N best
    images of each query are scored again by the head and come first in that order (128 in the released IRM
    evaluator); 0 = none.
    """
    rerank_k1: int = 20
    rerank_k2: int = 6
    rerank_lambda: float = 0.3

    def __post_init__(self) -> None:
        for name in ("batch_size", "memory_mb", "max_rank", "rerank_k1", "rerank_k2"):
            require(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "at least 1")
        require(self.max_rank <= 100_000, "eval.max_rank", self.max_rank, "at most 100000")
        for name in ("cache_device_mb", "cache_host_mb", "ap_depth", "ap_topk", "rescore"):
            require(getattr(self, name) >= 0, f"eval.{name}", getattr(self, name), "0 or larger")
        require(0 <= self.rerank_lambda <= 1, "eval.rerank_lambda", self.rerank_lambda, "between 0 and 1")
        require(
            all(math.isfinite(tau) for tau in self.thresholds), "eval.thresholds", self.thresholds, "finite numbers"
        )
