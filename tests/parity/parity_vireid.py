"""Golden checks of the visible-infrared family: network, heads, losses, steps of the optimiser."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from parity_common import Kind, Row, exact, max_error, relative_error
from torch import Tensor

from configs.schema.train import OptimizerConfig
from configs.schema.vireid import VireidConfig, VireidObjectiveConfig
from configs.vocabulary import Modality
from model.resnet import DEPTHS, Backbone
from model.vireid import ModalityHead, Vireid
from model.weights.vireid_names import rename
from solver.losses.identity import identity_loss
from solver.losses.imitation import imitation_loss
from solver.losses.numerics import same_person
from solver.losses.triplet import batch_hard_triplet_loss, euclidean_distances, hardest_pairs
from solver.objectives.vireid import VireidObjective
from solver.training.optimizer import build_optimizer
from solver.training.param_groups import apply_policy, vireid_rules

Arrays = dict[str, np.ndarray]
RGB, NIR = Modality.RGB, Modality.NIR
RATES = OptimizerConfig(
    lr=1e-4, weight_decay=5e-4, bias_weight_decay=5e-4, new_module_lr_factor=10.0, bias_lr_factor=1.0
)
"""The recipe of IV-REID."""
TERMS = {
    "kl_rgb": "imitation/rgb",
    "kl_ir": "imitation/nir",
    "id_shared": "id",
    "id_rgb": "id/rgb",
    "id_ir": "id/nir",
    "triplet": "triplet",
}
ALL_LOSSES = {"id": 1.0, "modality_id": 1.0, "imitation": 1.0, "triplet": 1.0}


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _tensor(values: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _weights(golden: Arrays, prefix: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): _tensor(golden[name].reshape(golden[name].shape), dtype)
        for name in golden
        if name.startswith(prefix) and name != "width" and name != "wrong_with_relu_global_feat"
    }


def _spec(golden: Arrays, state: dict[str, Tensor]) -> VireidConfig:
    bottleneck = any(".conv3." in name for name in state)
    return VireidConfig(
        depth=50 if bottleneck else 18,
        blocks=tuple(int(count) for count in golden["layers"]),
        width=int(golden["width"]),
        last_stride=int(golden["last_stride"]),
    )


def _model(
    state: dict[str, Tensor], spec: VireidConfig, num_identities: int, head_width: int, dtype: torch.dtype
) -> Vireid:
    model = Vireid(dataclasses.replace(spec, head_width=head_width), num_identities).to(dtype)
    ours = rename(state, spec.blocks or DEPTHS[spec.depth][1], "golden")
    left = set(model.state_dict()) - set(ours)
    assert not set(ours) - set(model.state_dict()) and all(name.startswith("heads.") for name in left)
    model.load_state_dict(ours, strict=False)
    return model


def check_narrow(path: Path) -> list[Row]:
    """Narrow networks: last map, stem, features before and after the neck, in both precisions."""
    golden = _load(path)
    rows = []
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        state = _weights(golden, "w_", dtype)
        model = _model(state, _spec(golden, state), int(golden["num_classes"]), 512, dtype).eval()
        inputs = {RGB: _tensor(golden["x"], dtype)}
        with torch.no_grad():
            found = {
                "feature_map": model.backbone(inputs),
                "eval_global_feat": model.pool(inputs),
                "eval_bn_feat": model.features(inputs),
            }
            stem = model.backbone.stem(RGB)(inputs[RGB])
        for name, value in found.items():
            scale = 1.0 if dtype is torch.float64 else max(float(np.abs(golden[name]).max()), 1e-12)
            rows.append(Row(f"{name} {dtype}", max_error(value.double(), golden[name]) / scale, tolerance))
        rows.append(
            Row(
                f"stem_out {dtype}",
                max_error(stem.double(), golden["stem_out"].astype(np.float64)),
                1e-5 if dtype is torch.float32 else 1e-6,
            )
        )
    rows.append(
        exact(
            max_error(found["eval_global_feat"].double(), golden["wrong_with_relu_global_feat"]) > 1e-3,
            "guard: no ReLU after the stem",
        )
    )
    return rows


def recipe_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights of the golden recipe for the reference's names."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros((), dtype=np.int64)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif name.endswith("running_mean"):
            state[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        elif name.endswith("bias"):
            state[name] = (0.05 * rng.standard_normal(shape)).astype(np.float32)
        else:
            scale = np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
            state[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    return state


def _reference_names(backbone: Backbone) -> dict[str, str]:
    names = {}
    for name in backbone.state_dict():
        part, _, rest = name.partition(".")
        if part == "stems":
            names[name] = rest.removeprefix("shared.")
        else:
            stage, _, inner = rest.partition(".")
            names[name] = f"layer{int(stage) + 1}.{inner}"
    return names


def check_recipe(path: Path) -> list[Row]:
    """Full-size networks with weights from the recipe."""
    golden = _load(path)
    blocks = tuple(int(count) for count in golden["layers"])
    arch = str(golden["arch"])
    depth: Literal[18, 50] = 18 if arch.startswith("basic") or arch in ("resnet18", "resnet34") else 50
    backbone = Backbone(VireidConfig(depth=depth, blocks=blocks)).double().eval()
    names = _reference_names(backbone)
    shapes = {names[name]: tuple(value.shape) for name, value in backbone.state_dict().items()}
    state = recipe_state(shapes, int(golden["seed"]))
    backbone.load_state_dict({name: _tensor(state[names[name]]) for name in names}, strict=True)
    with torch.no_grad():
        feature = backbone({RGB: _tensor(golden["x"])})
    total = sum(float(value.astype(np.float64).sum()) for value in state.values())
    pooled = feature.mean(dim=(2, 3)).numpy()
    scale = np.abs(golden["global_feat"]).max()
    return [
        Row(
            "checksum_conv1",
            relative_error(float(state["conv1.weight"].astype(np.float64).sum()), float(golden["checksum_conv1"])),
            1e-6,
        ),
        Row("checksum_all", relative_error(total, float(golden["checksum_all"])), 1e-6),
        exact(tuple(feature.shape) == tuple(golden["feature_shape"]), "feature_shape"),
        Row("global_feat", max_error(pooled, golden["global_feat"]) / scale, 1e-9),
    ]


def check_triplet(path: Path) -> list[Row]:
    """Batch-hard triplet: distances, mined pairs, losses and gradients, raw and normalised."""
    golden = _load(path)
    raw, labels = _tensor(golden["feat"]), _tensor(golden["labels"])
    distances, same = euclidean_distances(raw), same_person(labels)
    farthest = distances.masked_fill(~same, -torch.inf).argmax(dim=1).numpy()
    nearest = distances.masked_fill(same, torch.inf).argmin(dim=1).numpy()
    rows = [
        Row("dist", max_error(distances, golden["dist"]), 1e-10),
        exact(np.array_equal(farthest, golden["p_inds"]), "p_inds"),
        exact(np.array_equal(nearest, golden["n_inds"]), "n_inds"),
    ]
    for form in ("raw", "norm"):
        for name, margin in (("m03", 0.3), ("m02", 0.2), ("soft", None)):
            leaf = raw.clone().requires_grad_()
            # The golden's normalisation adds a tiny epsilon to the norm.
            features = leaf / (leaf.norm(dim=1, keepdim=True) + 1e-12) if form == "norm" else leaf
            loss = batch_hard_triplet_loss(features, labels, margin=margin)
            loss.backward()
            positive, negative = hardest_pairs(euclidean_distances(features.detach()), same)
            key = f"{name}_{form}"
            rows += [
                Row(f"{key}_loss", max_error(loss.item(), golden[f"{key}_loss"]), 1e-10),
                Row(f"{key}_grad", max_error(leaf.grad, golden[f"{key}_grad"]), 1e-10),
                Row(f"{key}_dist_ap", max_error(positive, golden[f"{key}_dist_ap"]), 1e-10),
                Row(f"{key}_dist_an", max_error(negative, golden[f"{key}_dist_an"]), 1e-10),
            ]
    return rows


def _heads(golden: Arrays) -> dict[Modality, ModalityHead]:
    state, heads = _weights(golden, "w_"), {}
    for modality, prefix in ((RGB, "rgb_"), (NIR, "ir_")):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        width, channels = own["fc1.weight"].shape
        heads[modality] = ModalityHead(channels, width, int(golden["num_classes"])).double()
        heads[modality].load_state_dict(own, strict=True)
    return heads


def _head_terms(
    golden: Arrays, features: Tensor, scores: dict[Modality, Tensor], shared: Tensor, reduction: Any, margin: float
) -> dict[str, Tensor]:
    labels = _tensor(golden["pids"])
    rows = {RGB: _tensor(golden["rgb_index"]), NIR: _tensor(golden["ir_index"])}
    terms = {
        "id_shared": identity_loss(shared, labels),
        "triplet": batch_hard_triplet_loss(features, labels, margin=margin),
    }
    for name, modality, other in (("rgb", RGB, NIR), ("ir", NIR, RGB)):
        index = rows[modality]
        terms[f"id_{name}"] = identity_loss(scores[modality][index], labels[index])
        terms[f"kl_{name}"] = imitation_loss(scores[modality][index], scores[other][index], reduction=reduction)
    return terms


def _head_states(
    golden: Arrays,
    heads: dict[Modality, ModalityHead],
    features: Tensor,
    scores: dict[Modality, Tensor],
    hidden: dict[Modality, Tensor],
) -> list[Row]:
    """Scores in both modes, hidden vectors and running statistics of both heads after one training step."""
    measured = {"after_rgb_bn.running_var": heads[RGB].bn.running_var}
    for modality, prefix in ((RGB, "rgb"), (NIR, "ir")):
        head = heads[modality]
        measured |= {
            f"train_{prefix}_score": scores[modality].detach(),
            f"train_{prefix}_hidden": hidden[modality].detach(),
            f"after_{prefix}_bn.running_mean": head.bn.running_mean,
            f"eval_after_{prefix}_score": head.eval()(features).detach(),
        }
    return [Row(name, max_error(value, golden[name]), 1e-9) for name, value in measured.items()]


def check_heads(path: Path) -> list[Row]:
    """Identity heads: scores in both modes, every loss term, gradients and running statistics, both reductions."""
    golden = _load(path)
    rows: list[Row] = []
    for reduction, margin in (("batchmean", 0.3), ("mean", 0.2)):
        heads = _heads(golden)
        features = _tensor(golden["feat"]).requires_grad_()
        weight, bias = (_tensor(golden[name]).requires_grad_() for name in ("share_w", "share_b"))
        hidden = {modality: head.fc1(head.bn(features)) for modality, head in _heads(golden).items()}
        scores = {modality: head(features) for modality, head in heads.items()}
        shared = torch.nn.functional.linear(features, weight, bias)
        terms = _head_terms(golden, features, scores, shared, reduction, margin)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        rows += [
            Row(f"{reduction}_loss_{name}", max_error(value.item(), golden[f"{reduction}_loss_{name}"]), 1e-9)
            for name, value in {**terms, "total": total}.items()
        ]
        gradients = {"feat": features.grad, "share_classifier.weight": weight.grad}
        for modality, prefix in ((RGB, "rgb_"), (NIR, "ir_")):
            gradients |= {f"{prefix}{name}": parameter.grad for name, parameter in heads[modality].named_parameters()}
        rows += [
            Row(name, max_error(gradients[name.removeprefix(f"{reduction}_grad_")], golden[name]), 1e-9)
            for name in golden
            if name.startswith(f"{reduction}_grad_")
        ]
        if reduction == "batchmean":
            rows += _head_states(golden, heads, features, scores, hidden)
            rows += [
                Row("train_shared_score", max_error(shared.detach(), golden["train_shared_score"]), 1e-9),
                exact(
                    abs(terms["kl_rgb"].item() - float(golden["wrong_swapped_kl_rgb"])) > 1e-6,
                    "guard: direction of the imitation",
                ),
            ]
    return rows


def check_steps(path: Path) -> list[Row]:
    """Three steps of the optimisers in float64: every loss term, the features and some weights after them."""
    golden = _load(path)
    state = {**_weights(golden, "wm_"), **_weights(golden, "wn_")}
    spec = VireidConfig(depth=18, blocks=(1, 1, 1, 1), width=int(golden["width"]))
    model = _model(state, spec, int(golden["num_classes"]), 512, torch.float64).train()
    rates = dataclasses.replace(RATES, eps=1e-8)
    optimizer = build_optimizer(apply_policy(model.named_parameters(), vireid_rules(rates), lr=rates.lr).groups, rates)
    objective = VireidObjective(
        VireidObjectiveConfig(
            losses=ALL_LOSSES,
            margin=float(golden["margin"]),
            imitation_reduction=str(golden["kl_reduction"]),  # type: ignore[arg-type]
        )
    )
    instances, names = int(golden["K"]), [str(name) for name in golden["loss_names"]]
    infrared = np.arange(golden["Y"].shape[1]) % (2 * instances) < instances
    rows = []
    for step, (images, labels) in enumerate(zip(golden["X"], golden["Y"])):
        optimizer.zero_grad()
        output = objective.compute(
            model,
            {RGB: _tensor(images[~infrared]), NIR: _tensor(images[infrared])},
            {RGB: _tensor(labels[~infrared]), NIR: _tensor(labels[infrared])},
        )
        output.total.backward()
        optimizer.step()
        found = {
            **{name: output.losses[term].item() for name, term in TERMS.items()},
            "total": output.total.item(),
            "acc": output.diagnostics["accuracy"].item() / 100,
        }
        rows += [
            Row(f"step {step} {name}", max_error(found[name], golden["losses"][step, column]), 1e-7)
            for column, name in enumerate(names)
        ]
    model.eval()
    images = {RGB: _tensor(golden["X"][0][~infrared]), NIR: _tensor(golden["X"][0][infrared])}
    order = np.concatenate([np.flatnonzero(~infrared), np.flatnonzero(infrared)])
    with torch.no_grad():
        finals = {
            "final_eval_bn_feat": model.features(images).numpy()[np.argsort(order)],
            "final_eval_global_feat": model.pool(images).numpy()[np.argsort(order)],
            "final_conv1_weight": model.backbone.stem(RGB).conv1.weight.numpy(),
            "final_bottleneck_weight": model.neck.weight.numpy(),
            "final_bottleneck_bias": model.neck.bias.numpy(),
            "final_ide_rgb_fc2_weight": model.heads.get_parameter("rgb.fc2.weight").numpy(),
        }
    return rows + [Row(name, max_error(value, golden[name]), 1e-7) for name, value in finals.items()]


def check_shapes(path: Path) -> list[Row]:
    """Names, shapes and number of parameters of the full backbone."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    backbone = Backbone(VireidConfig())
    names = _reference_names(backbone)
    found = {names[name]: list(value.shape) for name, value in backbone.state_dict().items()}
    biases = sum(1 for module in backbone.modules() if isinstance(module, torch.nn.Conv2d) and module.bias is not None)
    return [
        exact(found == golden["entries"], "entries"),
        exact(biases == golden["n_conv_bias_tensors"], "n_conv_bias_tensors"),
        exact(
            sum(parameter.numel() for parameter in backbone.parameters()) == golden["n_params_backbone"],
            "n_params_backbone",
        ),
    ]


