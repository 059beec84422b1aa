"""Score a classifier.

python tools/eval_cls.py RUN_OR_WEIGHTS [CONFIG] [--set a.b=c ...]

Prints and writes top-1 and top-5 accuracy, with one crop, ten crops, or the whole image at several scales (eval.crops).
Weights of other projects (torchvision, timm, the published CIFAR nets) need a CONFIG that names their net.
evaluated.json notes what was scored: scores of other weights, data or settings are not overwritten without --overwrite.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from resnet_backbone.errors import MissingFile
from tools import cli
from tools.config.classification import ClassifierRunConfig, load_config
from tools.console import CONSOLE
from tools.evaluation.topk import classes_table
from tools.jobs import classification


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__, config=ClassifierRunConfig)
    parser.add_argument(
        "weights", metavar="RUN_OR_WEIGHTS", help="folder of a run, a file, or a published name (imagenet1k_v1)"
    )
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", help="YAML file of settings; default: config.yaml of the run"
    )
    parser.add_argument("--out", type=Path, help="folder for scores.json; default: the folder of the run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace scores of other weights, data or settings in that folder"
    )
    args = parser.parse_args()
    run = Path(args.weights) if Path(args.weights).is_dir() else None
    if args.config is None and run is None:
        raise MissingFile(
            f"{args.weights} is not the folder of a run and has no config.yaml: name a CONFIG after the weights"
        )
    config = load_config(args.config or Path(args.weights) / "config.yaml", args.set)
    out = args.out or run
    scores = classification.evaluate(args.weights, config, out=out, overwrite=args.overwrite)
    CONSOLE.print(classes_table(scores, f"{args.weights}, {config.eval.crops}"))
    if out is not None:
        CONSOLE.print(f"written: {classification.scores_path(out, config.eval.crops)}", markup=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
