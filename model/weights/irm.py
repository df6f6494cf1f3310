"""First weights of IRM: drawn, or those of pretrained towers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.schema.irm import IrmConfig
from model.editing import EditingAttention, ImageTower, TowerTokens
from model.instruction_encoders import TextEncoder
from model.irm import IRM
from model.weights.clip import Action, InitialTensor, InitialWeights
from model.weights.irm_sources import TowerSource, read_source
from model.weights.positions import resize_grid
from utils.errors import UserError

STD = 0.02


TOWERS = {"init": "image", "text_init": "text_encoder", "clothes_init": "clothes"}
"""Option of section `model` -> tower whose first weights it names."""
OF_INSTRUCTIONS = ("gate", "instruction_kv.weight", "instruction_kv.bias")
"""Parameters of a tower that no pretrained one has."""


class Fitted(NamedTuple):
    """First value of a parameter; see InitialTensor."""

    value: Tensor
    action: Action = "loaded"
    detail: str = ""


def initialise_irm(model: IRM, config: IrmConfig) -> InitialWeights:
    """Give every parameter its first value: drawn, or that of the files that the section names for its towers.

    Report where each came from. Raises UserError for a file of another kind or size before anything is copied. The
    attention module's own blocks are drawn; the release's run through the image tower's.
    """
    draw_irm(model)
    sources = {option: source for option in TOWERS if (source := read_source(option, config)) is not None}
    fitted: dict[str, Fitted] = {}
    for option, source in sources.items():
        fitted |= _fit(model, config, option, source)
    rows = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value, action, detail = fitted.get(name, Fitted(parameter, "new"))
            parameter.copy_(value)
            rows.append(InitialTensor(name=name, shape=tuple(parameter.shape), action=action, detail=detail))
    for option, source in sources.items():
        left = [f"{name} of model.{option}" for name in source.ignored]
        rows += [InitialTensor(name=name, shape=(), action="ignored") for name in left]
    named = [f"model.{option}={getattr(config, option)}" for option in TOWERS] if sources else ["random"]
    notes = [source.note for source in sources.values() if source.note]
    return InitialWeights(source="; ".join([", ".join(named), *notes]), rows=tuple(rows))


def _fit(model: IRM, config: IrmConfig, option: str, source: TowerSource) -> dict[str, Fitted]:
    """Return the first values that a source gives, by parameter. Raises UserError where it does not fit."""
    value, prefix = getattr(config, option), f"{TOWERS[option]}."
    if source.grid is not None and config.stem == "residual":
        raise UserError(
            f"model.{option} = {value!r}: pretrained towers have linear patches; set model.stem=patch or "
            f"model.{option}=random"
        )
    _check_sizes(config, option, source)
    parameters = dict(model.named_parameters())
    fitted = {
        f"{prefix}{name}": _fitted(name, tensor, model, prefix, source) for name, tensor in source.tensors.items()
    }
    fitted |= {name: Fitted(tensor) for name, tensor in source.others.items()}
    wrong = [name for name in fitted if name not in parameters or parameters[name].shape != fitted[name].value.shape]
    missing = [
        name
        for name in parameters
        if name.startswith(prefix)
        and name not in fitted
        and not name.endswith(OF_INSTRUCTIONS)
        and not name.removeprefix(prefix).startswith(source.optional)
    ]
    if wrong or missing:
        raise UserError(
            f"model.{option} = {value!r} does not fit the model: {(wrong + missing)[0]} is missing, unknown or of "
            f"another shape; choose weights of these sizes or model.{option}=random"
        )
    return fitted


def _check_sizes(config: IrmConfig, option: str, source: TowerSource) -> None:
    found = {
        ("clothes_layers" if option == "clothes_init" and key == "layers" else key): size
        for key, size in source.sizes.items()
    }
    wrong = {key: size for key, size in found.items() if getattr(config, key) != size}
    if wrong:
        sizes = ", ".join(f"{key} {size} (the model: {getattr(config, key)})" for key, size in wrong.items())
        remedy = " ".join(f"model.{key}={size}" for key, size in wrong.items())
        raise UserError(
            f"model.{option} = {getattr(config, option)!r} is of another size: {sizes}; choose other weights or "
            f"set {remedy}"
        )


def _fitted(name: str, value: Tensor, model: IRM, prefix: str, source: TowerSource) -> Fitted:
    """Image positions on the model's grid; positions of texts cut where the model has fewer."""
    if name == "embed.patch_positions" and source.grid is not None:
        tower = model.get_submodule(prefix.removesuffix("."))
        assert isinstance(tower, ImageTower)
        old, new = source.grid, tower.spec.grid
        if old != new:
            resized = resize_grid(value[0], old, new, source.method, antialias=source.antialias)[None]
            return Fitted(resized, "resized", f"{old[0]}x{old[1]} -> {new[0]}x{new[1]}, {source.method}")
    if name == "embeddings.position_embeddings.weight":
        rows = model.config.text_positions
        if len(value) > rows:
            return Fitted(value[:rows], "cut", f"{len(value)} -> {rows} positions")
    return Fitted(value)


def draw_irm(model: IRM) -> None:
    """Draw every parameter. Source: timm's vision transformer, BERT, and the released code for heads and classifiers.

    Linear maps: normal of model.init_std, cut at two in towers; embeddings: normal of .02; biases 0. The gates of the
    editing layers start at 0. A residual stem and the norms stay as torch makes them.
    """
    std = model.config.init_std
    text = {module for part in model.modules() if isinstance(part, TextEncoder) for module in part.modules()}
    classifiers = {model.classifier, *([] if model.heads_shared else model.out_classifiers)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if module in classifiers:
                nn.init.normal_(module.weight, std=0.001)
            elif module in text:
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=STD)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx].detach())
        elif isinstance(module, TowerTokens):
            nn.init.trunc_normal_(module.class_token, std=STD)
            for value in (module.patch_positions, *module.part_tokens):
                nn.init.trunc_normal_(value, std=STD)
        elif isinstance(module, EditingAttention) and module.editing != "none":
            nn.init.zeros_(module.gate)
