"""Low-rank experts, one per image modality, on the linear maps of a transformer block.

The rows of a batch are grouped by expert, and the grouping is an argument of every call. Were it a state of the
module, a block that activation checkpointing runs again would use the expert of a later modality.

Shapes: B rows, L tokens, I inputs, O outputs, R rank, G groups.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from configs.schema.reid5o import LoraConfig
from model.layers import LayerNorm, attend

Groups = tuple[tuple[int, int], ...]
"""(expert, number of consecutive rows) for all rows of a batch, in order."""


class ExpertLinear(nn.Linear):
    """y = x W' + b + scale (x D_e') U_e' with the expert e of each row; D (R, I) `lora_down`, U (O, R) `lora_up`.

    Source: reference, both LoRA modes. Its `all` mode adds the product to the weights of each modality; here the
    product is applied to the inputs, so no weight matrix is built while training. `merge` builds them once.
    frozen: names out of weight, bias that are not trained. random_up: draw U and zero D (as the reference's
    attention experts, whose A is our U), else the other way round.
    """

    merged: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, spec: LoraConfig, frozen: tuple[str, ...], random_up: bool = False
    ) -> None:
        super().__init__(in_features, out_features)
        self.scale = spec.factor
        self.random_up = random_up
        self.lora_down = nn.ParameterList(torch.empty(spec.rank, in_features) for _ in range(spec.num_experts))
        self.lora_up = nn.ParameterList(torch.empty(out_features, spec.rank) for _ in range(spec.num_experts))
        self.register_buffer("merged", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget_merged)
        self.reset_experts()
        for name in () if spec.train_base else frozen:
            getattr(self, name).requires_grad_(False)

    def reset_experts(self) -> None:
        """Draw one factor of each product from U(+-1/sqrt(fan)) and zero the other, so that all experts start equal."""
        drawn, zeroed, fan = (
            (self.lora_up, self.lora_down, self.out_features)
            if self.random_up
            else (self.lora_down, self.lora_up, self.in_features)
        )
        for parameter in drawn:
            nn.init.uniform_(parameter, -1 / math.sqrt(fan), 1 / math.sqrt(fan))
        for parameter in zeroed:
            nn.init.zeros_(parameter)
        self.unmerge()

    def forward(self, inputs: Tensor, groups: Groups) -> Tensor:  # type: ignore[override]
        """Map (B, L, I) to (B, L, O), each row through its expert."""
        if sum(rows for _, rows in groups) != inputs.shape[0]:
            raise ValueError(f"groups {groups} do not cover a batch of {inputs.shape[0]} rows")
        if self.merged is not None:
            merged = zip(inputs.split([rows for _, rows in groups]), groups, strict=True)
            return _joined([F.linear(part, self.merged[expert], self.bias) for part, (expert, _) in merged])
        base = F.linear(inputs, self.weight, self.bias)
        if len({rows for _, rows in groups}) == 1:
            return self._add_experts(base, inputs, tuple(expert for expert, _ in groups))
        sizes = [rows for _, rows in groups]
        parts = zip(base.split(sizes), inputs.split(sizes), groups, strict=True)
        return _joined([self._add_experts(out, part, (expert,)) for out, part, (expert, _) in parts])

    def _add_experts(self, base: Tensor, inputs: Tensor, experts: tuple[int, ...]) -> Tensor:
        # Groups of equal size are one batched product; scale and addition are part of it.
        down = torch.stack([self.lora_down[expert] for expert in experts]).transpose(1, 2)
        up = torch.stack([self.lora_up[expert] for expert in experts]).transpose(1, 2)
        low = torch.bmm(inputs.reshape(len(experts), -1, self.in_features), down)
        grouped = base.reshape(len(experts), -1, self.out_features)
        return torch.baddbmm(grouped, low, up, alpha=self.scale).view(base.shape)

    def merge(self) -> None:
        """Build W + scale U_e D_e of every expert once, for inference; forgotten by `unmerge`, training or loading."""
        with torch.no_grad():
            products = torch.stack([up @ down for up, down in zip(self.lora_up, self.lora_down, strict=True)])
            self.merged = self.weight + self.scale * products

    def unmerge(self) -> None:
        """Forget the merged weights."""
        self.merged = None

    def train(self, mode: bool = True) -> ExpertLinear:
        """Set the mode; merged weights would hide the parameters from the gradient, so training forgets them."""
        if mode:
            self.unmerge()
        return super().train(mode)


def _forget_merged(layer: ExpertLinear, _: object) -> None:
    layer.unmerge()


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ExpertBlock(Block):
    """CLIP's block with experts on its MLP (mode mlp) or on all four linear maps (mode all).

    Frozen unless spec.train_base, as the reference: the MLP's weights; in mode all also the QKV weight and bias (not
    the output projection, which the reference means to freeze but trains).
    """

    def __init__(self, width: int, heads: int, spec: LoraConfig) -> None:
        super().__init__(
            width,
            heads,
            qkv_bias=True,
            act_layer=QuickGELU,
            norm_layer=LayerNorm,  # type: ignore[arg-type]
        )
        self.mlp.fc1 = ExpertLinear(width, 4 * width, spec, ("weight",))
        self.mlp.fc2 = ExpertLinear(4 * width, width, spec, ("weight",))
        if spec.mode == "all":
            self.attn.qkv = ExpertLinear(width, 3 * width, spec, ("weight", "bias"), random_up=True)
            self.attn.proj = ExpertLinear(width, width, spec, (), random_up=True)

    def forward(self, hidden: Tensor, groups: Groups) -> Tensor:  # type: ignore[override]
        """Map (B, L, W) to (B, L, W), each row through its expert."""
        hidden = hidden + self._attention(self.norm1(hidden), groups)
        mlp: Any = self.mlp
        expanded = mlp.act(mlp.fc1(self.norm2(hidden), groups))
        return hidden + mlp.fc2(expanded, groups)

    def _attention(self, inputs: Tensor, groups: Groups) -> Tensor:
        attention: Any = self.attn
        if not isinstance(attention.qkv, ExpertLinear):
            return attention(inputs)
        return attention.proj(attend(attention.qkv(inputs, groups), attention.num_heads), groups)
