"""A moving average of the weights, evaluated and saved beside them."""

from __future__ import annotations

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.interface import RetrievalModel


def moving_average(model: RetrievalModel, decay: float) -> AveragedModel | None:
    """Return the average of a model's weights, None for a decay of 0.

    After the first step it is the weights; after every other, average = decay x average + (1 - decay) x weights.
    Buffers (statistics of batch norms) are those of the model. Source: torch.optim.swa_utils.
    """
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)


def averaged(average: AveragedModel) -> RetrievalModel:
    """Return the model with the averaged weights."""
    model = average.module
    assert isinstance(model, RetrievalModel)
    return model
