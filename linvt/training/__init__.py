"""Training: configuration, data, a flat loop, the DeepSpeed engine, checkpoints, metrics. Runs without Ray too."""
