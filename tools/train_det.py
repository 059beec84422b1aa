"""Train a detector.

python tools/train_det.py --data FOLDER [--weights FILE] [--resume | --overwrite] [--set a.b=c ...]
python tools/train_det.py CONFIG [--resume | --overwrite] [--set a.b=c ...]

With --data, the format of the annotations is recognised, and the settings follow from the data, the weights and the
device; they are printed with their reasons. With CONFIG and --data, the folder replaces the data of the configuration.

Several GPUs: torchrun --nproc-per-node 8 tools/train_det.py CONFIG

A run is written to its folder (`out`):

  config.yaml           every setting of the run
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
  evaluated.json        what the two are of: eval_det.py does not replace them by those of another evaluation
  predictions.png       validation images with detections

The last four need data.val. Commands that get the folder use model.safetensors, or before the last step last.pt.
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
from tools.config.detection import RunConfig
from tools.jobs import detection


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.training_parser(__doc__, RunConfig)
    parser.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of the settings that are no defaults"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a data set of any known format")
    parser.add_argument(
        "--weights", metavar="FILE", help="weights to start from: of a classifier or backbone, or a detector or its run"
    )
    args = parser.parse_args()
    config = detection.training_config(args.config, args.data, args.weights, args.set, resume=args.resume)
    detection.train(config, resume=args.resume, overwrite=args.overwrite)
    return 0


if __name__ == "__main__":
    cli.run(main)
