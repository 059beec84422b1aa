"""Analyse classifiers as the ResNet paper does.

python tools/analyse.py {curves | responses | gradients | counts} [RUN ...] --out DIR

Each writes a plot and its data. curves: training loss, training error and test error of several runs; runs of one net
have one colour. responses: standard deviation of the responses of every layer (figure 7). gradients: norm of the
gradient of every layer's weights; with --initial, before training. counts: parameters and multiply-adds (tables 1 and
6). RUN is a folder that train_cls.py wrote. responses and gradients also take other weights, as NET=FILE, and measure
them on the training images of --config.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from resnet_backbone.errors import InvalidValue
from tools import cli
from tools.config.classification import ClassifierRunConfig
from tools.console import CONSOLE
from tools.jobs import analysis


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__, config=ClassifierRunConfig)
    parser.add_argument("what", choices=("curves", "responses", "gradients", "counts"))
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folders of runs, or NET=FILE; counts: nets (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the plot and its data")
    parser.add_argument("--config", type=Path, help="responses, gradients: YAML file of settings for NET=FILE")
    parser.add_argument(
        "--images", type=int, default=1024, help="responses, gradients: training images (default: 1024)"
    )
    parser.add_argument("--initial", action="store_true", help="responses, gradients: the nets before training")
    args = parser.parse_args()
    if args.what in ("counts", "curves") and (args.config or args.set):
        raise InvalidValue(f"--config and --set are for responses and gradients, not for {args.what}: leave them out")
    if not args.runs and args.what != "counts":
        raise InvalidValue(f"{args.what} needs the folders of runs: name at least one")
    if args.what == "counts":
        table = analysis.counts_table(analysis.counts(args.runs, args.out))
    elif args.what == "curves":
        table = analysis.curves_table(analysis.curves([Path(run) for run in args.runs], args.out))
    else:
        subjects = analysis.find_subjects(args.runs, args.config, args.set)
        measure = analysis.responses if args.what == "responses" else analysis.gradients
        table = analysis.layers_table(measure(subjects, args.out, images=args.images, initial=args.initial))
    CONSOLE.print(table)
    CONSOLE.print(f"written: plot and data in {args.out}", markup=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
