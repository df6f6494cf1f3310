"""A second ReID5o, written from the formulas on released names and merged weights: the oracle of the model's tests.

Every weight of a modality is materialised, attention is a softmax of products, the mean comes after the last linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
IMAGES = ("rgb", "nir", "cp", "sk")


@dataclass(frozen=True)
class Sizes:
    """A model. lora: '' for none, 'mlp' or 'all'."""

    image: tuple[int, int] = (48, 32)
    patch: int = 16
    stride: int = 16
    vision_width: int = 64
    vision_layers: int = 3
    vision_heads: int = 1
    mmt_heads: int | None = None
    text_width: int = 64
    text_layers: int = 2
    text_length: int = 11
    vocab: int = 40
    embed: int = 64
    depth: int = 2
    lora: str = "mlp"
    rank: int = 3
    experts: int = 4
    lora_layers: int = 2
    identities: int = 5

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return ((self.image[0] - self.patch) // self.stride + 1, (self.image[1] - self.patch) // self.stride + 1)

    def flat(self) -> dict[str, object]:
        """The values of the flat configs.yaml that matter."""
        return {
            "img_size": self.image,
            "stride_size": self.stride,
            "add_lora": bool(self.lora),
            "lora_mode": self.lora or "mlp",
            "lora_r": self.rank,
            "num_loras": self.experts,
            "lora_layers": self.lora_layers,
            "mmt_depth": self.depth,
        }


class _Draw:
    """Random tensors by name; nothing is zero."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def tensor(self, name: str, *shape: int, mean: float = 0.0, std: float = 0.2) -> None:
        self.state[name] = mean + std * torch.randn(*shape, generator=self.generator)

    def norm(self, name: str, width: int) -> None:
        self.tensor(f"{name}.weight", width, mean=1.0)
        self.tensor(f"{name}.bias", width)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.tensor(f"{name}.weight", outputs, inputs, std=inputs**-0.5)
        self.tensor(f"{name}.bias", outputs)

    def attention(self, name: str, width: int) -> None:
        self.tensor(f"{name}.in_proj_weight", 3 * width, width, std=1.5 * width**-0.5)
        self.tensor(f"{name}.in_proj_bias", 3 * width)
        self.linear(f"{name}.out_proj", width, width)

    def blocks(self, prefix: str, width: int, count: int) -> None:
        for index in range(count):
            name = f"{prefix}.resblocks.{index}"
            self.attention(f"{name}.attn", width)
            self.norm(f"{name}.ln_1", width)
            self.linear(f"{name}.mlp.c_fc", width, 4 * width)
            self.linear(f"{name}.mlp.c_proj", 4 * width, width)
            self.norm(f"{name}.ln_2", width)

    def experts(self, block: str, sizes: Sizes) -> None:
        width, rank = sizes.vision_width, sizes.rank
        for expert in range(sizes.experts):
            for layer, inputs, outputs in (("c_fc", width, 4 * width), ("c_proj", 4 * width, width)):
                self.tensor(f"{block}.mlp.{layer}.loras_A.{expert}", rank, inputs)
                self.tensor(f"{block}.mlp.{layer}.loras_B.{expert}", outputs, rank)
            if sizes.lora == "all":
                for layer, outputs, base in (
                    ("in_proj", 3 * width, "in_proj_weight"),
                    ("out_proj", width, "out_proj.weight"),
                ):
                    name = f"{block}.attn.{layer}_weight_withloras.{expert}"
                    self.tensor(f"{name}.lora_A_param", rank, outputs)
                    self.tensor(f"{name}.lora_B_param", width, rank)
                    self.state[f"{name}.orig_param"] = self.state[f"{block}.attn.{base}"]


def released_state(sizes: Sizes, seed: int = 0) -> State:
    """Random weights under the released names, second names included."""
    draw, width = _Draw(seed), sizes.vision_width
    draw.tensor("clip_text_encoder.positional_embedding", sizes.text_length, sizes.text_width)
    draw.tensor("clip_text_encoder.text_projection", sizes.text_width, sizes.embed)
    draw.tensor("clip_text_encoder.token_embedding.weight", sizes.vocab, sizes.text_width)
    draw.blocks("clip_text_encoder.transformer", sizes.text_width, sizes.text_layers)
    draw.norm("clip_text_encoder.ln_final", sizes.text_width)
    for kind in IMAGES:
        draw.tensor(f"{kind}_tokenizer.class_embedding", width)
        draw.tensor(f"{kind}_tokenizer.positional_embedding", 1 + sizes.grid[0] * sizes.grid[1], width)
        draw.tensor(f"{kind}_tokenizer.conv1.weight", width, 3, sizes.patch, sizes.patch, std=0.05)
        draw.norm(f"{kind}_tokenizer.ln_pre", width)
    draw.tensor("vision_encoder.proj", width, sizes.embed)
    draw.blocks("vision_encoder.transformer", width, sizes.vision_layers)
    draw.norm("vision_encoder.ln_post", width)
    draw.attention("cross_attn", sizes.embed)
    draw.blocks("cross_modal_transformer", sizes.embed, sizes.depth)
    for name in ("ln_pre", "ln_post", "mm_head.ln"):
        draw.norm(name, sizes.embed)
    draw.linear("mm_head.dense", sizes.embed, sizes.embed)
    draw.linear("mm_head.fc", sizes.embed, sizes.embed)
    draw.linear("classifier", sizes.embed, sizes.identities)
    for index in range(sizes.vision_layers - (sizes.lora_layers if sizes.lora else 0), sizes.vision_layers):
        draw.experts(f"vision_encoder.transformer.resblocks.{index}", sizes)
    return draw.state


