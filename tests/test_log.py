"""Covers: utils/log, utils/progress. The log of a run and progress bars: what reaches the file, the terminal and
TensorBoard.
"""

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils import log
from utils.log import MetricsWriter, configure_logging, library_versions, log_short
from utils.progress import clock, progress_bar

pytestmark = pytest.mark.usefixtures("keep_logging")


def test_numbers_of_a_step_reach_both_files(tmp_path: Path) -> None:
    steps = [{"total": 2.5, "loss/id": 0.125}, {"total": 1.5, "loss/id": 0.0625}]
    (tmp_path / "metrics.jsonl").write_text("of an earlier run\n")
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "board") as writer:
        for step, values in enumerate(steps, start=1):
            writer.write(step, values)
        writer.flush()
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"step": 1, **steps[0]}, {"step": 2, **steps[1]}]
        with pytest.raises(ValueError):
            writer.write(3, {"total": float("nan")})
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name in steps[0]:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (step, values[name]) for step, values in enumerate(steps, start=1)
        ]


def test_records_and_warnings_reach_terminal_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.log"
    path.write_text("before\n")
    configure_logging(path)
    logging.getLogger("anything").info("hello %d", 5)
    logging.getLogger("anything").debug("not this")
    warnings.warn("look out", UserWarning, stacklevel=1)
    for text in (path.read_text(), "before\n" + capsys.readouterr().err):
        first, second, third, *_ = text.splitlines()
        assert first == "before" and second[8:] == " hello 5" and second[2] == second[5] == ":"
        assert third.endswith("UserWarning: look out") and "not this" not in text


def test_versions_are_those_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LIBRARIES", ("torch", "numpy", "no-such-library"))
    assert library_versions() == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__.split("+")[0],
        "numpy": numpy.__version__,
        "no-such-library": "absent",
    }


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_for_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(progress_bar("abc", total=3, description="reading", unit="letter")) == ["a", "b", "c"]
    printed = capsys.readouterr()
    assert printed.out == "" and ("reading" in printed.err) is terminal


def test_the_terminal_has_the_short_line_and_the_file_the_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(tmp_path / "train.log")
    log_short("step 1: total 3", "step 1: loss/id 1 loss/triplet 2 total 3")
    logging.getLogger("x").info("plain %d", 7)
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == ["step 1: total 3", "plain 7"]
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[9:] for line in lines] == ["step 1: loss/id 1 loss/triplet 2 total 3", "plain 7"]


def test_a_line_does_not_run_into_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the bar is cleared for the line, which begins at the left, and drawn again behind it."""
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    configure_logging()
    with progress_bar(None, 4, "working") as bar:
        bar.update(1)
        bar.refresh()
        before = len(screen.getvalue())
        logging.getLogger("x").info("a line")
        after = screen.getvalue()[before:]
    line = next(part for part in after.split("\n") if part.endswith("a line"))
    # What stands in the terminal's line is what follows the last carriage return.
    assert line.rsplit("\r", 1)[-1].endswith(" a line") and "working" not in line.rsplit("\r", 1)[-1]
    assert "\r" in line and "working" in after.split("a line\n", 1)[1]


def test_clock_by_hand() -> None:
    assert [clock(value) for value in (0, 59.6, 61, 3599, 3723)] == ["0:00", "1:00", "1:01", "59:59", "1:02:03"]


def test_what_was_written_behind_an_end_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = tmp_path / "metrics.jsonl", tmp_path / "board"
    with MetricsWriter(*files) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, {"total": float(step)})
            if step == 2:
                ends = writer.ends()
    for step, last in ((3, 9.0), (3, 7.0)):
        with MetricsWriter(*files, ends) as writer:
            writer.write(step, {"total": last})
    assert [json.loads(line)["total"] for line in files[0].read_text().splitlines()] == [1.0, 2.0, 7.0]
    events = EventAccumulator(str(files[1]), purge_orphaned_data=False).Reload().Scalars("total")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 2.0), (3, 7.0)]
    assert not [record for record in caplog.records if not record.name.startswith("tensorboard")]
    files[0].write_text("")
    with MetricsWriter(*files, ends):
        assert f"metrics.jsonl has lost {ends['metrics.jsonl']} bytes" in caplog.text
