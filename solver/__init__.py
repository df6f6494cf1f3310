"""Losses, objectives, training, evaluation and retrieval."""
