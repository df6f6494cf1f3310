"""MATLAB files (level 5) through scipy, an optional library; numbers, texts and cells only, nothing in a file is
run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.errors import UserError


def load_matlab(path: Path) -> dict[str, Any]:
    """Return the variables of a file by name. Raises UserError without scipy, and for a file that cannot be read."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading it needs scipy; pip install scipy") from error
    try:
        content = loadmat(path)
    # loadmat has no error of its own: what it raises for a damaged file depends on where the file breaks.
    except Exception as error:
        raise UserError(
            f"cannot read {path} as a MATLAB file: {error}; copy it again from the original release"
        ) from error
    return {name: value for name, value in content.items() if not name.startswith("__")}
