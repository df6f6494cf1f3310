"""Damaged configurations, data sets and files, and what the scripts answer to them."""
