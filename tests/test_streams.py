"""Covers: utils/streams, utils/errors, utils/log. How a script ends: one line for every error, streams that are
closed or full, names that would steer a terminal, a log that cannot be written.
"""

import errno
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.errors import UserError, run_script
from utils.log import configure_logging
from utils.streams import visible

pytestmark = pytest.mark.usefixtures("keep_logging")

ROOT = Path(__file__).resolve().parent.parent


def ending(main: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        run_script(main)
    return int(caught.value.code or 0), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> None:
        raise error

    return main


def test_a_defect_is_one_line_that_asks_for_a_report_and_its_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    code, text = ending(lambda: 1 // 0, capsys)
    assert code == 2 and text.count("\n") == 1
    assert text.startswith("error: ZeroDivisionError: integer division") and "please report it" in text
    (kept,) = tmp_path.iterdir()
    assert str(kept) in text and "1 // 0" in kept.read_text() and "Traceback" not in text
    configure_logging(tmp_path / "train.log")
    code, text = ending(raising(KeyError()), capsys)
    assert code == 2 and f"the traceback in {tmp_path / 'train.log'}" in text and "error: KeyError; this" in text
    assert "Traceback" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "a/nnn"), "cannot use a/nnn: File name too long;"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "cannot use a: Permission denied;"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (MemoryError(), "out of memory"),
        (ValueError("embedded null byte"), "holds a NUL"),
        (UnicodeEncodeError("ascii", "aé", 1, 2, "x"), "ascii of this session has no 'é'; set PYTHONUTF8=1"),
        (UserError("a\nerror: all is well\x1b[2J"), r"error: a\nerror: all is well\x1b[2J"),
    ],
)
def test_each_error_is_one_line(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ending(raising(error), capsys)
    assert code == 2 and words in text and text.count("\n") == 1 and "report" not in text


def test_what_steers_a_terminal_is_escaped() -> None:
    plain = "Zoë 照片 a-b_c (1).jpg 👍"
    assert visible(plain) is plain
    assert visible("a\x1b[31m\x07b\r\n\t\x9b\udcff\u202e\u2028") == r"a\x1b[31m\x07b\r\n\t\x9b\udcff\u202e\u2028"
    assert visible("a\n\tb", keep="\n\t") == "a\n\tb"


def test_names_in_the_log_and_the_output_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(tmp_path / "train.log")

    def main() -> None:
        logging.getLogger("x").warning("skipped %s", "a\x1b[2J\nerror: forged")
        print("\x1b]0;title\x07 done\nnext")

    with pytest.raises(SystemExit):
        run_script(main)
    shown = capsys.readouterr()
    assert shown.out == "\\x1b]0;title\\x07 done\nnext\n"
    for text in (shown.err, (tmp_path / "train.log").read_text()):
        assert "\x1b" not in text and "\nerror:" not in text and "\n  error: forged" in text


def run(code: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"from utils.errors import run_script\ndef main():\n    {code}\nrun_script(main)\n"
    command = ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script]
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)


@pytest.mark.parametrize("printed", ["'x'", "'x' * 100000"])
def test_streams_that_are_closed_or_full(printed: str) -> None:
    code = f"print({printed})"
    assert (run(code, ">&-").returncode, run(code, ">&-").stderr) == (0, "")
    assert run(code, "2>&-").returncode == 0
    assert run(code, "<&- >&- 2>&-").returncode == 0
    full = run(code, "> /dev/full")
    assert full.returncode == 2 and full.stderr.startswith("error: no space left") and full.stderr.count("\n") == 1
    assert run("raise ValueError(1)", "2> /dev/full").returncode == 2
    assert run(code, "| true").stderr == ""


def test_a_closed_stream_s_number_is_given_to_no_file(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    code = f"import os; stream = open({str(target)!r}, 'wb'); os.write(1, b'text of a library'); stream.close()"
    assert run(code, ">&-").returncode == 0 and target.read_bytes() == b""


def test_an_ascii_terminal_shows_escapes() -> None:
    found = run(r"print('Zo\xeb')", "", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (found.returncode, found.stdout, found.stderr) == (0, "Zo\\xeb\n", "")


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "train.log").symlink_to("/dev/full")
    configure_logging(tmp_path / "train.log")
    for number in range(3):
        logging.getLogger("x").info("line %d", number)
    configure_logging()
    text = capsys.readouterr().err
    assert text.count("cannot be written") == 1 and "No space left" in text and "Traceback" not in text
    assert all(f"line {number}" in text for number in range(3))
