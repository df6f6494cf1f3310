"""Batch norm over the rows of all processes.

Shapes: B rows of this process, C channels, H x W positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total, group=GlobalBatchNorm2d.group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=GlobalBatchNorm2d.group)
        return total


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all processes' rows, on any device.

    torch's SyncBatchNorm refuses a CPU. The mean comes first, then the squares around it, as one process computes them;
    a process may have no row, but all must call the norm equally often.
    """

    group: ClassVar[Any] = None
    """Processes whose rows are counted; of the class, because copies of a model cannot copy it."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same."""
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = values.new_tensor([float(values.numel() // values.shape[1])])
        total: Tensor = _SumOverProcesses.apply(torch.cat([values.sum(dim=(0, 2, 3)), count]))
        number = total[-1].detach()
        mean = total[:-1] / number
        centred = values - mean[:, None, None]
        squares: Tensor = _SumOverProcesses.apply(centred.square().sum(dim=(0, 2, 3)))
        variance = squares / number
        self._follow(mean, variance * number / (number - 1).clamp_min(1))
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            scaled = scaled * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def norms_in_features(model: nn.Module) -> list[str]:
    """Return the names of the batch norms that features pass on their way: those of images. Norms of features (necks)
    are part of the losses and see all rows.
    """
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def share_norms(model: nn.Module, device: torch.device, group: Any) -> None:
    """Let the batch norms of images see the rows of all processes; parameters, buffers and their names stay the same.

    On a CUDA device they become torch's SyncBatchNorm, elsewhere ours, which counts the processes of `group`.
    """
    GlobalBatchNorm2d.group = group
    for name in norms_in_features(model):
        place, _, last = name.rpartition(".")
        norm = model.get_submodule(name)
        if device.type == "cuda":
            setattr(model.get_submodule(place), last, nn.SyncBatchNorm.convert_sync_batchnorm(norm))
        else:
            norm.__class__ = GlobalBatchNorm2d
