"""What the scripts do: train, test and infer call one function each."""
