"""Every option of an experiment, its type, its range and its default; the one home of each."""
