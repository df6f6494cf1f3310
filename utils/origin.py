"""Where a result came from: the command, the day, the commit of the code."""

from __future__ import annotations

import datetime
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNKNOWN = "unknown"
GIT_SECONDS = 10


def command_line() -> str:
    """Return the command that this process was started by, quoted for a shell."""
    return shlex.join(["python", *sys.argv])


def now() -> str:
    """Return date and time in UTC to the second (ISO 8601)."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def code_commit(folder: Path = ROOT) -> str:
    """Return the commit that is checked out in `folder`, with `-dirty` behind it where files differ from it; `unknown`
    without git or outside a repository.
    """
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return UNKNOWN
    command = [git, "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN
