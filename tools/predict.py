"""Detect objects in images.

python tools/predict.py RUN_OR_WEIGHTS IMAGE... --out DIR

Writes for each image a picture with boxes, masks, class names and scores, and a JSON file of the detections.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from tools import cli
from tools.console import CONSOLE
from tools.devices import DEVICES, PRECISIONS
from tools.jobs import detection


def main() -> int:
    """Run the command; the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "weights", type=Path, metavar="RUN_OR_WEIGHTS", help="folder of a run, or a file of a detector of this project"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and JSON files")
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="0..1; detections with a lower score are not drawn (default 0.5)"
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default auto: CUDA if available")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default fp32")
    args = parser.parse_args()
    options = {"min_score": args.min_score, "device": args.device, "precision": args.precision}
    for prediction in detection.predict(args.weights, args.images, out=args.out, **options):
        text = f"{prediction.drawn} objects of score {args.min_score:g} and more -> {prediction.picture}"
        CONSOLE.print(f"{prediction.image.name}: {text}", markup=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
