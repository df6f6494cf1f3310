"""Compare the code with golden files: `python tests/parity.py DIR` (exit code 1 when any fails or none was found)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "parity"))

import parity_data
import parity_irm_evaluation
import parity_irm_model
import parity_irm_schedule
import parity_irm_training
import parity_metrics
import parity_model
import parity_samplers
import parity_text
import parity_training
import parity_vireid
import torch
from parity_common import Kind

KINDS: tuple[Kind, ...] = (
    *parity_model.KINDS,
    *parity_training.KINDS,
    *parity_metrics.KINDS,
    *parity_data.KINDS,
    *parity_text.KINDS,
    *parity_vireid.KINDS,
    *parity_samplers.KINDS,
    *parity_irm_model.KINDS,
    *parity_irm_training.KINDS,
    *parity_irm_evaluation.KINDS,
    *parity_irm_schedule.KINDS,
)
IGNORED = ("README.md", "vocab.txt")


def golden_files(root: Path) -> list[tuple[Path, Kind | None]]:
    """Return every file below `root` with its kind (None = unknown), sorted; supporting files left out."""
    found: list[tuple[Path, Kind | None]] = []
    for path in sorted(entry for entry in root.rglob("*") if entry.is_file()):
        if path.name in IGNORED:
            continue
        kind = next((candidate for candidate in KINDS if candidate.matches(path)), None)
        if kind is None or kind.check is not None:
            found.append((path, kind))
    return found


def check_directory(root: Path) -> int:
    """Print one line per compared quantity; return 0 when all are ok and at least one was compared."""
    compared = failed = 0
    line = "{:<44} {:<52} {:>10} {:>10}  {}".format
    print(line("file", "quantity", "max error", "tolerance", "ok"))
    for path, kind in golden_files(root):
        name = str(path.relative_to(root))
        if kind is None:
            failed += 1
            print(line(name, "unknown kind of golden file", "", "", "FAILED"))
            continue
        assert kind.check is not None, "supporting files are no items"
        rows = kind.check(path)
        if not rows:
            print(line(name, f"{kind.name}: a file it needs is missing", "", "", "skipped"))
        for row in rows:
            compared += 1
            failed += not row.ok
            print(line(name, row.quantity, f"{row.error:.3g}", f"{row.tolerance:.3g}", "ok" if row.ok else "FAILED"))
    print(f"{compared} compared, {failed} failed")
    return 1 if failed or not compared else 0


def main() -> int:
    """Run the command line."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python tests/parity.py DIRECTORY-OF-GOLDEN-FILES", file=sys.stderr)
        return 2
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    return check_directory(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
