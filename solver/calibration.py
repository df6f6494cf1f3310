"""Thresholds of a trained model: what infer.py answers "above", "below" or "not calibrated" by.

They lie beside the checkpoint, `best.calibration.json` for best.pth, belong to these weights under these options of the
model, and are used for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.vocabulary import Combination, Modality
from solver.evaluation.verification import ErrorRates, rate_name
from solver.run_directory import CALIBRATION_SUFFIX
from solver.runs import TrainedModel, model_identity
from utils.errors import UserError, shortened
from utils.files import CHECKSUM, checksum_of, read_json
from utils.retrieval.error_rates import FALSE_ALARM_RATES, RULE_OF_THREE, Thresholds

FORMAT = 2
MIN_PERSONS = 10
"""Fewer persons say nothing about others."""
SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutoff:
    """The threshold that an answer is given by."""

    threshold: float
    """A similarity of at least this is above."""
    rate: float
    """FPIR that it was set for: share of searches for a person who is not there that find somebody."""
    images: float
    """Images of the searches that it was set on."""

    @property
    def words(self) -> str:
        """The false alarm rate for readers."""
        return f"{100 * self.rate:g} % false alarms"

    def expected_rate(self, images: int) -> float:
        """Return the false alarm rate in a gallery of so many images: 1 - (1 - rate) ^ (images / calibrated images).

        For independent comparisons, FPIR = 1 - (1 - FMR) ^ N.
        """
        return 1 - (1 - self.rate) ** (images / self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The thresholds of one model."""

    file: Path
    split: str
    """Where they were set: `val`, or `test`, which flatters the rates that are reported on it."""
    dataset: str
    thresholds: Mapping[str, Thresholds]
    """By combination and POOLED."""
    gallery: frozenset[str]
    """Modalities of the images that were searched."""
    images: Mapping[str, float] = field(default_factory=dict)
    """Images of the searches behind the thresholds of open-set identification."""
    rate: float | None = None
    """False alarm rate to answer by, None = for each combination the lowest that there is."""

    @property
    def note(self) -> str:
        """What a reader must know of where the thresholds come from, empty = validation identities."""
        return "thresholds fitted on the test set" if self.split == "test" else ""

    def cutoff(self, combination: Combination, searched: Collection[Modality]) -> Cutoff | None:
        """Return the threshold at `rate` for queries of these modalities in a gallery of those; None when they were
        not calibrated.
        """
        rates = self.rates(combination, searched)
        rate = self.rate if self.rate is not None else min(rates, default=None)
        if rate not in rates:
            return None
        name = rate_name(combination)
        return Cutoff(threshold=self.thresholds[name].identification[rate], rate=rate, images=self.images[name])

    def rates(self, combination: Combination, searched: Collection[Modality]) -> tuple[float, ...]:
        """Return the false alarm rates, ascending, that queries of these modalities have thresholds at in a gallery of
        those; empty = they were not calibrated.
        """
        name = rate_name(combination)
        if name not in self.thresholds or not {modality.value for modality in searched} <= self.gallery:
            return ()
        return tuple(sorted(self.thresholds[name].identification))


def calibration_file(checkpoint: Path) -> Path:
    """Return the file of a checkpoint's thresholds."""
    return checkpoint.with_name(f"{checkpoint.stem}{CALIBRATION_SUFFIX}")


def at_rate(
    calibration: Calibration | None, rate: float, asked: Iterable[Combination], searched: Collection[Modality]
) -> Calibration:
    """Return the calibration that answers by a false alarm rate. asked: of the queries. searched: of the gallery.

    Raises UserError, naming the rates that there are, where some of the queries have no threshold at it.
    """
    if calibration is None:
        raise UserError(
            f"error rate {rate:g}: this model is not calibrated; set thresholds with infer.py --calibrate, or give no "
            "rate"
        )
    for combination in dict.fromkeys(asked):
        rates = calibration.rates(combination, searched)
        if rate in rates:
            continue
        images = ", ".join(modality.name for modality in searched)
        what = f"error rate {rate:g}: queries of {rate_name(combination)} in a gallery of {images} images"
        if rates:
            there = ", ".join(f"{one:g}" for one in rates)
            raise UserError(f"{what} have thresholds at {there} only; give one of these")
        raise UserError(f"{what} are not calibrated; give no rate, or calibrate on data that has such searches")
    return replace(calibration, rate=rate)


def check_calibrated(rates: ErrorRates, where: str) -> None:
    """Raise UserError when there are too few persons, or too few searches for any threshold. where: whose they are."""
    if rates.persons < MIN_PERSONS:
        raise UserError(
            f"{where} has {rates.persons} persons, and a calibration takes at least {MIN_PERSONS}; raise "
            "data.val_fraction and train again, or calibrate on data with more persons"
        )
    if not any(one.identification for one in rates.combinations.values()):
        needed, most = (
            math.ceil(RULE_OF_THREE / max(FALSE_ALARM_RATES)),
            max(one.absent_searches for one in rates.combinations.values()),
        )
        raise UserError(
            f"{where} has at most {most} searches of one kind, and a false alarm rate of {max(FALSE_ALARM_RATES):.0%} "
            f"takes {needed}; calibrate on data with more queries"
        )


def read_calibration(trained: TrainedModel) -> Calibration | None:
    """Return the thresholds beside a checkpoint, None without any. Raises UserError for those of another model, and for
    a damaged file.
    """
    file = calibration_file(trained.checkpoint)
    if not file.is_file():
        return None
    document = read_json(file, "a calibration of infer.py --calibrate")
    again = f"calibrate again with --calibrate, or remove {file.name}"
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{file} is not a calibration of this version (format {FORMAT}); {again}")
    if document.get(CHECKSUM) != checksum_of(document):
        raise UserError(f"{file} is damaged (its content is not what was written); {again}")
    try:
        model = document["model"]
        found = Calibration(
            file=file,
            split=str(document["data"]["split"]),
            dataset=str(document["data"]["dataset"]),
            gallery=frozenset(map(str, document["data"]["gallery"])),
            thresholds={name: _thresholds(one) for name, one in document["error_rates"].items()},
            images={name: _number(one["searches"]["images"]) for name, one in document["error_rates"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); {again}") from error
    own = model_identity(trained)
    different = [key for key in own if not isinstance(model, dict) or model.get(key) != own[key]]
    if different:
        raise UserError(
            f"{file} was fitted to another model than {trained.checkpoint} (different: "
            f"{shortened(different, SHOWN)}), and its thresholds say nothing about this one; {again}"
        )
    return found


def _thresholds(document: Mapping[str, Any]) -> Thresholds:
    return Thresholds(
        matching=_by_target(document["matching"], "fmr_target"),
        identification=_by_target(document["identification"], "fpir_target"),
    )


def _by_target(points: Sequence[Mapping[str, Any]], target: str) -> dict[float, float]:
    return {_number(point[target]): _number(point["threshold"]) for point in points}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)
