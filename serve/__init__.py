"""The search page and its HTTP API: infer.py --serve. Stands on solver; nothing below imports it."""
