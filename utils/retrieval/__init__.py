"""The retrieval kernel on plain arrays: similarity in, ranks and metrics out; knows no model and no data set."""
