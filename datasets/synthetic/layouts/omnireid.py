"""The tree `data/` of OmniReID's authors: ten data sets, each a folder with images and datalists.

    market/{datalist,Market-1501}   msmt/{datalist,MSMT17_V1}   cuhk/{datalist,cuhk03_1}
    ltcc/{datalist,LTCC_ReID,croped_clothes,templates,white_shirt.jpg}
    prcc/{datalist,rgb,croped_clothes,prcc_A_templates,white_shirt.jpg}
    vc_clothes/{datalist,train,query,gallery,croped_image,white_shirt.jpg} real1/{COCAS,datalist}
    real2/{real_reid_image_face_blur,datalist} llcm/{LLCM,train.txt,query.txt,gallery.txt}
    CUHK-Pedes/{imgs,caption_t2i_v2.json,train_t2i_v2.txt,...}

A line is `image instruction pid clothes_id [camera]`, paths relative to the folder of the data set; the names of
folders and lists are the authors', their lists were not seen. Pictures and persons are those of the data sets' own
layouts; real1 has the training persons and real2 the test persons of `cocas`, for both CTCC and LI. The second field is
`-` for Trad and VI. For CC it is the upper body of the image itself in training and white_shirt.jpg, which stands for
any clothes, at test. For CTCC it is a template, and in galleries the image itself, which means its upper body. For LI
and T2I it is a key of the captions: in LI the path of the image that is described, for a query of a gallery image in
the wanted outfit. Template, description and clothes of a training line are those that its image shows, of a query line
those that it asks for.

LTCC's lists `sc` search the first outfits with the first outfits, `cc` with the others, `general` everything with
everything.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from PIL import Image, ImageDraw

from configs.vocabulary import Modality
from datasets.synthetic.arguments import LAYOUTS, MEMBERS, RenderArguments
from datasets.synthetic.captions import caption_of
from datasets.synthetic.layouts.cocas import BLOCK, MAXIMUM_NUMBER, Target, targets
from datasets.synthetic.person import View
from datasets.synthetic.population import draw_ids, test_persons, train_persons
from datasets.synthetic.roll import Roll
from datasets.synthetic.shots import Plan, Shot

FOLDER = "OmniReID"
NOTHING, WHITE_SHIRT = "-", "white_shirt.jpg"
GALLERY_KEY = "001_1_c5_015874.png"
"""Key of every line of CUHK-Pedes' gallery list, by which the released code knows a gallery line; its text says
nothing.
"""
FOLDER_PARTS = {
    "bounding_box_train": "train",
    "bounding_box_test": "gallery",
    "train": "train",
    "test": "gallery",
    "query": "query",
    "gallery": "gallery",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """One line of a list; camera None = no fifth field."""

    image: str
    second: str
    pid: int
    clothes: int
    camera: int | None

    def __str__(self) -> str:
        fields = [self.image, self.second, str(self.pid), str(self.clothes)]
        return " ".join(fields if self.camera is None else [*fields, str(self.camera)])


class _Tree:
    """The tree in the making."""

    def __init__(self, arguments: RenderArguments) -> None:
        self.arguments = arguments
        self.shots: list[Shot] = []
        self.texts: dict[str, str] = {}
        self.annotations: dict[str, Any] = {}
        self.binaries: dict[str, bytes] = {}

    def plan_of(self, layout: str) -> Plan:
        """Return the plan of a data set's own layout."""
        arguments = dataclasses.replace(self.arguments, layout=layout, members=())
        return importlib.import_module(LAYOUTS[layout]).plan(arguments)

    def add(self, member: str, path: str, shot: Shot, kind: Literal["photo", "template", "crop"] = "photo") -> str:
        """Place a picture at `path` in the folder of a member; return `path`."""
        self.shots.append(dataclasses.replace(shot, path=f"{member}/{path}", kind=kind))
        return path

    def add_templates(self, member: str, folder: str, wardrobe: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Place a template for each (person, outfit) -> (pid, clothes)."""
        for (person, outfit), (pid, clothes) in sorted(wardrobe.items(), key=lambda pair: pair[1]):
            template = Shot("", person, outfit, Modality.RGB, 0, View.FRONT)
            self.add(member, f"{folder}/{pid:04d}_{clothes}.jpg", template, "template")

    def write(self, folder: str, lists: Mapping[str, Iterable[_Line]]) -> None:
        """Write lists into a folder of the tree."""
        self.texts |= {f"{folder}/{name}.txt": "".join(f"{line}\n" for line in lines) for name, lines in lists.items()}

    def copy_texts(self, folder: str, plan: Plan) -> None:
        """Place the text files of a data set's own layout."""
        self.texts |= {f"{folder}/{name}": text for name, text in plan.texts.items()}


def plan(arguments: RenderArguments) -> Plan:
    """Return the pictures, lists and captions of the members asked for, the same as in the whole tree. Raises UserError
    for more persons than one of them holds.
    """
    tree = _Tree(arguments)
    for name in arguments.members or MEMBERS:
        WRITERS[name](tree)
    return Plan(tuple(tree.shots), tree.annotations, tree.texts, tree.binaries)


def _market(tree: _Tree) -> None:
    lists: dict[str, list[_Line]] = defaultdict(list)
    for shot in tree.plan_of("market1501").shots:
        folder, name = shot.path.split("/")
        pid = int(name.split("_")[0])
        if pid >= 0:
            image = tree.add("market", f"Market-1501/{shot.path}", shot)
            lists[FOLDER_PARTS[folder]].append(_Line(image, NOTHING, pid, shot.outfit, shot.camera))
    tree.write("market/datalist", lists)


def _msmt(tree: _Tree) -> None:
    plan = tree.plan_of("msmt17")
    shots = {shot.path: shot for shot in plan.shots}
    listed = {
        name: [line.split(" ") for line in plan.texts[f"list_{name}.txt"].splitlines()]
        for name in ("train", "val", "query", "gallery")
    }
    # Both numberings of the original start at 0; in one set of lists the test persons follow.
    training = 1 + max(int(label) for _, label in listed["train"])
    lists: dict[str, list[_Line]] = defaultdict(list)
    for name, lines in listed.items():
        is_train = name in ("train", "val")
        for path, label in lines:
            shot = shots[f"{'train' if is_train else 'test'}/{path}"]
            image = tree.add("msmt", f"MSMT17_V1/{shot.path}", shot)
            if name == "val":
                # The published results were trained on list_train alone.
                continue
            lists[name].append(
                _Line(image, NOTHING, int(label) + (0 if is_train else training), shot.outfit, shot.camera)
            )
    tree.copy_texts("msmt/MSMT17_V1", plan)
    tree.write("msmt/datalist", lists)


def _cuhk(tree: _Tree) -> None:
    lists: dict[str, list[_Line]] = defaultdict(list)
    for shot in tree.plan_of("cuhk03").shots:
        variant, folder, name = shot.path.split("/")
        if variant == "labeled":
            image = tree.add("cuhk", f"cuhk03_1/{folder}/{name}", shot)
            lists[FOLDER_PARTS[folder]].append(_Line(image, NOTHING, int(name.split("_")[0]), shot.outfit, shot.camera))
    tree.write("cuhk/datalist", lists)


def _clothed(tree: _Tree, member: str, path: str, shot: Shot, pid: int, crops: str) -> _Line:
    """Place a picture and, unless `crops` is empty, its upper body in that folder; return the line."""
    image = tree.add(member, path, shot)
    second = (
        tree.add(member, f"{crops}/{PurePosixPath(path).with_suffix('.jpg')}", shot, "crop") if crops else WHITE_SHIRT
    )
    return _Line(image, second, pid, shot.outfit, shot.camera)


def _ltcc(tree: _Tree) -> None:
    plan, wardrobe = tree.plan_of("ltcc"), dict[tuple[int, int], tuple[int, int]]()
    lists: dict[str, list[_Line]] = defaultdict(list)
    for shot in plan.shots:
        folder, name = shot.path.split("/")
        pid, part = int(name.split("_")[0]), FOLDER_PARTS[folder]
        line = _clothed(tree, "ltcc", f"LTCC_ReID/{shot.path}", shot, pid, "croped_clothes" if part == "train" else "")
        wardrobe[shot.person, shot.outfit] = pid, shot.outfit
        if part == "train":
            lists["train"].append(line)
            continue
        lists[f"{part}_general"].append(line)
        if part == "gallery" and shot.outfit == 0:
            lists["gallery_sc"].append(line)
            lists["gallery_cc"].append(line)
        elif part == "query":
            lists["query_cc" if shot.outfit else "query_sc"].append(line)
    tree.copy_texts("ltcc/LTCC_ReID", plan)
    tree.add_templates("ltcc", "templates", wardrobe)
    tree.binaries[f"ltcc/{WHITE_SHIRT}"] = white_shirt(tree.arguments.image_size[0] // 2)
    tree.write("ltcc/datalist", lists)


def _prcc(tree: _Tree) -> None:
    lists: dict[str, list[_Line]] = defaultdict(list)
    wardrobe: dict[tuple[int, int], tuple[int, int]] = {}
    for shot in tree.plan_of("prcc").shots:
        folders = shot.path.split("/")
        pid = int(folders[-2])
        part = {"train": "train", "A": "gallery", "C": "query"}.get(folders[1] if folders[1] != "test" else folders[2])
        if part is None:
            # Validation, and camera B, whose clothes are those of the gallery.
            continue
        lists[part].append(_clothed(tree, "prcc", shot.path, shot, pid, "croped_clothes" if part == "train" else ""))
        if shot.outfit == 0:
            wardrobe[shot.person, 0] = pid, 0
    tree.add_templates("prcc", "prcc_A_templates", wardrobe)
    tree.binaries[f"prcc/{WHITE_SHIRT}"] = white_shirt(tree.arguments.image_size[0] // 2)
    tree.write("prcc/datalist", lists)


def _vc_clothes(tree: _Tree) -> None:
    lists: dict[str, list[_Line]] = defaultdict(list)
    for shot in tree.plan_of("vc-clothes").shots:
        part, name = shot.path.split("/")
        lists[part].append(
            _clothed(
                tree, "vc_clothes", shot.path, shot, int(name.split("-")[0]), "croped_image" if part == "train" else ""
            )
        )
    tree.binaries[f"vc_clothes/{WHITE_SHIRT}"] = white_shirt(tree.arguments.image_size[0] // 2)
    tree.write("vc_clothes/datalist", lists)


REAL_FOLDERS = {"real1": "COCAS", "real2": "real_reid_image_face_blur"}


def _targets(arguments: RenderArguments, member: str) -> list[Target]:
    """Return the searches of real1 or real2, the same whether one of them is rendered or both."""
    persons = {"real1": train_persons(arguments, BLOCK), "real2": test_persons(arguments, BLOCK)}
    numbers = draw_ids(arguments.seed, "cocas", (*persons["real1"], *persons["real2"]), 1, MAXIMUM_NUMBER)
    # One roll: of a person who is in both no picture is taken twice.
    roll = Roll(arguments.seed, "cocas")
    found = {
        name: list(
            targets(
                roll,
                {person: numbers[person] for person in persons[name]},
                arguments,
                images=f"{below}/images",
                templates=f"{below}/templates",
            )
        )
        for name, below in REAL_FOLDERS.items()
    }
    return found[member]


def _real1(tree: _Tree) -> None:
    """Training: every picture with what it shows itself, those that are queries in a test set likewise."""
    arguments, member = tree.arguments, "real1"
    clothes, described, captions = list[_Line](), list[_Line](), dict[str, str]()
    found = _targets(arguments, member)
    templates = {
        (target.pid, target.clothes): tree.add(member, target.template.path, target.template, "template")
        for target in found
    }
    shown = [(target.pid, shot) for target in found for shot in target.gallery]
    for pid, shot in (*shown, *((target.pid, target.query) for target in found)):
        image = tree.add(member, shot.path, shot)
        captions[image] = caption_of(shot, arguments.seed)
        template = templates[pid, shot.outfit]
        clothes.append(_Line(image, template, pid, shot.outfit, shot.camera))
        described.append(_Line(image, image, pid, shot.outfit, shot.camera))
    tree.write(f"{member}/datalist", {"train_ctcc": clothes, "train_attr": described})
    tree.annotations[f"{member}/datalist/runner_real1_v1_gpt.json"] = captions


def _real2(tree: _Tree) -> None:
    """Test: a query with the outfit in which the person is looked for, a gallery picture with what it shows."""
    arguments, member = tree.arguments, "real2"
    lists: dict[str, list[_Line]] = {name: [] for name in ("query", "gallery", "query_attr", "gallery_attr")}
    captions: dict[str, str] = {}
    for target in _targets(arguments, member):
        template = tree.add(member, target.template.path, target.template, "template")
        for shot in target.gallery:
            image = tree.add(member, shot.path, shot)
            captions[image] = caption_of(shot, arguments.seed)
            line = _Line(image, image, target.pid, target.clothes, shot.camera)
            lists["gallery"].append(line)
            lists["gallery_attr"].append(line)
        image = tree.add(member, target.query.path, target.query)
        described = target.described(arguments.seed).path
        for name, second in (("query", template), ("query_attr", described)):
            lists[name].append(_Line(image, second, target.pid, target.clothes, target.query.camera))
    tree.write(f"{member}/datalist", lists)
    tree.annotations[f"{member}/datalist/runner_real2_v1_gpt.json"] = captions


def _llcm(tree: _Tree) -> None:
    plan = tree.plan_of("llcm")
    lists: dict[str, list[_Line]] = defaultdict(list)
    for shot in plan.shots:
        folders = shot.path.split("/")
        part = {"test_nir": "query", "test_vis": "gallery"}.get(folders[0], "train")
        image = tree.add("llcm", f"LLCM/{shot.path}", shot)
        lists[part].append(_Line(image, NOTHING, int(folders[-2]), shot.outfit, shot.camera))
    tree.copy_texts("llcm/LLCM", plan)
    tree.write("llcm", lists)


def _cuhk_pedes(tree: _Tree) -> None:
    plan = tree.plan_of("cuhk-pedes")
    shots = {shot.path: shot for shot in plan.shots}
    captions = {GALLERY_KEY: "gallery"}
    lists: dict[str, list[_Line]] = {"train_t2i_v2": [], "query_t2i_v2": [], "gallery_t2i_v2": []}
    for entry in plan.annotations["reid_raw.json"]:
        if entry["split"] == "val":
            continue
        path = f"imgs/{entry['file_path']}"
        tree.add("CUHK-Pedes", path, shots[path])
        for number, caption in enumerate(entry["captions"], start=1):
            key = f"{PurePosixPath(path).parent.name}_{PurePosixPath(path).stem}_{number}.jpg"
            captions[key] = caption
            lists["train_t2i_v2" if entry["split"] == "train" else "query_t2i_v2"].append(
                _Line(path, key, entry["id"], 0, None)
            )
        if entry["split"] == "test":
            lists["gallery_t2i_v2"].append(_Line(path, GALLERY_KEY, entry["id"], 0, None))
    tree.write("CUHK-Pedes", lists)
    tree.annotations["CUHK-Pedes/caption_t2i_v2.json"] = captions


WRITERS: dict[str, Callable[[_Tree], None]] = {
    "market": _market,
    "msmt": _msmt,
    "cuhk": _cuhk,
    "ltcc": _ltcc,
    "prcc": _prcc,
    "vc_clothes": _vc_clothes,
    "real1": _real1,
    "real2": _real2,
    "llcm": _llcm,
    "CUHK-Pedes": _cuhk_pedes,
}
"""Member -> what adds it to the tree."""


def white_shirt(side: int) -> bytes:
    """Return the JPEG file of a white T-shirt on a grey ground, a square."""
    image = Image.new("RGB", (side, side), (150, 150, 150))
    outline = (
        (0.36, 0.10),
        (0.64, 0.10),
        (0.95, 0.28),
        (0.86, 0.46),
        (0.74, 0.40),
        (0.74, 0.92),
        (0.26, 0.92),
        (0.26, 0.40),
        (0.14, 0.46),
        (0.05, 0.28),
    )
    draw = ImageDraw.Draw(image)
    draw.polygon([(x * side, y * side) for x, y in outline], fill=(250, 250, 250), outline=(200, 200, 200))
    draw.ellipse((0.40 * side, 0.04 * side, 0.60 * side, 0.18 * side), fill=(150, 150, 150))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()
