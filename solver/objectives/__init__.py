"""Objectives: a batch in, named weighted losses out; one file per family."""
