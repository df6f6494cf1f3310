"""One module per dataset layout; each plans which picture goes to which path and writes the annotation files."""
