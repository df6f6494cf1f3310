"""What `python -m datasets.check` looks at: counts, files, persons, matches, captions and modalities."""
