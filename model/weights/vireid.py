"""Weights of the visible-infrared family from files: ImageNet, published checkpoints of IV-REID and of AGW."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from configs.schema.vireid import VireidConfig
from configs.vocabulary import Family
from model.resnet import DEPTHS
from model.vireid import Vireid
from model.weights.clip import InitialTensor, InitialWeights, count_blocks
from model.weights.converted import require_new_target, write_converted
from model.weights.pickled_modules import read_pickled_module
from model.weights.vireid_names import is_agw, our_name, rename
from utils.checkpoint_io import load_tensors
from utils.errors import UserError

TORCHVISION_RULES: tuple[tuple[str, str], ...] = (
    (r"(conv1|bn1)\.(.*)", r"backbone.stems.STEM.\1.\2"),
    (r"layer([1-4])\.(.*)", r"backbone.stages.layer\1.\2"),
)
AGW_IMAGE_SIZE = (288, 144)


def initialise_vireid(model: Vireid, config: VireidConfig) -> InitialWeights:
    """Give every parameter its first value by `config.init`; heads, neck and what ImageNet lacks are new.

    Source: IV-REID: kaiming-normal (fan out) linears with zero bias (normal 0.001 for a classifier without bias), the
    biases of the convolutions at torch's default. Raises UserError for a file that does not fit.
    """
    for layer in (model.classifier, *(layer for layer in model.heads.modules() if isinstance(layer, nn.Linear))):
        if layer.bias is None:
            nn.init.normal_(layer.weight, std=0.001)
        else:
            nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_out")
            nn.init.zeros_(layer.bias)
    source = {} if config.init == "random" else _read_initial(config)
    found = _to_ours(source, model)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    wrong = [
        f"{name} {tuple(value.shape)} (the model: {tuple(own[name].shape)})"
        for name, value in found.items()
        if name not in own or own[name].shape != value.shape
    ]
    # ImageNet's networks have neither biased convolutions nor non-local blocks.
    lacking = [
        f"{name} is missing"
        for name in own
        if source
        and name not in found
        and re.fullmatch(r"backbone\.(stems|stages)\..*", name)
        and not re.fullmatch(r".*(conv\d|downsample\.0)\.bias", name)
    ]
    if wrong or lacking:
        raise UserError(
            f"model.init = {config.init!r} does not fit model.depth = {config.depth} and model.width = {config.width}: "
            f"{(wrong + lacking)[0]}; choose the weights of that network or model.init=random"
        )
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    rows = tuple(
        InitialTensor(name=name, shape=tuple(value.shape), action="loaded" if name in found else "new")
        for name, value in own.items()
    )
    return InitialWeights(source=config.init, rows=rows)


def _read_initial(config: VireidConfig) -> Mapping[str, Tensor]:
    if config.init == "imagenet":
        try:
            return get_model_weights(f"resnet{config.depth}")["IMAGENET1K_V1"].get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torchvision's ImageNet weights of resnet{config.depth} could not be downloaded ({error}); download "
                "them elsewhere and set model.init=FILE.pth, or model.init=random"
            ) from error
    if not Path(config.init).is_file():
        raise UserError(
            f"model.init = {config.init!r}: no such file; set imagenet, random, or a file with the state dict of a "
            "torchvision ResNet"
        )
    try:
        content = load_tensors(config.init)
    except UserError as error:
        raise UserError(f"model.init: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("conv1.weight"), Tensor):
        raise UserError(
            f"model.init = {config.init!r} is no state dict of a torchvision ResNet (it has no conv1.weight); give "
            "such a file, imagenet or random; a run of this project is given as train.init_from=DIRECTORY"
        )
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _to_ours(source: Mapping[str, Tensor], model: Vireid) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in source.items():
        ours = our_name(name, TORCHVISION_RULES)
        if not ours:
            continue
        names = [ours.replace("STEM", stem) for stem in model.backbone.stems] if "STEM" in ours else [ours]
        found |= {entry: value for entry in names}
    return found


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Return the state of a published checkpoint: a state dict, {'net': it} (AGW), or a whole pickled module (IV-REID).

    Raises UserError for anything else; nothing in the file is run.
    """
    try:
        content = load_tensors(path)
    except UserError:
        content = read_pickled_module(path)
    for key in ("net", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights of a model; give a checkpoint of IV-REID or AGW")
    state = {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not is_agw(state) and "base.conv1.weight" not in state:
        raise UserError(
            f"{path} is no checkpoint of IV-REID or AGW (no base.conv1.weight, no visible_module); give another file"
        )
    return state


def published_sizes(state: Mapping[str, Tensor]) -> VireidConfig:
    """Return section `model` for a published state: sizes from the tensors, the rest as its code has it. Raises
    UserError.
    """
    agw = is_agw(state)
    stages = "base_resnet.base.layer" if agw else "base.layer"
    blocks = tuple(count_blocks(state, f"{stages}{number}.") for number in (1, 2, 3, 4))
    bottleneck = f"{stages}1.0.conv3.weight" in state
    depth = next(
        (
            depth
            for depth, (block, counts) in DEPTHS.items()
            if counts == blocks and (block.expansion == 4) == bottleneck
        ),
        None,
    )
    width = state["visible_module.visible.conv1.weight" if agw else "base.conv1.weight"].shape[0]
    if not all(blocks) or "classifier.weight" not in state and "share_classifier.weight" not in state:
        raise UserError("the checkpoint lacks a stage or its classifier; give a whole checkpoint of IV-REID or AGW")
    found: dict[str, Any] = {
        "init": "random",
        "depth": depth or (50 if bottleneck else 18),
        "blocks": None if depth else blocks,
        "width": width,
        "conv_bias": f"{stages}1.0.conv1.bias" in state,
        "head_width": state["rgb_fc1.weight"].shape[0] if "rgb_fc1.weight" in state else 0,
        "neck": "bn" if "bottleneck.running_mean" in state else "gn",
        "classifier_bias": "classifier.bias" in state or "share_classifier.bias" in state,
    }
    if agw:
        found |= {
            "stem": "two_stream",
            "stem_relu": True,
            "neck_bias": False,
            "pooling": "gem",
            "non_local": any(name.startswith("NL_") for name in state),
            "image_size": AGW_IMAGE_SIZE,
        }
    return VireidConfig(**found)


def convert_vireid(source: str | Path, target: str | Path) -> str:
    """Write a published checkpoint as one of ours, with its configuration beside it; return what is to be printed.

    Raises UserError when an entry is missing, unknown or of another shape.
    """
    require_new_target(source, target)
    state = read_published(source)
    sizes = published_sizes(state)
    blocks = sizes.blocks or DEPTHS[sizes.depth][1]
    renamed = rename(state, blocks, str(source))
    identities = renamed["classifier.weight"].shape[0]
    with torch.device("meta"):
        own = Vireid(sizes, identities).state_dict()
    wrong = sorted({*own} ^ {*renamed}) or [name for name in own if own[name].shape != renamed[name].shape]
    if wrong:
        raise UserError(
            f"{source} does not fit a visible-infrared model of the sizes found in it: {wrong[0]} (and "
            f"{len(wrong) - 1} more) is missing, unknown or of another shape; give an unchanged checkpoint"
        )
    options: dict[str, Any] = {
        "family": Family.VIREID.value,
        "model": dataclasses.asdict(sizes),
        "data": {"dataset": "sysu"},
        "train": {"sampler": "modality"},
    }
    if not sizes.head_width:
        options["objective"] = {"losses": {"id": 1.0, "triplet": 1.0}}
    yaml_file = write_converted(target, renamed, options, identities, str(source))
    return (
        f"{target}: {len(renamed)} tensors of {'AGW' if is_agw(state) else 'IV-REID'}, {identities} identities\n"
        f"evaluate it: python test.py --config {yaml_file} --checkpoint {target} data.root=DIR"
    )
