"""The training engine: steps, schedule, precision, checkpoints, progress. It is independent of the kind of model."""
