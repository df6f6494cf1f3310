"""The compute device and its arithmetic."""

from __future__ import annotations

import contextlib
import time

import torch

from utils.device_words import check_device
from utils.errors import UserError
from utils.processes import local_rank, started_together

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(text: str) -> torch.device:
    """Return the device for auto, cpu, cuda, cuda:N or mps; of several processes each gets a CUDA device of its own.
    Raises UserError for another word or an absent device.
    """
    check_device(text)
    if started_together() > 1 and (text == "cuda" or (text == "auto" and torch.cuda.is_available())):
        text = f"cuda:{local_rank()}"
    if text == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    if text == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not available here: use --device auto")
    if text.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(text.partition(":")[2] or 0)
        if index >= count:
            raise UserError(f"device {text} is not available here ({count} CUDA devices): use --device auto")
    return torch.device(text)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the autocast context of a precision fp32, bf16 or fp16; weights stay float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def describe_device(device: torch.device) -> str:
    """One phrase for the log: `cuda:0 (NVIDIA H100)` or `cpu`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def exact_float32() -> None:
    """Compute float32 products and convolutions in float32 on every device, not in TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def require_compiler(device: torch.device) -> None:
    """Compile one trivial function for `device`. Raises UserError when torch.compile does not work there."""
    # A constant of this moment: a kernel kept from an earlier start would hide a compiler that is gone.
    fresh = float(time.time_ns() % 10**9)
    try:
        torch.compile(lambda values: values.sin() + fresh, dynamic=False)(torch.zeros(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        # What follows is advice for developers of the compiler.
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:200]
        raise UserError(
            f"torch.compile does not work on {device} here ({reason}); install a C++ compiler (and Triton for cuda) or "
            "set train.compile=false"
        ) from error
