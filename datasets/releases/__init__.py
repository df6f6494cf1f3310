"""Readers of the original releases, one module per data set or family of data sets; each ends in its DatasetEntry."""
