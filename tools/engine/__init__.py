"""The training engine: steps, schedule, precision, checkpoints, progress. It knows nothing of COCO."""
