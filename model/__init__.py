"""Models: inputs in, representations out; no loss."""
