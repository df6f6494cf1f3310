"""Covers: utils, configs, datasets, model, solver. The house, read off the syntax trees: what neither ruff nor mypy
says, every rule with all its offenders at once.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("utils", "configs", "datasets", "model", "solver", "serve")
SCRIPTS = ("train.py", "test.py", "infer.py", "anyreid.py")
ABOVE = ("benchmarks", "tests")
REEXPORTS = {"solver/losses/__init__.py"}
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_TEST, LONGEST_SCRIPT = 60, 500, 600, 100
AFTER_3_10 = {"tomllib", "wsgiref.types"}
NAMES_AFTER_3_10 = {
    "ExceptionGroup",
    "BaseExceptionGroup",
    "Self",
    "StrEnum",
    "assert_never",
    "LiteralString",
    "Required",
    "NotRequired",
    "TypeVarTuple",
    "Unpack",
    "override",
    "batched",
    "chdir",
    "TaskGroup",
    "file_digest",
}
GUARDED = {("utils/files.py", "file_digest")}
"""Used behind hasattr."""
PACKAGES = (*LAYERS, "benchmarks")


def trees() -> dict[str, ast.Module]:
    """Syntax tree by place below the root, parsed as Python 3.10."""
    files = [ROOT / name for name in SCRIPTS]
    for folder in (*LAYERS, *ABOVE):
        files += sorted((ROOT / folder).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for path in files
        if "__pycache__" not in path.parts
    }


TREES = trees()
OURS = {name: tree for name, tree in TREES.items() if name.partition("/")[0] not in ABOVE}
TESTS = {name: tree for name, tree in TREES.items() if re.fullmatch(r"tests/test_\w+\.py", name)}


def imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, names taken from it) of every import; the module of a relative one begins with its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or ""), tuple(alias.name for alias in node.names)


def lint_imports(folder: Path) -> tuple[int, str]:
    """Exit code and text of import-linter with the contracts of the repository's pyproject.toml."""
    pytest.importorskip("importlinter", reason="import-linter is not installed (requirements-dev.txt)")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_imports_go_down() -> None:
    code, text = lint_imports(ROOT)
    assert code == 0, text
    # The scripts are no packages, so import-linter does not read them.
    closed = {*ABOVE, *(Path(name).stem for name in SCRIPTS)}
    taken = [(name, module) for name in SCRIPTS for _, module, _ in imports(TREES[name])]
    assert not [f"{name} imports {module}" for name, module in taken if module.partition(".")[0] in closed]


FORBIDDEN = {
    "utils/a.py": ("import configs.a", "utils.a -> configs.a"),
    "configs/b.py": ("from datasets import a", "configs.b -> datasets.a"),
    "datasets/b.py": ("from model.a import x", "datasets.b -> model.a"),
    "model/b.py": ("import datasets.a", "model.b -> datasets.a"),
    "datasets/c.py": ("def f():\n    from solver.a import x", "datasets.c -> solver.a"),
    "solver/b.py": ("import train", "solver.b -> train"),
    "solver/api.py": ("import anyreid", "solver.api -> anyreid"),
    "solver/c.py": ("from tests.parity import x", "solver.c -> tests"),
    "solver/d.py": ("import benchmarks.a", "solver.d -> benchmarks.a"),
    "solver/f.py": ("def f():\n    from serve.a import x", "solver.f -> serve.a"),
    "serve/b.py": ("import benchmarks.a", "serve.b -> benchmarks.a"),
    "serve/c.py": ("import infer", "serve.c -> infer"),
    "solver/losses/b.py": ("from model.a import x", "solver.losses.b -> model.a"),
}
ALLOWED = {
    "solver/e.py": "from model.a import x\nimport datasets.a\nimport torch",
    "model/c.py": "from configs.a import x\nfrom model.a import y",
    "benchmarks/b.py": "import solver.a",
    "serve/d.py": "import solver.a\nfrom datasets.a import x",
}


def test_the_contract_of_imports_sees_what_it_forbids(tmp_path: Path) -> None:
    for package in (*PACKAGES, "solver/losses", "solver/objectives", "solver/training", "solver/evaluation"):
        (tmp_path / package).mkdir()
        for name in ("__init__.py", "a.py"):
            (tmp_path / package / name).write_text("")
    for place, line in ALLOWED.items():
        (tmp_path / place).write_text(line)
    code, text = lint_imports(tmp_path)
    assert code == 0, text
    for place, (line, _) in FORBIDDEN.items():
        (tmp_path / place).write_text(line)
    code, text = lint_imports(tmp_path)
    assert code == 1
    assert not [arrow for _, arrow in FORBIDDEN.values() if arrow not in text], text
    assert not [place for place in ALLOWED if place.removesuffix(".py").replace("/", ".") + " ->" in text], text


def at_run_time(tree: ast.Module) -> ast.Module:
    """The tree without what stands under TYPE_CHECKING."""
    kept = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    return ast.Module(kept, type_ignores=[])


