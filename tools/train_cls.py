"""Train a classifier.

python tools/train_cls.py CONFIG [--resume | --overwrite] [--set a.b=c ...]

Several GPUs: torchrun --nproc-per-node 8 tools/train_cls.py CONFIG. A run is written to its folder (`out`):

  config.yaml           every setting of the run
  data.txt              number of training images of every class
  weights.txt           which tensors were loaded, and which start at initial values
  training_images.png   augmented training images with their classes
  metrics.jsonl         losses, errors, learning rate, times and scores
  tensorboard/          the same for TensorBoard
  checkpoints/last.pt   the last checkpoint, for --resume; it has no certificate
  model.safetensors     the trained classifier with a certificate, after the last step
  loss_curve.png        metrics.jsonl as a plot
  scores.json           scores on the validation split (needs data.val)
  evaluated.json        what they are of: eval_cls.py does not replace them by those of another evaluation

build_backbone(weights=...) and backbone_weights in the configuration of a detector take the folder, or one of its two
weight files.
If --resume changes settings, config.STEP.yaml keeps those up to that step.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from tools import cli
from tools.config.classification import ClassifierRunConfig
from tools.jobs import classification


def main() -> int:
    """Run the command; the exit code."""
    return cli.training_command(__doc__, ClassifierRunConfig, classification.train)


if __name__ == "__main__":
    cli.run(main)
