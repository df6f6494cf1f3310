"""Where a model's first values come from: random, CLIP, torchvision, released checkpoints; and their names."""
