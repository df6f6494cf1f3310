"""Evaluate a trained model: the benchmark table, results.json, results.csv and per-query results."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from utils.errors import run_script
from utils.processes import heard_by_others, is_leader
from utils.threads import configure_threads

EXAMPLES = """examples:
  python test.py --run runs/quickstart
  python test.py --run runs/orbench --checkpoint last --output results/last eval.precision=bf16
  python test.py --config configs.yaml --checkpoint best.pth data.root=/data model.vision_heads=8
  python test.py --run runs/regdb --trials 1-10
  torchrun --nproc-per-node 4 -- test.py --run runs/orbench
  python test.py --compare runs/a/results.json runs/b/results.json
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Exits with code 2 for a wrong one."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=style)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", default="", metavar="DIR", help="run directory made by train.py")
    flat = "a configuration of ours, or the flat configs.yaml of a released checkpoint"
    what.add_argument("--config", default="", metavar="FILE", help=flat)
    what.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="list what changed from one results.json, or run, to another"
    )
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="best|last|FILE",
        help="with --run: default best, else last; with --config: a file",
    )
    folder = "folder of the result files; default the folder of the checkpoint"
    parser.add_argument("--output", default="", metavar="DIR", help=folder)
    parser.add_argument("--export", default="", metavar="FILE.npz", help="also write the features")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    series = "with --run: the runs of these trials in DIR, and their mean; also 1,2"
    parser.add_argument("--trials", metavar="1-10", help=series)
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="options that replace the configuration's"
    )
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.config and not parsed.checkpoint:
        parser.error("--config needs --checkpoint FILE")
    if parsed.export and parsed.trials is not None:
        parser.error("--export writes the features of one evaluation; leave out --trials")
    given = (parsed.checkpoint, parsed.output, parsed.export, parsed.overrides, parsed.trials)
    if parsed.compare and any(given):
        parser.error("--compare reads two results; leave out --checkpoint, --output, --export, --trials and key=value")
    if parsed.trials is not None and not parsed.run:
        parser.error("--trials needs --run DIR, the folder that train.py --trials made")
    if parsed.trials is not None and any(text.startswith("data.trial=") for text in parsed.overrides):
        parser.error("give --trials or data.trial=N, not both")
    return parsed


@heard_by_others()
def main() -> int:
    """Run the script."""
    parsed = parse_arguments(sys.argv[1:])
    configure_threads()
    if text := evaluated(parsed):
        print(text)
    return 0


def evaluated(parsed: argparse.Namespace) -> str:
    """Evaluate, or compare; return what is to be printed, nothing in all processes but the first."""
    if parsed.compare:
        from solver.reports.results import compare_files

        return compare_files(*parsed.compare) if is_leader() else ""
    shared = {name: vars(parsed)[name] for name in ("checkpoint", "output", "device", "overrides")}
    if is_leader():
        from solver.run_names import begin, begin_series

        if parsed.trials is not None:
            begin_series("test.py", parsed.run, parsed.output, parsed.device)
        else:
            begin("test.py", parsed.run, parsed.config, **shared)
    # torch is imported from here on: what was given is known to be right, the threads' waiting policy is set.
    from solver.commands.evaluate import run_test, together
    from solver.commands.trials import evaluate_trials

    command = partial(run_test, run=parsed.run, config=parsed.config, export=parsed.export, **shared)
    if parsed.trials is not None:
        command = partial(evaluate_trials, run=parsed.run, trials=parsed.trials, **shared)
    return together(parsed.device, command)


if __name__ == "__main__":
    run_script(main)
