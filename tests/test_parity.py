"""Covers: model, solver, datasets, utils. The goldens kept in the repository, through the same code as `python
tests/parity.py`.
"""

from __future__ import annotations

from pathlib import Path

import parity
import pytest

GOLDEN = Path(__file__).parent / "golden"
FILES = [(path, kind) for path, kind in parity.golden_files(GOLDEN)]


def test_goldens_are_present() -> None:
    assert len([kind for _, kind in FILES if kind is not None]) >= 10


@pytest.mark.parametrize(("path", "kind"), FILES, ids=[str(path.relative_to(GOLDEN)) for path, _ in FILES])
def test_golden(path: Path, kind: parity.Kind | None) -> None:
    assert kind is not None, f"{path.name} is of no known kind"
    assert kind.check is not None
    rows = kind.check(path)
    assert rows
    assert not [row for row in rows if not row.ok]


def test_an_unknown_kind_and_an_empty_folder_fail(tmp_path: Path) -> None:
    assert parity.check_directory(tmp_path) == 1
    (tmp_path / "surprise_1.npz").write_bytes(b"")
    assert parity.check_directory(tmp_path) == 1
