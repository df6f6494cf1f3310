"""Error rates for readers and programs: tables, the section of results.json, curves as JSON and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solver.calibration import Calibration
from solver.evaluation.result import EvaluationResult
from solver.evaluation.verification import POOLED, SEED, ErrorRates, error_rates
from solver.reports.figures import new_figure, save_figure
from utils.files import write_json
from utils.retrieval.error_rates import (
    FALSE_ALARM_RATES,
    FALSE_MATCH_RATES,
    RULE_OF_THREE,
    CurvePoint,
    OperatingPoint,
    Rate,
    Verification,
)
from utils.retrieval.verification import PARTS, REPLICATES
from utils.tables import ABSENT, format_table

DEFINITIONS = {
    "fmr": "false match rate: share of comparisons of two persons at or above the threshold",
    "fnmr": "false non-match rate: share of comparisons of one person below it",
    "fpir": "false positive identification rate: share of searches for a person who is not enrolled that find somebody",
    "fnir": "miss rate: share of searches for an enrolled person without an image of that person at or above it",
    "sources": "ISO/IEC 19795-1:2021; NIST FRTE 1:1 and 1:N",
}
INTERVALS = f"95 %, {REPLICATES} bootstrap draws of persons, at the threshold"
OWN = "thresholds set on these very scores: how well the model can be told apart here, not what a deployed one does"


UNCALIBRATED = (
    "no thresholds of this checkpoint are there to be measured: infer.py --calibrate sets some on validation persons"
)


def rates_document(rates: ErrorRates) -> dict[str, Any]:
    """Return the error rates by combination, and pooled, as plain values."""
    return {name: _verification(one) for name, one in rates.rows().items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRates:
    """The error rates of a test."""

    own: ErrorRates
    """At thresholds set on the test's own scores."""
    calibrated: ErrorRates | None
    """At the thresholds of the calibration, None without one."""
    source: str
    """Where the latter come from, or how to get some."""

    def document(self) -> dict[str, Any]:
        """Return the section `verification` of results.json."""
        found: dict[str, Any] = {
            "definitions": DEFINITIONS,
            "intervals": INTERVALS,
            "parts": PARTS,
            "seed": SEED,
            "own_thresholds": {"stamp": OWN, "error_rates": rates_document(self.own)},
        }
        if self.calibrated is not None:
            found["calibrated"] = {"stamp": self.source, "error_rates": rates_document(self.calibrated)}
        return found

    def text(self) -> str:
        """Return the tables and what a reader of them must know."""
        parts = [format_rates(self.own, f"error rates, {OWN}")]
        if self.calibrated is not None:
            parts.append(format_rates(self.calibrated, f"error rates met, {self.source}", attained=True))
        return "\n".join([*parts, *([] if self.calibrated else [self.source]), *rate_notes(self.own)])


def measure_rates(result: EvaluationResult, calibration: Calibration | None) -> MeasuredRates:
    """Measure the error rates of a test, at its own thresholds and at those of a calibration."""
    own = error_rates(result)
    if calibration is None:
        return MeasuredRates(own=own, calibrated=None, source=UNCALIBRATED)
    fitted = "the test set itself" if calibration.split == "test" else "validation persons"
    return MeasuredRates(
        own=own,
        calibrated=error_rates(result, calibration.thresholds),
        source=f"thresholds fitted on {fitted} of {calibration.dataset} ({calibration.file.name})",
    )


def _verification(one: Verification) -> dict[str, Any]:
    return {
        "persons": one.persons,
        "queries": one.queries,
        "comparisons": {"genuine": one.genuine, "impostor": one.impostor},
        "searches": {"absent": one.absent_searches, "present": one.present_searches, "images": one.searched_images},
        "matching": [_point(point, "fmr", "fnmr") for point in one.matching],
        "identification": [_point(point, "fpir", "fnir") for point in one.identification],
    }


def _point(point: OperatingPoint, false: str, missed: str) -> dict[str, Any]:
    return {
        f"{false}_target": point.target,
        "threshold": point.threshold,
        false: _rate(point.false),
        missed: _rate(point.missed),
    }


def _rate(rate: Rate) -> dict[str, Any]:
    """`below` instead of `rate` where no error was seen."""
    if not rate.trials:
        return {"errors": 0, "trials": 0}
    shown = {"rate": rate.value} if rate.errors else {"below": rate.bound}
    return {"errors": rate.errors, "trials": rate.trials, **shown, "interval": [rate.low, rate.high]}


def percent(rate: Rate, interval: bool = True) -> str:
    """Return a rate in percent for readers: `12.30 [10.1, 14.6]`, `< 0.75` where no error was seen, `-` without
    trials.
    """
    if not rate.trials:
        return ABSENT
    if not rate.errors:
        # 100 and not 1e+02, for three trials or fewer.
        return f"< {float(f'{100 * rate.bound:.2g}'):g}"
    return _shown(rate.value, 2) + (f" [{_shown(rate.low, 1)}, {_shown(rate.high, 1)}]" if interval else "")


