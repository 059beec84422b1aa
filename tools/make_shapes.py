"""Generate the "shapes" data set: COCO format, five classes of forms, no download.

python tools/make_shapes.py OUT [--train 2000] [--val 200] [--side-px 144] [--seed 0] [--workers 2]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from tools import cli
from tools.console import CONSOLE
from tools.data.shapes import ShapesSettings, generate_shapes, holds_shapes
from tools.jobs.shapes import summarise


def main() -> int:
    """Run the command; the exit code."""
    default = ShapesSettings()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = cli.parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    for name, value, text in (
        ("--train", default.train_images, "number of training images"),
        ("--val", default.val_images, "number of validation images"),
        ("--side-px", default.side_px, "short side of the images, pixels"),
        ("--seed", default.seed, "random seed, 0 or more"),
        ("--workers", cores, "number of processes; the output does not depend on it"),
    ):
        parser.add_argument(name, type=int, default=value, help=f"{text} (default {value})")
    args = parser.parse_args()
    began = time.perf_counter()
    if holds_shapes(args.out, ShapesSettings(args.train, args.val, args.side_px, args.seed)):
        message = f"{args.out} already holds this data set: nothing to do"
    else:
        sizes = {"train_images": args.train, "val_images": args.val, "side_px": args.side_px}
        generate_shapes(args.out, **sizes, seed=args.seed, workers=args.workers)
        message = f"{args.out} written in {time.perf_counter() - began:.1f} s"
    CONSOLE.print(message, markup=False, soft_wrap=True)
    CONSOLE.print(summarise(args.out))
    CONSOLE.print(f"images:      {args.out / 'images' / 'train'}", markup=False, soft_wrap=True)
    path = args.out / "annotations" / "instances_train.json"
    CONSOLE.print(f"annotations: {path}  (pycocotools' COCO(...).showAnns draws them)", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
