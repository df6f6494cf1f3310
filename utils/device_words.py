"""What a compute device is called. Imports no torch: a wrong word is refused before anything slow is loaded."""

from __future__ import annotations

import re

from utils.errors import UserError

DEVICE_WORDS = "auto, cpu, cuda, cuda:N or mps"


def check_device(text: str) -> None:
    """Raise UserError for a word that is no device's; whether the device is there, `utils.device` knows."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise UserError(f"unknown device {text!r}: use {DEVICE_WORDS}")
