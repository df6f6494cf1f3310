"""Residual networks out of torchvision's blocks: the visible-infrared baseline's, and a small one before a
transformer.

Weights of convolutions lie channels last (values and shapes are as ever): measured by `benchmarks/memory_format.py`.

Shapes: B rows, H x W pixels, C channels of the last map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from configs.schema.vireid import VireidConfig
from configs.vocabulary import Modality

DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Depth -> block and number of blocks of each of the four stages."""

NON_LOCAL_BLOCKS = (0, 2, 3, 0)
"""AGW's non-local blocks: so many of the last blocks of each stage are followed by one."""


LEAST_STRIDED = 16
"""Channels of a strided 1x1 convolution that torch's own is safe for, see `NarrowStride`."""


def out_channels(config: VireidConfig) -> int:
    """Return C, the channels of the last map."""
    return 8 * config.width * DEPTHS[config.depth][0].expansion


class Stem(nn.Module):
    """7x7 convolution of stride 2, norm, optional ReLU, max-pool of stride 2: (B, 3, H, W) -> (B, width, H/4, W/4)."""

    def __init__(self, width: int, relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the stem's map."""
        return self.maxpool(self.relu(self.bn1(self.conv1(images))))


def residual_map(width: int) -> nn.Sequential:
    """Return a small network: stem, then four stages of one block each, (B, 3, H, W) -> (B, 8 width, H/16, W/16)."""
    stages, channels = [], width
    for number, stride in enumerate((1, 2, 2, 1)):
        planes = width * 2**number
        stages += _stage(BasicBlock, channels, planes, 1, stride)
        channels = planes
    return nn.Sequential(Stem(width, relu=True), *stages).to(memory_format=torch.channels_last)


class NonLocal(nn.Module):
    """Attention of every position to every other, divided by their number, added to the map. Source: AGW (TPAMI
    2021).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, kernel_size=1) for _ in range(3))
        self.project = nn.Conv2d(inner, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        # The block starts as the identity.
        nn.init.zeros_(self.norm.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        query, key, value = (layer(hidden).flatten(2) for layer in (self.query, self.key, self.value))
        mixed = value @ (query.transpose(1, 2) @ key / query.shape[2]).transpose(1, 2)
        return hidden + self.norm(self.project(mixed.unflatten(2, hidden.shape[2:])))


class Backbone(nn.Module):
    """Stem(s) and four stages: images of several modalities -> one map (B, C, h, w), rows in the order of the
    inputs.
    """

    def __init__(self, spec: VireidConfig) -> None:
        super().__init__()
        self.spec = spec
        block, counts = DEPTHS[spec.depth][0], spec.blocks or DEPTHS[spec.depth][1]
        names = [Modality.RGB.value, Modality.NIR.value] if spec.stem == "two_stream" else ["shared"]
        self.stems = nn.ModuleDict({name: Stem(spec.width, spec.stem_relu) for name in names})
        channels, stages = spec.width, []
        for number, (count, stride) in enumerate(zip(counts, (1, 2, 2, spec.last_stride))):
            planes = spec.width * 2**number
            stages.append(nn.Sequential(*_stage(block, channels, planes, count, stride)))
            channels = planes * block.expansion
        self.stages = nn.ModuleList(stages)
        self.non_local = nn.ModuleDict(_non_local_blocks(spec, counts)) if spec.non_local else nn.ModuleDict()
        if spec.conv_bias:
            _add_biases(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Mapping[Modality, Tensor]) -> Tensor:
        """Return the last map (B, C, h, w) of normalised images by modality, one after the other."""
        if self.spec.stem == "shared":
            # One pass: in training the stem's norm sees the rows of both modalities.
            hidden = self.stems["shared"](torch.cat(list(inputs.values())))
        else:
            hidden = torch.cat([self.stem(modality)(images) for modality, images in inputs.items()])
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage.children()):
                hidden = block(hidden)
                name = f"{number}_{index}"
                if name in self.non_local:
                    hidden = self.non_local[name](hidden)
        return hidden

    def stem(self, modality: Modality) -> Stem:
        """Return the stem that a modality enters by."""
        return self.stems["shared" if self.spec.stem == "shared" else modality.value]  # type: ignore[return-value]


class NarrowStride(nn.Conv2d):
    """1x1 convolution of few channels that takes every n-th position first: the same values as torch's.

    oneDNN's gradient of the weights of a strided one, channels last and below 16 channels (8 without AVX-512), writes
    behind its memory with two threads or more (its issue 6035, in torch 2.6 to 2.14), and a process dies later,
    elsewhere.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride), rounded up."""
        rows, columns = self.stride
        return functional.conv2d(input[:, :, ::rows, ::columns], self.weight, self.bias)


def _stage(
    block: type[BasicBlock | Bottleneck], channels: int, planes: int, count: int, stride: int
) -> list[nn.Module]:
    out = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out:
        safe = stride == 1 or channels >= LEAST_STRIDED
        smaller = conv1x1(channels, out, stride) if safe else NarrowStride(channels, out, 1, stride, bias=False)
        downsample = nn.Sequential(smaller, nn.BatchNorm2d(out))
    return [block(channels, planes, stride, downsample), *(block(out, planes) for _ in range(count - 1))]


def _non_local_blocks(spec: VireidConfig, counts: tuple[int, ...]) -> dict[str, NonLocal]:
    expansion = DEPTHS[spec.depth][0].expansion
    return {
        f"{number}_{index}": NonLocal(spec.width * 2**number * expansion)
        for number, (count, wanted) in enumerate(zip(counts, NON_LOCAL_BLOCKS))
        for index in range(max(0, count - wanted), count)
    }


def _add_biases(module: nn.Module) -> None:
    """Give every convolution without one a bias with torch's default values, as nn.Conv2d(bias=True) does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            layer.bias = nn.Parameter(torch.empty(layer.out_channels).uniform_(-bound, bound))


def gem_pool(features: Tensor, power: float = 3.0) -> Tensor:
    """Generalised mean over positions, (B, C, h, w) -> (B, C). Source: AGW, whose power is fixed at 3."""
    return (features.flatten(2).pow(power).mean(dim=2) + 1e-12).pow(1 / power)