def _shown(share: float, digits: int) -> str:
    """Return a share in percent with so many digits behind the point, or the first that is not 0: a 0 is none."""
    text = f"{100 * share:.{digits}f}"
    return text if float(text) or not share else f"{100 * share:.1g}"


def format_rates(rates: ErrorRates, title: str, attained: bool = False) -> str:
    """Return the table of error rates in percent. attained: the false rates that were met beside the missed ones; else
    the missed ones with their intervals.
    """
    rows = []
    for name, one in rates.rows().items():
        row: dict[str, Any] = {"queries": name}
        for missed, false, points, targets in (
            ("FNMR", "FMR", one.matching, FALSE_MATCH_RATES),
            ("FNIR", "FPIR", one.identification, FALSE_ALARM_RATES),
        ):
            for target in targets:
                point = next((point for point in points if point.target == target), None)
                column = (
                    f"{false}/{missed} at {100 * target:g} %" if attained else f"{missed} at {false} {100 * target:g} %"
                )
                row[column] = ABSENT if point is None else _cell(point, attained)
        rows.append({**row, "persons": one.persons, "genuine": one.genuine, "impostor": one.impostor})
    return f"{title}\n{format_table(rows)}"


def _cell(point: OperatingPoint, attained: bool) -> str:
    if attained:
        return f"{percent(point.false, interval=False)} / {percent(point.missed, interval=False)}"
    return percent(point.missed)


def rate_notes(rates: ErrorRates) -> list[str]:
    """Return what a reader of the tables must know."""
    searched = [one.searched_images for one in rates.combinations.values()]
    notes = [
        f"error rates in percent, in brackets the interval ({INTERVALS}); `< x`: no error was seen, and "
        f"{RULE_OF_THREE:g} / n is what n trials rule out; a false alarm rate (FPIR) is for galleries of "
        f"{max(searched):.0f} images"
    ]
    if any(_unsupported(one) for one in rates.rows().values()):
        notes.append(
            f"`{ABSENT}`: fewer than {RULE_OF_THREE:g} / rate comparisons of two persons (FMR), or searches (FPIR), so "
            "that no threshold can be set for that rate"
        )
    return notes


def _unsupported(one: Verification) -> bool:
    return len(one.matching) < len(FALSE_MATCH_RATES) or len(one.identification) < len(FALSE_ALARM_RATES)


def write_curves(path: Path, rates: ErrorRates) -> Path:
    """Write the curves as JSON: (threshold, false rate, missed rate) by falling false rate."""
    write_json(
        path,
        {
            "definitions": DEFINITIONS,
            "columns": ["threshold", "false", "missed"],
            "fmr_fnmr": {name: _points(one.matching_curve) for name, one in rates.rows().items()},
            "fpir_fnir": {name: _points(one.identification_curve) for name, one in rates.rows().items()},
        },
    )
    return path


def _points(curve: Sequence[CurvePoint]) -> list[list[float]]:
    return [[point.threshold, point.false, point.missed] for point in curve]


def draw_error_curves(path: Path, rates: ErrorRates) -> Path:
    """Draw ROC and DET of verification and the DET of open-set identification; return `path`."""
    curves = rates.rows()
    matching = {name: one.matching_curve for name, one in curves.items()}
    figure = new_figure(13.0, 4.6)
    roc, det, search = figure.subplots(1, 3)
    _draw(roc, {name: [(p.false, 1 - p.missed) for p in curve] for name, curve in matching.items()})
    roc.set(title="ROC", xlabel="FMR", ylabel="1 - FNMR", xscale="log", ylim=(0, 1.02))
    _draw(det, {name: [(p.false, p.missed) for p in curve] for name, curve in matching.items()})
    det.set(title="DET, verification", xlabel="FMR", ylabel="FNMR", xscale="log", yscale="log")
    searches = {name: [(p.false, p.missed) for p in one.identification_curve] for name, one in curves.items()}
    _draw(search, searches)
    search.set(title="DET, open-set identification", xlabel="FPIR", ylabel="FNIR", xscale="log", yscale="log")
    figure.legend(*roc.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=8, frameon=False)
    return save_figure(figure, path)


def _draw(axes: Any, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    from matplotlib import colormaps

    for number, (name, points) in enumerate(curves.items()):
        # Logarithms have no place for 0: a curve ends where no error is left.
        kept = [(x, y) for x, y in points if x > 0 and y > 0]
        style = (
            {"color": "black", "linewidth": 2.0}
            if name == POOLED
            else {"color": colormaps["tab20"](number % 20), "linewidth": 1.1}
        )
        axes.plot([x for x, _ in kept], [y for _, y in kept], label=name, **style)
    axes.grid(alpha=0.3, which="both")
