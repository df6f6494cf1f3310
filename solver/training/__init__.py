"""One run of training: the engine, what it updates and at which rate, what it saves."""
