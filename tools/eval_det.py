"""Score a detector with COCO-eval.

python tools/eval_det.py RUN_OR_WEIGHTS [CONFIG] [--set a.b=c ...]

Writes results.json (COCO's result format) and scores.json, and prints the twelve figures and AP by category.
evaluated.json notes what they are of: those of other weights, data or settings are not overwritten without --overwrite.
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
from tools.console import CONSOLE
from tools.evaluation.table import scores_table
from tools.jobs import detection


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__, config=RunConfig)
    parser.add_argument(
        "weights", type=Path, metavar="RUN_OR_WEIGHTS", help="folder of a run, or a file of a detector of this project"
    )
    parser.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of settings; default: config.yaml of the run"
    )
    parser.add_argument("--out", type=Path, help="folder for the two files; default: the folder of the run")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace scores of other weights, data or settings in that folder"
    )
    args = parser.parse_args()
    config = detection.load_run_config(args.weights, args.config, args.set)
    out = args.out or detection.run_folder(args.weights)
    scores = detection.evaluate(args.weights, config, out=out, overwrite=args.overwrite)
    CONSOLE.print(scores_table(scores))
    CONSOLE.print(f"written: {out}/scores.json and results.json", markup=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
