"""Losses as pure functions: raw features or logits in, one scalar out; the arithmetic is at least float32."""

from solver.losses.cmpm import cmpm_loss
from solver.losses.identity import identity_loss
from solver.losses.imitation import imitation_loss
from solver.losses.itc import itc_loss
from solver.losses.sdm import sdm_loss
from solver.losses.supitc import supitc_loss
from solver.losses.triplet import batch_hard_triplet_loss, weighted_triplet_loss

__all__ = [
    "batch_hard_triplet_loss",
    "cmpm_loss",
    "identity_loss",
    "imitation_loss",
    "itc_loss",
    "sdm_loss",
    "supitc_loss",
    "weighted_triplet_loss",
]
