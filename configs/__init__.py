"""Vocabulary, typed schema and loading of configurations."""