def encode_image(state: State, sizes: Sizes, kind: str, images: Tensor) -> Tensor:
    """All projected tokens (B, L, D) of images of one modality; the first is the pooled output."""
    rows, columns = sizes.grid
    weight = state[f"{kind}_tokenizer.conv1.weight"].flatten(1)
    patches = [
        images[
            :, :, y * sizes.stride : y * sizes.stride + sizes.patch, x * sizes.stride : x * sizes.stride + sizes.patch
        ].flatten(1)
        @ weight.t()
        for y in range(rows)
        for x in range(columns)
    ]
    first = state[f"{kind}_tokenizer.class_embedding"].expand(len(images), -1)
    hidden = torch.stack([first, *patches], dim=1) + state[f"{kind}_tokenizer.positional_embedding"]
    hidden = _norm(state, f"{kind}_tokenizer.ln_pre", hidden)
    merged = merged_weights(state, IMAGES.index(kind))
    for index in range(sizes.vision_layers):
        hidden = _block(merged, f"vision_encoder.transformer.resblocks.{index}", hidden, sizes.vision_heads)
    return _norm(state, "vision_encoder.ln_post", hidden) @ state["vision_encoder.proj"]


def encode_text(state: State, sizes: Sizes, ids: Tensor) -> tuple[Tensor, Tensor]:
    """All projected positions (B, T, D) and the one of the first largest id (B, D)."""
    hidden = state["clip_text_encoder.token_embedding.weight"][ids] + state["clip_text_encoder.positional_embedding"]
    for index in range(sizes.text_layers):
        hidden = _block(
            state, f"clip_text_encoder.transformer.resblocks.{index}", hidden, max(1, sizes.text_width // 64), True
        )
    tokens = _norm(state, "clip_text_encoder.ln_final", hidden) @ state["clip_text_encoder.text_projection"]
    ends = [row.index(max(row)) for row in ids.tolist()]
    return tokens, torch.stack([tokens[row, end] for row, end in enumerate(ends)])


def fuse(state: State, sizes: Sizes, members: list[Tensor]) -> Tensor:
    """Fused vector (B, D) of the members' tokens."""
    heads = sizes.mmt_heads or max(1, sizes.embed // 64)
    hidden = _attention(state, "cross_attn", _norm(state, "ln_pre", torch.cat(members, dim=1)), heads)
    for index in range(sizes.depth):
        hidden = _block(state, f"cross_modal_transformer.resblocks.{index}", hidden, heads)
    hidden = _linear(state, "mm_head.dense", _norm(state, "ln_post", hidden))
    hidden = _norm(state, "mm_head.ln", hidden * torch.sigmoid(1.702 * hidden))
    return _linear(state, "mm_head.fc", hidden).mean(dim=1)


def merged_weights(state: State, expert: int) -> State:
    """The state with every expert's product added to the weight it belongs to."""
    merged = dict(state)
    for name, first in state.items():
        if name.endswith(f".loras_A.{expert}"):
            layer = name.removesuffix(f".loras_A.{expert}")
            merged[f"{layer}.weight"] = (
                state[f"{layer}.weight"] + state[f"{layer}.loras_B.{expert}"] @ first / first.shape[0]
            )
        if name.endswith(f"_withloras.{expert}.lora_A_param"):
            second = state[name.replace("lora_A", "lora_B")]
            stem = name.removesuffix(f"_withloras.{expert}.lora_A_param")
            base = stem if stem.endswith("in_proj_weight") else stem.replace("out_proj_weight", "out_proj.weight")
            merged[base] = state[base] + (first.t() @ second.t()) / first.shape[0]
    return merged


def _norm(state: State, name: str, value: Tensor) -> Tensor:
    centred = value - value.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state: State, name: str, value: Tensor) -> Tensor:
    return value @ state[f"{name}.weight"].t() + state[f"{name}.bias"]


def _attention(state: State, name: str, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    batch, length, width = value.shape
    joined = value @ state[f"{name}.in_proj_weight"].t() + state[f"{name}.in_proj_bias"]
    query, key, content = (part.reshape(batch, length, heads, -1).transpose(1, 2) for part in joined.chunk(3, dim=-1))
    scores = query @ key.transpose(-1, -2) / (width // heads) ** 0.5
    if causal:
        scores = scores + torch.full((length, length), float("-inf")).triu(1)
    mixed = (scores.softmax(-1) @ content).transpose(1, 2).reshape(batch, length, width)
    return _linear(state, f"{name}.out_proj", mixed)


def _block(state: State, name: str, hidden: Tensor, heads: int, causal: bool = False) -> Tensor:
    hidden = hidden + _attention(state, f"{name}.attn", _norm(state, f"{name}.ln_1", hidden), heads, causal)
    expanded = _linear(state, f"{name}.mlp.c_fc", _norm(state, f"{name}.ln_2", hidden))
    return hidden + _linear(state, f"{name}.mlp.c_proj", expanded * torch.sigmoid(1.702 * expanded))
