"""First weights of IRM."""

from __future__ import annotations

from torch import nn

from configs.schema.irm import IrmConfig
from model.editing import EditingAttention, TowerTokens
from model.instruction_encoders import TextEncoder
from model.irm import IRM
from model.weights.clip import InitialTensor, InitialWeights

STD = 0.02


def initialise_irm(model: IRM, config: IrmConfig) -> InitialWeights:
    """Give every parameter its first value; report where each came from."""
    draw_irm(model)
    rows = tuple(
        InitialTensor(name=name, shape=tuple(value.shape), action="new") for name, value in model.named_parameters()
    )
    return InitialWeights(source="random", rows=rows)


def draw_irm(model: IRM) -> None:
    """Draw every parameter. Source: timm's vision transformer, BERT, and the released code for heads and classifiers.

    Linear maps and embeddings: normal of .02, cut at two in towers; biases 0. The gates of the editing layers start at
    0. A residual stem and the norms stay as torch makes them.
    """
    text = {module for part in model.modules() if isinstance(part, TextEncoder) for module in part.modules()}
    classifiers = {model.classifier, *([] if model.heads_shared else model.out_classifiers)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if module in classifiers:
                nn.init.normal_(module.weight, std=0.001)
            elif module in text:
                nn.init.normal_(module.weight, std=STD)
            else:
                nn.init.trunc_normal_(module.weight, std=STD)
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
