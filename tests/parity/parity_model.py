"""Golden checks of the model: features, fusions, CLIP initialisation, gradients, names and shapes."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_common import Kind, Row, exact, max_error, relative_error

from configs.schema.reid5o import LoraConfig, Reid5oConfig
from configs.vocabulary import COMBINATIONS, Modality, combination_name
from model.reid5o import ReID5o
from model.weights.clip import initialise_reid5o
from model.weights.reid5o import export_reid5o, load_reid5o, read_flat_config, read_official_state, reid5o_sizes
from model.weights.reid5o_names import alias_names, official_names, reference_name, released_in_half
from solver.losses.identity import identity_loss
from solver.losses.sdm import sdm_loss

FEATURE_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-4
INPUT_NAMES = {
    Modality.RGB: "rgbs",
    Modality.NIR: "nirs",
    Modality.CP: "cps",
    Modality.SK: "sks",
    Modality.TEXT: "caption_ids",
}
FUSED = tuple(combination for combination in COMBINATIONS if len(combination) > 1)


@functools.lru_cache(maxsize=2)
def golden_model(folder: Path) -> ReID5o:
    """Return the model of a case's best.pth and configs.yaml."""
    return load_reid5o(folder / "best.pth", folder / "configs.yaml")


def golden_inputs(folder: Path) -> tuple[dict[Modality, torch.Tensor], torch.Tensor]:
    """Return a case's inputs by modality and its person ids."""
    stored = np.load(folder / "inputs.npz")
    return {kind: torch.from_numpy(stored[f"in.{name}"]) for kind, name in INPUT_NAMES.items()}, torch.from_numpy(
        stored["in.pids"]
    )


