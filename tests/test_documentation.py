"""Covers: docs, train, test, infer. Every documented command names files, options and keys that exist, every link leads
somewhere, and every chapter is in the navigation.
"""

import argparse
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from documented import DOCUMENTED, PAGES, split_command

from configs.load import load_experiment, parse_overrides
from solver.gallery.arguments import EXAMPLES

ROOT = Path(__file__).resolve().parent.parent


def script_parser(path: str) -> Callable[[list[str]], argparse.Namespace]:
    """Return the command line parser of a script or module that is run by its file."""
    spec = importlib.util.spec_from_file_location(f"documented_{path.replace('/', '_')[:-3]}", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if path == "infer.py":
        return lambda arguments: with_argv(module.parse_arguments, arguments)
    parse = getattr(module, "parse_arguments", None)
    return parse if parse is not None else lambda arguments: module._parser().parse_args(arguments)


def with_argv(parse: Callable[[], argparse.Namespace], arguments: list[str]) -> argparse.Namespace:
    """Call a parser that reads the process's own arguments."""
    before, sys.argv = sys.argv, ["infer.py", *arguments]
    try:
        return parse()
    finally:
        sys.argv = before


PARSED = {
    "train.py": "train.py",
    "test.py": "test.py",
    "infer.py": "infer.py",
    "datasets.check": "datasets/check.py",
    "datasets.split": "datasets/split.py",
    "datasets.synthetic": "datasets/synthetic/__main__.py",
    "solver.gallery": "solver/gallery/__main__.py",
}


FAMILY_OF_RUN = {"smoke": "irm", "quickstart-irm": "irm", "quickstart-irmpp": "irmpp"}
"""Runs of the pages whose options are another family's than ReID5o's."""


def check_overrides(target: str, parsed: argparse.Namespace) -> None:
    """Load the configuration with the options given: an unknown key or value raises."""
    overrides = parsed.overrides
    if target == "train.py":
        load_experiment(ROOT / str(parsed.config), overrides)
    elif any(not key.startswith("model.") for key in parse_overrides(overrides)):
        run = Path(str(getattr(parsed, "run", "") or "")).name
        family = FAMILY_OF_RUN.get(run)
        load_experiment(
            ROOT / (f"configs/{family}/{run.partition('-')[0]}.yaml" if family else "configs/reid5o/quickstart.yaml"),
            overrides,
        )


def module_file(target: str) -> Path:
    """Return the file of a script or of a module that is run with -m."""
    if target.endswith(".py"):
        return ROOT / target
    path = ROOT / target.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


TORCHRUN = re.compile(r"^ *(torchrun .*)$", re.MULTILINE)
"""A command of a page, or of a command line's examples."""
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES] + [EXAMPLES]
STARTED = [line for text in TEXTS for line in TORCHRUN.findall(text.replace("\\\n", " "))]


@pytest.mark.parametrize("command", STARTED)
def test_torchrun_hands_on_what_is_meant_for_the_command(command: str) -> None:
    """Where Python's parser looks at all words, torchrun takes `--run` for the beginning of an option of its own."""
    from torch.distributed.run import parse_args

    given = parse_args(shlex.split(command.replace("...", ""), comments=True)[1:])
    parsed = script_parser(PARSED[given.training_script])(list(given.training_script_args))
    assert (given.training_script == "solver.gallery") == given.module
    assert "--run" not in command or parsed.run


def test_some_commands_are_started_by_torchrun() -> None:
    assert len(STARTED) >= 3 and "solver.gallery" in " ".join(STARTED)


@pytest.mark.parametrize(("page", "command"), DOCUMENTED, ids=[f"{page}: {command}" for page, command in DOCUMENTED])
def test_documented_command(page: str, command: str) -> None:
    """The command's file exists and its own parser takes its arguments."""
    target, arguments = split_command(command)
    if target == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert all(word in targets for word in arguments if "=" not in word), command
        return
    if target == "pytest":
        return
    source = module_file(target)
    assert source.is_file(), f"{page}: {target} does not exist"
    if target in PARSED:
        parsed = script_parser(PARSED[target])(arguments)
        if hasattr(parsed, "overrides"):
            check_overrides(target, parsed)
    else:
        text = source.read_text(encoding="utf-8")
        unknown = [word for word in arguments if word.startswith("--") and f'"{word}"' not in text]
        assert not unknown, f"{page}: {target} has no {unknown}"


def test_commands_are_found() -> None:
    """The search for commands finds those that a reader needs first."""
    found = {command for _, command in DOCUMENTED}
    assert "python test.py --run runs/orbench" in found
    assert "make quickstart" in found and "make lint" in found
    assert len(found) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not lost


def test_paths_in_code_exist() -> None:
    """Files and folders of the repository that the pages name are there."""
    rooms = r"(?:configs|datasets|model|solver|utils|tests|benchmarks|docs)/[\w./-]*"
    lost = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in re.findall(rf"`({rooms})`", page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert not lost


def test_navigation_holds_every_chapter() -> None:
    """mkdocs.yml lists each page of docs/ once."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [path for entry in nav for path in entry.values()]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_readme_fits() -> None:
    """The README stays a page to start from."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
