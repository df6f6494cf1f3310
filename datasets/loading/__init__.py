"""From records to batches: pictures are opened, texts tokenised, rows sampled, put together and augmented."""
