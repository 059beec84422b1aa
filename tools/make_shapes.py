"""Make the "shapes" data set: COCO format, five forms, nothing downloaded.

python tools/make_shapes.py OUT [--train 2000] [--val 200] [--side-px 144] [--seed 0] [--workers 2]
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from tools.data.shapes import FORMS, SPLITS, ShapesSettings, generate_shapes, holds_shapes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make the "shapes" data set: COCO format, five forms, nothing downloaded.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = ShapesSettings()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--train", type=int, default=default.train_images, help="training images")
    parser.add_argument("--val", type=int, default=default.val_images, help="validation images")
    parser.add_argument("--side-px", type=int, default=default.side_px, help="short side, pixels")
    parser.add_argument("--seed", type=int, default=default.seed, help="of every random choice, 0 or more")
    parser.add_argument("--workers", type=int, default=cores, help="processes; no effect on the output")
    return parser.parse_args(arguments)


def print_summary(out: Path) -> None:
    console = Console()
    table = Table("split", "images", "empty", "objects", "crowds", *FORMS)
    for split in SPLITS:
        instances = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in instances["categories"]}
        objects = [names[a["category_id"]] for a in instances["annotations"] if not a["iscrowd"]]
        images, filled = len(instances["images"]), len({a["image_id"] for a in instances["annotations"]})
        crowds = len(instances["annotations"]) - len(objects)
        counts = [images, images - filled, len(objects), crowds, *(objects.count(form) for form in FORMS)]
        table.add_row(split, *map(str, counts))
    console.print(table)
    console.print(f"images:      {out / 'images' / 'train'}  (any image viewer)", soft_wrap=True)
    console.print(f"annotations: {out / 'annotations' / 'instances_train.json'}", soft_wrap=True)
    console.print("overlay:     pycocotools' COCO(annotations).showAnns(...), with matplotlib")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    started = time.perf_counter()
    try:
        settings = ShapesSettings(options.train, options.val, options.side_px, options.seed)
        if holds_shapes(options.out, settings):
            console.print(f"{options.out} already holds this data set: nothing to do", soft_wrap=True)
        else:
            generate_shapes(
                options.out,
                train_images=options.train,
                val_images=options.val,
                side_px=options.side_px,
                seed=options.seed,
                workers=options.workers,
            )
            seconds = time.perf_counter() - started
            console.print(f"{options.out} written in {seconds:.1f} s", soft_wrap=True)
    except (ValueError, FileExistsError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    print_summary(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
