"""Train a model from a configuration file; the run directory holds everything about the run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.errors import UserError, run_script
from utils.processes import heard_by_others, is_leader, started_together
from utils.threads import configure_threads

EXAMPLES = """examples:
  python train.py --config configs/reid5o/quickstart.yaml
  python train.py --config configs/reid5o/orbench.yaml --device cuda:1 data.root=/data train.batch_size=32
  python train.py --config configs/reid5o/orbench.yaml name=finetune train.init_from=runs/orbench optimizer.lr=2e-6
  python train.py --config configs/vireid/regdb.yaml --trials 1-10 data.root=/data
  python train.py --config configs/reid5o/orbench.yaml --resume
  torchrun --nproc-per-node 2 train.py --config configs/reid5o/orbench.yaml --resume
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line. Exits with code 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="configuration, for instance configs/reid5o/orbench.yaml"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the previous run in output_dir/name")
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on where the run in output_dir/name stopped, bit for bit on a CPU; start it when there is none. "
        "SIGTERM, SIGINT and SIGUSR1 finish the step, save the state and exit with 128 + the signal's number",
    )
    parser.add_argument(
        "--trials",
        metavar="1-10",
        help="train a model for each of these trials (RegDB) into output_dir/name/trial-NN; also 1,2",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="options that replace those of the file")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.trials is not None and any(text.startswith("data.trial=") for text in parsed.overrides):
        parser.error("give --trials or data.trial=N, not both")
    return parsed


@heard_by_others()
def main() -> int:
    """Run the script."""
    parsed = parse_arguments(sys.argv[1:])
    configure_threads()
    from configs.load import load_experiment
    from solver.run_directory import check_start
    from solver.run_names import say_start
    from utils.device_words import check_device

    check_device(parsed.device)
    config = load_experiment(parsed.config, parsed.overrides)
    directory = Path(config.output_dir) / config.name
    if parsed.trials is not None and started_together() > 1:
        raise UserError("--trials trains one model after the other; start torchrun for each trial, with data.trial=N")
    if is_leader():
        if parsed.trials is None:
            check_start(directory, overwrite=parsed.overwrite, resume=parsed.resume)
        say_start("train.py", parsed.config, directory)
    how = {"device": parsed.device, "overwrite": parsed.overwrite, "resume": parsed.resume}
    # torch is imported from here on: the configuration is right and the threads' waiting policy is set.
    if parsed.trials is not None:
        from solver.commands.trials import train_trials

        print(train_trials(config, parsed.trials, **how))
        return 0
    from solver.commands.train import run_training

    text = run_training(config, **how)
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    run_script(main)
