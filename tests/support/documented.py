"""The commands that the pages tell readers to run, and how each is made small enough for a test."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(r"^\s*(python3? .+|make( .*)?)$")
REID5O = (
    "model.init=random model.image_size=[32,16] model.embed_dim=32 model.vision_width=32 model.vision_layers=2 "
    "model.vision_heads=2 model.text_width=32 model.text_layers=1 model.text_heads=2 model.text_length=12 "
    "model.mmt_depth=1 model.mmt_heads=2"
).split()
RESIDUAL = "model.init=random model.image_size=[32,16] model.depth=18 model.blocks=[1,1,1,1] model.width=4".split()
INSTRUCTED = (
    "model.init=random model.text_init=random model.clothes_init=random model.tokenizer=clip model.vocab_size=49408 "
    "model.image_size=[32,16] model.instruction_size=[32,32] model.width=16 model.heads=2 model.layers=2 "
    "model.clothes_layers=1 model.text_layers=1 model.fusion_layers=1 model.text_length=12 "
    "train.mixture=batch train.batch_size=24 train.instances=4 "
    "train.task_instances.trad=2 train.task_instances.cc=2 train.task_instances.ctcc=2 train.task_instances.li=2 "
    "train.task_instances.vi=2 train.task_instances.t2i=1"
).split()
MODELS = {"reid5o": REID5O, "irm": INSTRUCTED, "irmpp": INSTRUCTED}
"""Folder of a configuration -> options of a tiny model."""
SHORT = (
    "train.max_steps=1 train.epochs=1 train.eval_period=1 train.batch_size=16 train.accumulate=1 augment.pad_crop=0 "
    "data.workers=0 data.cache_dir= data.val_fraction=0.2"
).split()
NOT_RUN = {
    "make": "`make lint`, `make docs` and `make test` are .ci/run itself; the quickstarts take minutes",
    "pytest": "it is what runs the tests",
    "pip": "an environment",
    "benchmarks": "they measure for minutes, or compare with an older commit",
    "tests/parity.py": "tests/test_parity.py runs it on the goldens of the repository",
    "datasets.releases.cuhk03": "needs the .mat originals; tests/test_releases_images.py writes some and runs it",
    "model.official": "needs a published checkpoint; tests/test_official.py writes one and runs it",
}
"""Word of a command -> why it is not run here."""
NOT_RUN_WITH = {
    "--calibrate": "takes ten persons and more, not rendered here; tests/test_calibration.py runs it",
    "--serve": "serves until it is stopped; tests/test_serve_command.py does that",
    "ray": "takes Ray Data; tests/test_ray_engine.py runs it where it is installed",
    "approximate": "takes faiss; tests/test_approximate.py runs it where it is installed",
}
"""Option of a command -> why it is not run here."""


def commands(page: Path) -> list[str]:
    """Return the commands of fenced blocks and of inline code, comments and continuations resolved."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    parts = [part for line in lines for part in re.split(r"\s+#\s|&&", line)]
    return [part.strip() for part in parts if COMMAND.match(part)]


DOCUMENTED = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]


def split_command(command: str) -> tuple[str, list[str]]:
    """Return what is run (a script's file, a module, or `make`) and its arguments."""
    words = shlex.split(command)
    if words[0] == "make":
        return "make", words[1:]
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


def reason_not_to_run(target: str, arguments: Sequence[str] = ()) -> str:
    """Return why a command is not run, empty = it is."""
    room = target.split("/")[0].split(".")[0]
    option = next((reason for name, reason in NOT_RUN_WITH.items() if name in arguments), "")
    return NOT_RUN.get(target) or NOT_RUN.get(room) or option


def shortened(target: str, arguments: list[str]) -> list[str]:
    """Return the arguments of a command, small: absolute paths of configurations, few persons, tiny models, a step."""
    found = [str(ROOT / word) if word.startswith("configs/") else word for word in arguments]
    found = [re.sub(r"^(data\.root=|\w+:)?/data$", r"\1data", word) for word in found]
    if target == "datasets.synthetic":
        found = [re.sub(r"^\d{3,}$", "10", word) for word in found]
        return [*found, "--identities", "10", "--test-identities", "4", "--image-size", "64x32", "--processes", "1"]
    if "--trials" in found:
        found[found.index("--trials") + 1] = "1-2"
    if target == "train.py":
        folder = Path(found[found.index("--config") + 1]).relative_to(ROOT / "configs").parts[0]
        # What goes on cannot replace.
        replacing = [] if "--resume" in found else ["--overwrite"]
        return [*found, *SHORT, *MODELS.get(folder, RESIDUAL), "--device", "cpu", *replacing]
    if target == "solver.gallery" and found[0] == "add":
        return [*found, "data.workers=0", "--device", "cpu"]
    if target == "test.py" and "--compare" not in found:
        return [*found, "data.workers=0", "--device", "cpu"]
    if target == "infer.py":
        return [*found, "data.workers=0", "--device", "cpu"]
    return found
