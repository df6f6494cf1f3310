"""The house, read off the syntax trees: who may import whom, how long things are, what may not be written."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANKS = {"utils": 0, "configs": 1, "datasets": 2, "model": 2, "solver": 3}
"""A layer imports itself and lower ranks only; datasets and model share a rank and never meet. Scripts stand above
all.
"""
SCRIPTS = ("train.py", "test.py", "infer.py")
ABOVE = ("benchmarks", "tests")
"""May import everything, may be imported by nobody below."""
REEXPORTS = {"solver/losses/__init__.py"}
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_TEST, LONGEST_SCRIPT = 80, 650, 900, 120  # until the long ones are split
AFTER_3_10 = {"tomllib": "3.11", "wsgiref.types": "3.11"}
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
    "itertools.batched",
    "chdir",
    "TaskGroup",
    "file_digest",
}
GUARDED = {("utils/files.py", "file_digest")}
"""Used behind hasattr."""


def sources() -> list[Path]:
    files = [ROOT / name for name in SCRIPTS]
    for folder in (*RANKS, *ABOVE):
        files += sorted((ROOT / folder).rglob("*.py"))
    return [path for path in files if "__pycache__" not in path.parts]


FILES = sources()
OURS = [path for path in FILES if path.relative_to(ROOT).parts[0] not in ABOVE]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""


def forbidden_imports(path: Path, tree: ast.AST) -> list[str]:
    layer = path.relative_to(ROOT).parts[0]
    found = []
    for line, module in imports(tree):
        top = module.partition(".")[0]
        own = {*RANKS, *ABOVE, *(Path(script).stem for script in SCRIPTS)}
        if layer in ABOVE or top not in own or top == layer:
            continue
        if top not in RANKS or (layer in RANKS and RANKS[top] >= RANKS[layer]):
            found.append(f"{name_of(path)}:{line} imports {module}")
    return found


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    assert not forbidden_imports(path, tree_of(path))


@pytest.mark.parametrize(
    ("place", "text", "bad"),
    [
        ("utils/a.py", "import configs.load", True),
        ("configs/a.py", "from datasets import orbench", True),
        ("datasets/a.py", "from model.lora import x", True),
        ("model/a.py", "import datasets.build", True),
        ("datasets/a.py", "def f():\n    from solver.training.engine import x", True),
        ("solver/a.py", "import train", True),
        ("solver/a.py", "from tests.parity import x", True),
        ("solver/a.py", "from model.lora import x\nimport datasets.releases.orbench\nimport torch", False),
        ("model/a.py", "from configs.schema import x\nfrom model.text import y", False),
        ("train.py", "from solver.training.engine import x", False),
    ],
)
def test_the_rule_itself(place: str, text: str, bad: bool) -> None:
    assert bool(forbidden_imports(ROOT / place, ast.parse(text))) is bad


@pytest.mark.parametrize("path", [path for path in OURS if path.name == "__init__.py"], ids=name_of)
def test_init_files_hold_a_docstring_only(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    if name_of(path) in REEXPORTS:
        assert all(isinstance(node, (ast.ImportFrom, ast.Assign)) for node in tree.body[1:])
    else:
        assert len(tree.body) == 1


def test_tests_are_flat_and_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    standard = {path.stem for path in OURS if path.parent.parent == ROOT} & sys.stdlib_module_names
    assert not standard, "a module started as a script would shadow the standard library's"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sizes(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = (
        LONGEST_SCRIPT
        if name_of(path) in SCRIPTS
        else LONGEST_TEST
        if path.relative_to(ROOT).parts[0] == "tests"
        else LONGEST_FILE
    )
    assert lines <= limit
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree_of(path))  # type: ignore[operator]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]  # type: ignore[operator]
    assert not long


def calls(tree: ast.AST, owner: str, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        function = node.func if isinstance(node, ast.Call) else None
        if (
            isinstance(function, ast.Attribute)
            and function.attr == name
            and isinstance(function.value, ast.Name)
            and function.value.id == owner
        ):
            yield node  # type: ignore[misc]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_dangerous(path: Path) -> None:
    tree = tree_of(path)
    found = [
        f"bare except in line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    for call in calls(tree, "torch", "load"):
        values = {keyword.arg: keyword.value for keyword in call.keywords}
        safe = values.get("weights_only")
        if not (isinstance(safe, ast.Constant) and safe.value is True):
            found.append(f"torch.load without weights_only=True in line {call.lineno}")
    found += [
        f"np.load with pickles in line {call.lineno}"
        for call in calls(tree, "np", "load")
        if any(
            keyword.arg == "allow_pickle"
            and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            for keyword in call.keywords
        )
    ]
    if path in OURS:
        for owner, name in (
            ("pickle", "load"),
            ("pickle", "loads"),
            ("os", "system"),
            ("yaml", "unsafe_load"),
            ("yaml", "full_load"),
        ):
            found += [f"{owner}.{name} in line {call.lineno}" for call in calls(tree, owner, name)]
        loaders = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
        }
        found += [
            f"yaml.load with another loader than a safe one in line {call.lineno}"
            for call in calls(tree, "yaml", "load")
            if not {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "Loader"}
            & {"yaml.SafeLoader", *loaders}
        ]
        found += [
            f"{node.func.id} in line {node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
        ]
        found += [
            f"wildcard import in line {node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        ]
        swallowed = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler)
            and isinstance(node.type, ast.Name)
            and node.type.id in ("Exception", "BaseException")
            and all(isinstance(entry, ast.Pass) for entry in node.body)
        ]
        found += [f"swallowed exception in line {node.lineno}" for node in swallowed]
    assert not found


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_printing_is_the_scripts_business(path: Path) -> None:
    tree = tree_of(path)
    in_main = {
        id(node)
        for main in tree.body
        if isinstance(main, ast.FunctionDef) and main.name == "main"
        for node in ast.walk(main)
    }
    printed = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and id(node) not in in_main
    ]
    assert not printed or name_of(path) == "utils/errors.py"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_public_things_are_documented(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    open_ = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    assert not [node.name for node in open_ if not ast.get_docstring(node)]
    bare = [
        f"{node.name}.{entry.arg}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for entry in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if entry.annotation is None and entry.arg not in ("self", "cls")
    ]
    assert not bare


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_python_3_10_is_enough(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, feature_version=(3, 10))
    found = [f"{module} in line {line}" for line, module in imports(tree) if module in AFTER_3_10]
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in sys.stdlib_module_names:
            found += [f"{alias.name} in line {node.lineno}" for alias in node.names if alias.name in NAMES_AFTER_3_10]
        elif isinstance(node, ast.Name) and node.id in ("ExceptionGroup", "BaseExceptionGroup"):
            found.append(f"{node.id} in line {node.lineno}")
        elif name in NAMES_AFTER_3_10 - {"chdir"} and (name_of(path), name) not in GUARDED:
            found.append(f"{name} in line {node.lineno}")  # type: ignore[attr-defined]
    assert not found


def test_no_place_of_one_machine_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/" + r"(?:work|root|home)/\w+|/" + r"tmp/\w+")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".yaml", ".md", ".toml", ".txt") and path.is_file():
            found += [
                f"{name}:{number}"
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
                if pattern.search(line)
            ]
    assert not found
