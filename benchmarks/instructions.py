"""What instructions are worth: a run evaluated with the right ones, those of other persons, and none.

    python -m benchmarks.instructions runs/quickstart-irm
    python -m benchmarks.instructions runs/quickstart-irmpp --protocol task-free

Printed is the mAP of each list of `--protocol` in which right is the outfit asked for (`... target`), and by how much
the right instruction beats that of another person, relative; exit code 1 where that is less than `--least` percent. The
three evaluations stay in RUN/instructions.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from prettytable import PrettyTable

from utils.errors import UserError, run_script
from utils.threads import configure_threads

GIVEN = ("right", "shuffled", "none")
"""Values of instruction.given."""


def measured(run: Path, given: str, protocol: str, overrides: list[str]) -> list[tuple[str, float]]:
    """Evaluate the run; return (list, mAP in percent) of the protocol, in its order. Raises UserError for one without
    lists in which right is the outfit.
    """
    # After configure_threads: torch is imported here.
    from solver.commands.evaluate import run_test

    output = run / "instructions" / given
    options = [f"data.protocols=[{protocol}]", f"instruction.given={given}", *overrides]
    run_test(run=str(run), config="", checkpoint="", output=str(output), device="auto", overrides=options)
    rows = json.loads((output / "results.json").read_text(encoding="utf-8"))["rows"]
    # Without the stamp of what was given.
    found = [(row["task"].partition(" [")[0], row["mAP"]) for row in rows]
    asked = [(name, value) for name, value in found if name.endswith("target")]
    if not asked:
        raise UserError(
            f"--protocol {protocol} of {run} has no list whose name ends in `target`; give one in which right is the "
            "outfit asked for, for instance task-free of IRM++"
        )
    return asked


def main() -> int:
    """Evaluate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--protocol", default="lists-target", help="one with such lists")
    parser.add_argument("--least", type=float, default=20.0, metavar="PERCENT", help="gain wanted of every list (20)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parsed = parser.parse_intermixed_args()
    configure_threads()
    found = {given: measured(parsed.run, given, parsed.protocol, parsed.overrides) for given in GIVEN}
    table = PrettyTable(["mAP", "right", "another person's", "none", "gain"])
    table.align["mAP"] = "l"
    gains = []
    for (name, right), (_, shuffled), (_, none) in zip(*found.values(), strict=True):
        gains.append(100 * (right / shuffled - 1) if shuffled else math.inf if right else 0.0)
        table.add_row([name, f"{right:.2f}", f"{shuffled:.2f}", f"{none:.2f}", f"{gains[-1]:.0f} %"])
    print(table)
    print(f"smallest gain {min(gains):.1f} % relative, wanted at least {parsed.least:g} %")
    return 0 if min(gains) >= parsed.least else 1


if __name__ == "__main__":
    run_script(main)
