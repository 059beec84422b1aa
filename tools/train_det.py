"""Train a detector.

python tools/train_det.py CONFIG [--resume | --overwrite] [--set a.b=c ...]
Several GPUs: torchrun --nproc-per-node 8 tools/train_det.py CONFIG

A run is written to its folder (`out`):

  config.yaml           every setting of the run
  config.STEP.yaml      the settings up to that step, if --resume changed any
  data.txt              summary of the training split
  weights.txt           which tensors were loaded, and which start at initial values
  training_images.png   augmented training images with their ground truth
  metrics.jsonl         losses, learning rate, times and scores
  tensorboard/          the same for TensorBoard
  checkpoints/last.pt   the last checkpoint, for --resume; it has no certificate
  model.safetensors     the trained detector with a certificate, after the last step
  loss_curve.png        metrics.jsonl as a plot
  results.json          detections on the validation split, in COCO's format
  scores.json           their COCO scores
  predictions.png       validation images with detections

The last three need data.val. Commands that get the folder use model.safetensors, or before the last step last.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from tools import cli
from tools.config.detection import RunConfig
from tools.jobs import detection


def main() -> int:
    """Run the command; the exit code."""
    return cli.training_command(__doc__, RunConfig, detection.train)


if __name__ == "__main__":
    cli.run(main)