@functools.lru_cache(maxsize=2)
def golden_loss_and_gradients(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss `mm_sdm+id` of a case and its gradient for every trained parameter, under the released names."""
    model = golden_model(folder)
    inputs, person_ids = golden_inputs(folder)
    encoded = model.encode_batch(inputs)
    rgb = encoded[Modality.RGB].pooled
    features = {
        combination: encoded[combination[0]].pooled
        if len(combination) == 1
        else model.fuse([encoded[kind] for kind in combination])
        for combination in COMBINATIONS
    }
    groups = [
        torch.stack(
            [sdm_loss(rgb, feature, person_ids) for members, feature in features.items() if len(members) == size]
        ).mean()
        for size in (1, 2, 3, 4)
    ]
    logits = [model.identity_logits(feature) for feature in (rgb, *features.values())]
    total = sum(groups) + torch.stack([identity_loss(rows, person_ids) for rows in logits]).mean()
    trained = {reference_name(name): value for name, value in model.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(total, list(trained.values()))
    oriented = {
        target.name: value.t() if target.transposed else value for target, value in zip(trained, gradients, strict=True)
    }
    return total.item(), oriented


def check_outputs(path: Path) -> list[Row]:
    """Compare features and fusions of best.pth, features right after CLIP initialisation, and whole gradients."""
    stored, folder = np.load(path), path.parent
    model = golden_model(folder)
    inputs, _ = golden_inputs(folder)
    rows: list[Row] = []
    with torch.no_grad():
        encoded = model.encode_batch(inputs)
        for kind, tokens in encoded.items():
            rows.append(_feature(f"{kind.value}_cls", tokens.pooled, stored))
            rows.append(_feature(f"{kind.value}_embeds", tokens.tokens, stored))
        rows.append(_feature("text_eot", encoded[Modality.TEXT].pooled, stored))
        for combination in FUSED:
            rows.append(
                _feature(
                    f"mm_{combination_name(combination)}", model.fuse([encoded[kind] for kind in combination]), stored
                )
            )
    if any(name.startswith("init.") for name in stored.files):
        rows += _initialisation_rows(folder, stored)
    wanted = [name for name in stored.files if name.startswith("grad.")]
    if wanted:
        gradients = golden_loss_and_gradients(folder)[1]
        for name in wanted:
            scale = float(np.abs(stored[name]).max()) or 1.0
            error = max_error(gradients[name.removeprefix("grad.")].numpy(), stored[name]) / scale
            rows.append(Row(f"{name} (relative)", error, GRADIENT_TOLERANCE))
    compared = {re.sub(r" \(relative\)$", "", row.quantity) for row in rows}
    rows.append(exact(compared == set(stored.files), "every stored quantity was compared"))
    return rows


def _feature(name: str, value: torch.Tensor, stored: Any) -> Row:
    return Row(name, max_error(value.numpy(), stored[name]), FEATURE_TOLERANCE)


def _initialisation_rows(folder: Path, stored: Any) -> list[Row]:
    flat = read_flat_config(folder / "configs.yaml")
    config = reid5o_sizes(read_official_state(folder / "best.pth"), flat, init=str(folder / "clip_init.pt"))
    model = ReID5o(config, num_identities=2)
    initialise_reid5o(model, config)
    inputs, _ = golden_inputs(folder)
    rows = []
    with torch.no_grad():
        for name in stored.files:
            if name == "init.positional_embedding":
                rows.append(_feature(name, model.tokenizers.get_parameter("rgb.positional_embedding"), stored))
            elif name.startswith("init."):
                kind = Modality(name.removeprefix("init.").removesuffix("_cls"))
                rows.append(_feature(name, model.encode(kind, inputs[kind]).pooled, stored))
    return rows


def check_gradients(path: Path) -> list[Row]:
    """Compare the total loss, the norm of every trained parameter's gradient, and which parameters are frozen."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    total, gradients = golden_loss_and_gradients(path.parent)
    model = golden_model(path.parent)
    norms = {name: value.norm().item() for name, value in gradients.items()}
    # A base weight under attention experts has several released names; which one is listed does not matter.
    aliases = alias_names(name for name, _ in model.named_parameters())
    listed = {
        key: {aliases.get(name, name): value for name, value in golden[key].items()}
        for key in ("grad_norms_all", "grad_norms_selected")
    }
    rows = [Row("total loss mm_sdm+id", abs(total - golden["loss_total_mm_sdm+id"]), LOSS_TOLERANCE)]
    rows += [_norms_row(key, norms, expected) for key, expected in listed.items()]
    rows.append(exact(set(norms) == set(listed["grad_norms_all"]), "names of the trained parameters"))
    frozen = {official_names(model)[name] for name in model.frozen_names}
    rows.append(
        exact(
            frozen == {aliases.get(name, name) for name in golden["frozen_parameters"]},
            "names of the frozen parameters",
        )
    )
    return rows


def _norms_row(key: str, norms: dict[str, float], expected: dict[str, float]) -> Row:
    # Key biases of attention have no effect, so their gradient is rounding noise of the size of the floor.
    floor = 1e-6 * max(expected.values())
    errors = [relative_error(norms.get(name, math.nan), value, floor) for name, value in expected.items()]
    worst = math.inf if any(math.isnan(error) for error in errors) else max(errors)
    return Row(f"{key}: {len(expected)} gradient norms (relative)", worst, GRADIENT_TOLERANCE)


@dataclass(frozen=True)
class KeyTable:
    """One model of a key_shapes file: its headline, released key -> (shape, trained, dtype, alias), and its totals."""

    headline: str
    entries: dict[str, tuple[tuple[int, ...], bool, str, bool]]
    totals: tuple[int, ...]


def read_key_tables(path: Path) -> list[KeyTable]:
    """Read a key_shapes file, which lists one or more models one after the other."""
    tables: list[KeyTable] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# key |") or not line.strip():
            continue
        if line.startswith("# parameters total"):
            totals = tuple(int(number) for number in re.findall(r"\d+", line))
            tables[-1] = KeyTable(tables[-1].headline, tables[-1].entries, totals)
        elif line.startswith(("# state_dict", "# per module")):
            continue
        elif line.startswith("#"):
            tables.append(KeyTable(line, {}, ()))
        else:
            key, shape, trained, dtype, alias = (part.strip() for part in line.split(" | "))
            tables[-1].entries[key] = (
                tuple(int(n) for n in re.findall(r"\d+", shape)),
                trained == "T",
                dtype,
                alias != "-",
            )
    return tables


def check_key_shapes(path: Path) -> list[Row]:
    """Compare every released key with the model of those sizes, built without memory: shape, trained, dtype, alias."""
    rows: list[Row] = []
    for table in read_key_tables(path):
        with torch.device("meta"):
            model = ReID5o(_table_config(table), table.entries["classifier.weight"][0][0])
        trained = {reference_name(name).name: value.requires_grad for name, value in model.named_parameters()}
        aliases = alias_names(name for name, _ in model.named_parameters())
        ours = {}
        for name, parameter in model.named_parameters():
            target = reference_name(name)
            shape = tuple(parameter.shape)[::-1] if target.transposed else tuple(parameter.shape)
            ours[target.name] = (shape, trained[target.name], _dtype(target.name), False)
        ours |= {alias: (*ours[main][:3], True) for alias, main in aliases.items()}
        label = f"{len(table.entries)} keys"
        rows.append(exact(ours == table.entries, f"{label}: names, shapes, trained, dtypes, aliases"))
        if table.totals:
            counts = [sum(value.numel() for value in model.parameters() if flag(value)) for flag in _COUNTED]
            rows.append(exact(tuple(counts) == table.totals, f"{label}: parameters total, trained, frozen"))
    return rows


_COUNTED = (lambda value: True, lambda value: value.requires_grad, lambda value: not value.requires_grad)


def _dtype(name: str) -> str:
    return "float16" if released_in_half(name) else "float32"


def _table_config(table: KeyTable) -> Reid5oConfig:
    """Sizes of a listed model; the grid of patches is found from the headline's image size and stride."""
    shapes = {key: entry[0] for key, entry in table.entries.items()}
    image = re.search(r"img(?:_size'?:)? \((\d+), ?(\d+)\)", table.headline)
    stride = re.search(r"stride(?:_size'?:)? (\d+)", table.headline)
    assert image is not None and stride is not None, table.headline
    experts = [key for key in shapes if ".loras_A." in key]
    blocks = {key.split(".mlp.")[0] for key in experts}
    lora = LoraConfig(
        enabled=bool(experts),
        mode="all" if any("_withloras" in key for key in shapes) else "mlp",
        layers=len(blocks),
        rank=shapes[experts[0]][0] if experts else 4,
        num_experts=sum(key.startswith(experts[0].rpartition(".")[0] + ".") for key in experts) if experts else 4,
    )
    return Reid5oConfig(
        image_size=(int(image[1]), int(image[2])),
        stride=int(stride[1]),
        patch_size=shapes["rgb_tokenizer.conv1.weight"][-1],
        embed_dim=shapes["clip_text_encoder.text_projection"][1],
        vision_width=shapes["rgb_tokenizer.class_embedding"][0],
        vision_layers=_block_count(shapes, "vision_encoder."),
        text_width=shapes["clip_text_encoder.ln_final.weight"][0],
        text_layers=_block_count(shapes, "clip_text_encoder."),
        vocab_size=shapes["clip_text_encoder.token_embedding.weight"][0],
        text_length=shapes["clip_text_encoder.positional_embedding"][0],
        mmt_depth=_block_count(shapes, "cross_modal_"),
        lora=lora,
    )


def _block_count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return len(
        {match[1] for key in shapes if (match := re.match(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.", key))}
    )


def check_checkpoint(path: Path) -> list[Row]:
    """Load a released checkpoint strictly and export it again: same entries, values equal in float32."""
    model = golden_model(path.parent)
    stored = read_official_state(path)
    exported = export_reid5o(model)
    aliases = alias_names(name for name, _ in model.named_parameters())
    equal = all(torch.equal(exported[name], value) for name, value in stored.items() if name in exported)
    return [
        exact(set(stored) <= set(exported) and set(exported) - set(stored) <= set(aliases), "exported entries"),
        exact(equal, "exported values"),
    ]


KINDS: tuple[Kind, ...] = (
    Kind("features", r"outputs\.npz", check_outputs),
    Kind("gradients", r"gradients\.json", check_gradients),
    Kind("released keys", r"key_shapes(_vitb16)?\.txt", check_key_shapes),
    Kind("released checkpoint", r"best\.pth", check_checkpoint),
    Kind("inputs", r"inputs\.npz"),
    Kind("CLIP weights", r"clip_init\.pt"),
    Kind("flat configuration", r"configs\.yaml"),
    Kind("options", r"meta\.json"),
)
