"""Losses as pure functions: raw features or logits in, one scalar out; the arithmetic is at least float32."""