def check_optimizer(path: Path) -> list[Row]:
    """Class, betas, epsilon and the two groups of the optimiser under the recipe's configuration."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    model = Vireid(VireidConfig(depth=18, blocks=(1, 1, 1, 1), width=4), 5)
    rates = dataclasses.replace(RATES, eps=golden["eps"])
    policy = apply_policy(model.named_parameters(), vireid_rules(rates), lr=rates.lr)
    optimizer = build_optimizer(policy.groups, rates)
    rows = [
        exact(type(optimizer) is torch.optim.Adam, "class"),
        exact(list(optimizer.defaults["betas"]) == golden["betas"], "betas"),
    ]
    for key, heads in (("model_optimizer", False), ("ide_optimizer", True)):
        settings = [setting for name, setting in policy.settings.items() if name.startswith("heads.") is heads]
        rows.append(
            exact(
                all(
                    abs(setting.lr - golden[key]["lr"]) < 1e-12 and setting.weight_decay == golden[key]["weight_decay"]
                    for setting in settings
                    if setting.lr is not None
                )
                and bool(settings),
                key,
            )
        )
    return rows


KINDS: tuple[Kind, ...] = (
    Kind("batch-hard triplet (visible-infrared)", r"triplet_.*\.npz", check_triplet),
    Kind("identity heads (visible-infrared)", r"idenet_.*\.npz", check_heads),
    Kind("narrow ResNet (visible-infrared)", r"resnet_narrow_.*\.npz", check_narrow),
    Kind("full ResNet (visible-infrared)", r"resnet_full_recipe_.*\.npz", check_recipe),
    Kind("training steps (visible-infrared)", r"train_steps_.*\.npz", check_steps),
    Kind("ResNet-50 entries (visible-infrared)", r"resnet50_state_dict_shapes\.json", check_shapes),
    Kind("optimiser (visible-infrared)", r"optimizer_facts\.json", check_optimizer),
)
