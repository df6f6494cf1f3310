"""A run directory of a small model with random weights."""

from pathlib import Path
from typing import Any

import torch

from configs.load import build_experiment, save_experiment
from model.build import build_model, initialise
from utils.checkpoint_io import save_checkpoint


def write_run(directory: Path, place: Path, seed: int = 1, **sections: dict[str, Any]) -> Path:
    """A run directory of a small ReID5o with random weights over the data at `place`. sections: further ones of its
    configuration.
    """
    config = build_experiment(
        [
            (
                "test",
                {
                    "data": {"root": str(place), "workers": 0, **sections.pop("data", {})},
                    "model": {
                        "image_size": [32, 16],
                        "embed_dim": 64,
                        "vision_width": 64,
                        "vision_layers": 1,
                        "text_width": 64,
                        "text_layers": 1,
                        "text_length": 12,
                        "mmt_depth": 1,
                        "lora": {"layers": 1},
                    },
                    **sections,
                },
            )
        ],
        name="small",
    )
    directory.mkdir(parents=True)
    save_experiment(config, directory / "config.yaml")
    torch.manual_seed(seed)
    model = build_model(config.family, config.model, 2)
    initialise(config.family, model, config.model)
    with torch.no_grad():
        # Experts start at zero, and small weights give all images nearly the same feature.
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    save_checkpoint(
        directory / "best.pth",
        {
            "model": model.state_dict(),
            "config": {},
            "family": "reid5o",
            "num_identities": 2,
            "epoch": 3,
            "step": 30,
            "selected_on": "val",
            "data_fingerprint": "",
        },
    )
    return directory