def test_no_module_imports_itself_in_a_circle() -> None:
    own = {name: name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in TREES}
    graph: dict[str, set[str]] = {}
    relative = []
    for name, tree in TREES.items():
        relative += [f"{name}:{line}" for line, module, _ in imports(tree) if module.startswith(".")]
        taken = [(module, *(f"{module}.{entry}" for entry in names)) for _, module, names in imports(at_run_time(tree))]
        graph[own[name]] = {module for modules in taken for module in modules} & {*own.values()} - {own[name]}
    assert not relative, f"imports are absolute: {relative}"
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) == len(TREES)


def test_init_files_hold_a_docstring_only() -> None:
    wrong = []
    for name, tree in OURS.items():
        if name.endswith("/__init__.py"):
            rest = tree.body[1:]
            if name in REEXPORTS:
                rest = [node for node in rest if not isinstance(node, (ast.ImportFrom, ast.Assign))]
            wrong += [name] if rest or not ast.get_docstring(tree) else []
    assert not wrong


def test_tests_are_flat_and_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent != ROOT / "tests"]
    standard = {Path(name).stem for name in OURS if name.count("/") == 1} & sys.stdlib_module_names
    assert not standard, "a module started as a script would shadow the standard library's"


def covered(tree: ast.Module) -> list[str]:
    """The names after `Covers:` at the beginning of a docstring, which a full stop and a sentence follow."""
    match = re.match(r"Covers: ([\w/, ]+)\. \S", " ".join((ast.get_docstring(tree) or "").split()))
    return match[1].split(", ") if match else []


def test_every_module_is_covered_and_every_test_says_of_what() -> None:
    named = {name: covered(tree) for name, tree in TESTS.items()}
    assert not [name for name, modules in named.items() if not modules], "begin with `Covers: a/b, c/d. <a sentence>`"
    # A folder stands for what holds of it as a whole; it covers none of its modules.
    missing = [
        f"{name}: {module}"
        for name, modules in named.items()
        for module in modules
        if not (ROOT / f"{module}.py").is_file() and not (ROOT / module).is_dir()
    ]
    assert not missing, "no such module"
    modules = {name.removesuffix(".py") for name in OURS if not name.endswith("__init__.py")}
    assert not sorted(modules - {module for entries in named.values() for module in entries}), "no test covers these"


def longest(name: str) -> int:
    return LONGEST_SCRIPT if name in SCRIPTS else LONGEST_TEST if name.startswith("tests/") else LONGEST_FILE


def test_sizes() -> None:
    found = []
    for name, tree in TREES.items():
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        if lines > longest(name):
            found.append(f"{name}: {lines} lines, {longest(name)} at most")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{name}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
    assert not found, "\n".join(found)


def unsafe_loads(name: str, tree: ast.AST) -> Iterator[str]:
    """Loads that could run code and that ruff does not see."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function, values = ast.unparse(node.func), {item.arg: ast.unparse(item.value) for item in node.keywords}
        if function == "torch.load" and values.get("weights_only") != "True":
            yield f"{name}:{node.lineno} torch.load without weights_only=True"
        if function == "np.load" and values.get("allow_pickle", "False") != "False":
            yield f"{name}:{node.lineno} np.load with pickles"
        if function in ("yaml.unsafe_load", "yaml.full_load"):
            yield f"{name}:{node.lineno} {function}"


def test_nothing_that_is_loaded_may_run_code() -> None:
    assert not [line for name, tree in TREES.items() for line in unsafe_loads(name, tree)]


def younger_names(name: str, tree: ast.AST) -> Iterator[str]:
    """Modules and names that the standard library has had since 3.11 or later."""
    for line, module, names in imports(tree):
        if module in AFTER_3_10:
            yield f"{name}:{line} {module}"
        if module.partition(".")[0] in sys.stdlib_module_names:
            yield from (f"{name}:{line} {entry}" for entry in names if entry in NAMES_AFTER_3_10)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("ExceptionGroup", "BaseExceptionGroup"):
            yield f"{name}:{node.lineno} {node.id}"
        if isinstance(node, ast.Attribute) and node.attr in NAMES_AFTER_3_10 - {"chdir"}:
            if (name, node.attr) not in GUARDED:
                yield f"{name}:{node.lineno} {node.attr}"


def test_python_3_10_is_enough() -> None:
    assert not [line for name, tree in TREES.items() for line in younger_names(name, tree)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=flag)", 1),
        ("np.load(path)\nnp.load(path, allow_pickle=False)", 0),
        ("yaml.unsafe_load(text)", 1),
        ("import tomllib", 1),
        ("from typing import Self, Any", 1),
        ("from enum import StrEnum", 1),
        ("itertools.batched(x, 2)", 1),
        ("os.chdir(x)", 0),
        ("from ours import override", 0),
    ],
)
def test_the_rules_themselves(text: str, found: int) -> None:
    tree = ast.parse(text)
    assert len([*unsafe_loads("a.py", tree), *younger_names("a.py", tree)]) == found


def test_no_place_of_one_machine_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/" + r"(?:work|root|home)/\w+|/" + r"tmp/\w+")
    names = [name for name in listed.stdout.splitlines() if not name.startswith(("tests/golden/", "docs/images/"))]
    kinds = {Path(name).suffix for name in names}
    assert {".py", ".md", ".toml", ".yaml", ".txt"} <= kinds, "everything that git lists is read"
    found = []
    for name in names:
        if (ROOT / name).is_file():
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found
