"""Pictures of a run: curves of its training, and a comparison of the query combinations.

`python -m solver.reports.figures RUN` draws what the run directory has the numbers for.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.vocabulary import GROUP_NAMES
from solver.reports.results import read_results
from solver.run_directory import COMBINATIONS_FILE, CURVES_FILE, METRICS_FILE, RESULTS_FILE
from utils.errors import UserError, run_script
from utils.files import atomic_path, ordinary

logger = logging.getLogger(__name__)

Series = tuple[list[int], list[float]]
"""Steps and values."""

GROUP_COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")
SECOND_COLOR = "#9d9d9d"
LEGEND_COLUMNS, LEGEND_LINE = 2, 0.16
"""Inches of a line of a legend."""
SMOOTHING = 50
"""A curve of training is drawn as the mean of about this share-th of its points."""


def read_metrics(path: Path) -> dict[str, Series]:
    """Return steps and values of every name in a metrics.jsonl. Raises UserError for a line that is none.

    A last line without an end (the run was killed while it was written) is left out.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}; it is written by train.py")
    series: dict[str, Series] = {}
    lines = ordinary(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = {name: float(value) for name, value in json.loads(line).items()}
            step = int(entry.pop("step"))
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not a line of metrics; train again or remove it") from error
        for name, value in entry.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return series


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return for each point the mean of the last `window` points up to it."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def draw_curves(directory: Path) -> Path:
    """Draw losses, learning rate and evaluations of a run into curves.png; return its path. Raises UserError."""
    series = read_metrics(directory / METRICS_FILE)
    losses = {name: values for name, values in series.items() if name == "total" or name.startswith("loss/")}
    evaluated = {name: values for name, values in series.items() if name.endswith("_AVER/mAP")}
    ranks = {name: values for name, values in series.items() if name.startswith("batch_")}
    shown = [losses, evaluated or ranks]
    figure = new_figure(13.0, 4.0 + LEGEND_LINE * max(-(-len(names) // LEGEND_COLUMNS) for names in shown))
    left, middle, right = figure.subplots(1, 3)
    _draw_smooth(left, losses)
    left.set(
        title="training loss (weighted terms, running mean)",
        xlabel="step",
        yscale="log" if _positive(losses) else "linear",
    )
    _draw_smooth(middle, {name: series[name] for name in ("lr",) if name in series}, window=1)
    middle.set(title="learning rate", xlabel="step")
    if evaluated:
        for name, (steps, values) in evaluated.items():
            right.plot(steps, values, marker="o", markersize=3, label=name.removesuffix("/mAP"))
        right.set(title="evaluations during training: mAP (%)", xlabel="step")
    else:
        _draw_smooth(right, ranks)
        right.set(title="rank-1 inside the batch (%, running mean)", xlabel="step")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            _legend_below(axes)
    return save_figure(figure, directory / CURVES_FILE)


def has_combinations(document: Mapping[str, Any]) -> bool:
    """Return whether a results.json has averages by the number of mixed modalities, which the picture shows."""
    return any(row.get("task") in GROUP_NAMES.values() for row in document["averages"])


def draw_combinations(results: Path, output: Path) -> Path:
    """Draw the groups and every query list of a results.json as bars of mAP and rank-1; return `output`. Raises
    UserError.
    """
    document = read_results(results)
    rows, averages = (
        [row for row in document[part] if row.get("mAP") is not None and "stamp" not in row]
        for part in ("rows", "averages")
    )
    if not rows:
        raise UserError(f"{results} has no query list with a number; nothing to draw")
    figure = new_figure(13.0, max(4.0, 1.2 + 0.24 * len(rows)))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.6))
    _draw_groups(left, averages)
    _draw_lists(right, rows)
    figure.suptitle(
        f"query combinations, {document.get('split', '')} split, selected on {document.get('selected_on', 'unknown')}",
        fontsize=10,
    )
    return save_figure(figure, output)


def _draw_groups(axes: Any, averages: Sequence[Mapping[str, Any]]) -> None:
    positions = range(len(averages))
    for offset, metric, alpha in ((-0.2, "mAP", 1.0), (0.2, "R1", 0.45)):
        values = [row[metric] for row in averages]
        bars = axes.bar(
            [position + offset for position in positions],
            values,
            width=0.4,
            alpha=alpha,
            color=[_group_color(str(row["task"])) for row in averages],
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(list(positions), [str(row["task"]).removesuffix("_AVER") for row in averages], fontsize=8)
    axes.set(title="means by number of modalities (%), rank-1 paler", ylim=(0, 108))
    axes.grid(axis="y", alpha=0.3)


def _draw_lists(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    positions = range(len(rows))
    colors = [GROUP_COLORS[min(str(row["task"]).count("+"), 3)] for row in rows]
    axes.barh(list(positions), [row["mAP"] for row in rows], height=0.75, color=colors)
    axes.plot(
        [row["R1"] for row in rows],
        list(positions),
        linestyle="none",
        marker="|",
        markersize=8,
        markeredgewidth=2,
        color="black",
    )
    axes.set_yticks(list(positions), [str(row["task"]) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(title="every query list (%): bar mAP, mark rank-1", xlim=(0, 100))
    axes.grid(axis="x", alpha=0.3)


def _legend_below(axes: Any) -> None:
    """Place the legend under the axis, where it covers nothing."""
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=LEGEND_COLUMNS, frameon=False)


def _group_color(task: str) -> str:
    names = list(GROUP_NAMES.values())
    return GROUP_COLORS[names.index(task)] if task in names else SECOND_COLOR


def _draw_smooth(axes: Any, series: Mapping[str, Series], window: int | None = None) -> None:
    for name, (steps, values) in series.items():
        width = window or max(1, len(values) // SMOOTHING)
        axes.plot(
            steps,
            running_mean(values, width),
            linewidth=1.8 if name == "total" else 1.0,
            label=name.removeprefix("loss/"),
        )


def _positive(series: Mapping[str, Series]) -> bool:
    return bool(series) and all(value > 0 for _, values in series.values() for value in values)


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of so many inches."""
    # Without pyplot there is no window system to start and no global state to clean up.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all; return `path`."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def main() -> int:
    """Draw the figures of a run directory."""
    parser = argparse.ArgumentParser(prog="python -m solver.reports.figures", description=main.__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="run directory made by train.py (and, for the combinations, test.py)"
    )
    directory = Path(parser.parse_args().run)
    drawn = [draw_curves(directory)] if (directory / METRICS_FILE).is_file() else []
    if (directory / RESULTS_FILE).is_file() and has_combinations(read_results(directory / RESULTS_FILE)):
        drawn.append(draw_combinations(directory / RESULTS_FILE, directory / COMBINATIONS_FILE))
    if not drawn:
        raise UserError(
            f"{directory} has neither {METRICS_FILE} nor a {RESULTS_FILE} of query combinations; give a run directory"
        )
    print("\n".join(f"written: {path}" for path in drawn))
    return 0


if __name__ == "__main__":
    run_script(main)
