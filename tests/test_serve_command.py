"""Covers: serve/command. infer.py --serve as a user starts it: an address, what is wrong with it, and its end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import exit_code, global_state_kept
from small_run import write_run
from tiny_orbench import write_orbench

import serve.command
from serve.command import bound, is_loopback
from solver.search.arguments import parse_options
from utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    return write_run(place / "small", write_orbench(place / "data", identities=2, test_identities=2, images=1))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    capfd.readouterr()
    with global_state_kept():
        code = exit_code("infer", *arguments)
    error = capfd.readouterr().err
    assert code == 2 and "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_a_port_in_use_and_an_address_of_another_machine_are_refused(
    run: Path, taken: int, capfd: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capfd, "--run", run, "--serve", "--port", taken)
    assert sentence == f"error: --port {taken} of 127.0.0.1 is in use; end what uses it, or give another --port"
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(UserError, match=f"--host {host}"):
            bound(host, 0)
    with bound("127.0.0.1", 0) as one, pytest.raises(UserError, match="in use"):
        bound("127.0.0.1", one.getsockname()[1])


def test_a_missing_package_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ordinary = importlib.util.find_spec
    monkeypatch.setattr(serve.command, "find_spec", lambda name: None if "multipart" in name else ordinary(name))
    sentence = refused(capfd, "--run", run, "--serve")
    assert sentence.startswith("error: --serve needs python-multipart,") and "requirements-serve.txt" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--serve", "--text", "x"], "leave out a query"),
        (["--serve", "--task", "NIR", "--output", "a.png"], "leave out --output, --task"),
        (["--serve", "--calibrate"], "--calibrate"),
        (["--serve", "--index", "3"], "--index N"),
        (["--serve", "--instruction", "x", "--error-rate", "0.1"], "--instruction, --error-rate"),
        (["--serve", "--port", "70000"], "from 0 to 65535"),
        (["--text", "x", "--port", "7860"], "--serve"),
        (["--text", "x", "--host", "0.0.0.0"], "--serve"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", "--run", "R", *arguments])
    with pytest.raises(SystemExit) as caught:
        parse_options("", "")
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_the_page_is_for_this_machine_unless_an_address_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["infer.py", "--run", "R", "--serve"])
    options = parse_options("", "")
    assert (options.host, options.port) == ("127.0.0.1", 7860)
    loopback = {host: is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "LocalHost", "0.0.0.0", "box")}
    assert [host for host, alone in loopback.items() if alone] == ["127.0.0.1", "127.8.8.8", "::1", "LocalHost"]


def test_what_is_wrong_with_the_gallery_or_the_thresholds_ends_it(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask: list[Any] = ["--run", run, "--serve", "--port", 0, "--device", "cpu", "--gallery-cache", tmp_path / "cache"]
    assert "holds no image" in refused(capfd, *ask, "--gallery", tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_text("no image")
    assert "photos/0.png" in refused(capfd, *ask, "--gallery", tmp_path / "photos", "data.workers=0")
    thresholds = run / "best.calibration.json"
    thresholds.write_text("{}")
    try:
        assert "best.calibration.json is not a calibration" in refused(capfd, *ask, "--gallery", tmp_path / "photos")
    finally:
        thresholds.unlink()
    assert "--gallery-instruction same" in refused(capfd, *ask, "--gallery-instruction", "same")


def test_it_serves_until_it_is_interrupted(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    states: list[Any] = []

    def user() -> None:
        """Wait for the gallery, look at the page, press Ctrl-C."""
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end and not (states and states[-1]["status"] == "ready"):
                time.sleep(0.05)
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state") as answer,
                ):
                    states.append(json.load(answer))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=user)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    ask: list[Any] = ["--run", run, "--serve", "--port", port, "--device", "cpu", "data.workers=0"]
    with global_state_kept():
        code = exit_code("infer", *ask, "--gallery-cache", tmp_path / "cache")
    thread.join(60)
    said = capfd.readouterr()
    assert code == 0 and said.out == "stopped\n" and "Traceback" not in said.err
    assert f"the page: http://127.0.0.1:{port}/" in said.err and "whoever reaches" not in said.err
    assert states[-1]["gallery"]["images"] == 2 and signal.getsignal(signal.SIGINT) is before
    with bound("127.0.0.1", port):
        pass
