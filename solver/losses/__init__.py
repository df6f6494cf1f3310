"""Losses as pure functions: raw features or logits in, one scalar out; the arithmetic is at least float32."""

from solver.losses.cmpm import cmpm_loss
from solver.losses.identity import identity_loss
from solver.losses.itc import itc_loss
from solver.losses.sdm import sdm_loss
from solver.losses.supitc import supitc_loss

__all__ = ["cmpm_loss", "identity_loss", "itc_loss", "sdm_loss", "supitc_loss"]
