"""Covers: solver/reports/figures. Figures: what is read, what is drawn, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scripts import module_exit_code

from configs.vocabulary import ORBENCH_KEYS, combination_name
from solver.reports import figures
from solver.reports.figures import draw_combinations, draw_curves, read_metrics, running_mean
from utils.errors import UserError

pytestmark = pytest.mark.figures

FOUR = (0xB2, 0x79, 0xA2)
"""Colour of four modalities."""


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int64)


def area(path: Path, color: tuple[int, int, int]) -> int:
    """Number of pixels of exactly that colour."""
    return int((pixels(path) == np.array(color)).all(axis=2).sum())


def write_results(path: Path, four: float) -> Path:
    tasks = [combination_name(key) for key in ORBENCH_KEYS]
    rows = [
        {"task": task, "mAP": four if task.count("+") == 3 else 30.0, "R1": 45.0, "queries": 5, "gallery": 9}
        for task in tasks
    ]
    averages = [
        {"task": f"{name}_AVER", "mAP": four if name == "FOUR" else 30.0, "R1": 45.0}
        for name in ("ONE", "TWO", "THREE", "FOUR")
    ]
    path.write_text(
        json.dumps({"rows": rows, "averages": averages, "split": "test", "selected_on": "last"}), encoding="utf-8"
    )
    return path


def write_metrics(run: Path, steps: int = 12, evaluated: bool = True) -> None:
    lines = [
        {
            "step": step,
            "loss/id": 2.0 / step,
            "loss/mm_sdm/one": 1.0,
            "total": 1.0 + 2.0 / step,
            "lr": 0.1,
            "epoch": 1,
            "batch_rank1/four": 50.0,
        }
        for step in range(1, steps + 1)
    ]
    if evaluated:
        lines.append({"step": steps, "epoch": 1, "val/ONE_AVER/mAP": 12.0, "val/ONE_AVER/R1": 20.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_running_mean_is_the_mean_of_the_last_points() -> None:
    values = np.random.default_rng(0).normal(size=23)
    for window in (1, 4, 40):
        expected = [values[max(0, index + 1 - window) : index + 1].mean() for index in range(len(values))]
        assert running_mean(list(values), window) == pytest.approx(expected)


def test_read_metrics_joins_lines_by_name(tmp_path: Path) -> None:
    write_metrics(tmp_path, steps=3)
    series = read_metrics(tmp_path / "metrics.jsonl")
    assert series["loss/id"] == ([1, 2, 3], [2.0, 1.0, pytest.approx(2 / 3)])
    assert series["val/ONE_AVER/mAP"] == ([3], [12.0])


def test_unfinished_last_line_is_left_out_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "total": 2.0}\n{"step": 2, "tot', encoding="utf-8")
    assert read_metrics(file) == {"total": ([1], [2.0])}
    for damaged in (
        '{"step": 1}\nnonsense\n',
        '{"total": 1}\n',
        "[1]\n",
        '{"step": 1, "total": "x"}\n',
        '{"step": 1, "total": 1\udcff}\n',
    ):
        file.write_text(damaged, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(UserError, match="line [12] "):
            read_metrics(file)


@pytest.mark.parametrize("evaluated", [True, False])
def test_curves_are_drawn(tmp_path: Path, evaluated: bool) -> None:
    write_metrics(tmp_path, evaluated=evaluated)
    image = pixels(draw_curves(tmp_path))
    height, width, _ = image.shape
    for panel in range(3):
        part = image[:, panel * width // 3 : (panel + 1) * width // 3]
        colored = (part.max(axis=2) - part.min(axis=2)) > 60
        assert colored.sum() > 20, f"panel {panel} has no line"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == ["curves.png"]


def test_the_legend_lies_below_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metrics(tmp_path)
    figure = figures.new_figure(13.0, 4.5)
    monkeypatch.setattr(figures, "new_figure", lambda *size: figure)
    draw_curves(tmp_path)
    figure.canvas.draw()
    for axes in figure.axes:
        legend, plot = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y1 < plot.y0 and legend.y0 >= 0
        label = axes.xaxis.label.get_window_extent()
        assert legend.y1 <= label.y0 or legend.x0 > label.x1 or legend.x1 < label.x0


def test_curves_without_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metrics.jsonl"):
        draw_curves(tmp_path)


def test_bars_grow_with_the_metric(tmp_path: Path) -> None:
    areas = {
        value: area(draw_combinations(write_results(tmp_path / "r.json", value), tmp_path / f"{value}.png"), FOUR)
        for value in (20.0, 40.0, 80.0)
    }
    # Grid lines and marks cover a little of the bars.
    assert areas[40.0] / areas[20.0] == pytest.approx(2, rel=0.1)
    assert areas[80.0] / areas[20.0] == pytest.approx(4, rel=0.1)


def test_lists_without_a_number_are_left_out_and_an_empty_result_is_refused(tmp_path: Path) -> None:
    file = write_results(tmp_path / "r.json", 50.0)
    whole = pixels(draw_combinations(file, tmp_path / "whole.png"))
    document = json.loads(file.read_text())
    for row in document["rows"][4:]:
        row["mAP"] = row["R1"] = None
    file.write_text(json.dumps(document))
    assert pixels(draw_combinations(file, tmp_path / "part.png")).shape[0] < whole.shape[0]
    document["rows"] = document["rows"][4:]
    file.write_text(json.dumps(document))
    with pytest.raises(UserError, match="nothing to draw"):
        draw_combinations(file, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_command_draws_what_the_run_has(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_metrics(tmp_path)
    write_results(tmp_path / "results.json", 50.0)
    assert module_exit_code("solver.reports.figures", tmp_path) == 0
    assert capfd.readouterr().out.split() == [
        "written:",
        str(tmp_path / "curves.png"),
        "written:",
        str(tmp_path / "combinations.png"),
    ]
    assert Image.open(tmp_path / "combinations.png").format == "PNG"
    (tmp_path / "empty").mkdir()
    assert module_exit_code("solver.reports.figures", tmp_path / "empty") == 2
    assert capfd.readouterr().err.startswith("error: ")
