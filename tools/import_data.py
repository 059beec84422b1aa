"""Import labelled images: recognise the format, and write COCO files beside the images.

python tools/import_data.py SRC --out DIR [--format yolo] [--val-fraction 0.2] [--seed 0] [--classes NAME NEW=OLD,OLD]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

from tools import cli
from tools.annotations.formats import FORMATS
from tools.console import CONSOLE
from tools.jobs.importing import BOX_FORMATS, ImportOptions, import_data


def main() -> int:
    """Run the command; the exit code."""
    default = ImportOptions()
    parser = cli.parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of images and annotations, or one file in it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--format", choices=FORMATS, help="read this format (default: the one that is recognised)")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="classes to keep, or NEW=OLD,OLD to merge (default: all)",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=default.val_fraction,
        help=f"images for val if there is no such split, 0 for none (default {default.val_fraction})",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help=f"of that split (default {default.seed})")
    parser.add_argument("--link", action="store_true", help="make symbolic links to the images instead of copies")
    parser.add_argument(
        "--on-bad-annotation",
        choices=("stop", "drop"),
        default=default.on_bad_annotation,
        help=f"stop at annotations that cannot be used, or leave them out (default {default.on_bad_annotation})",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("stop", "skip"),
        default=default.on_bad_image,
        help=f"stop at images that are missing, unreadable or of another size, or leave them out "
        f"(default {default.on_bad_image})",
    )
    parser.add_argument(
        "--box-format",
        choices=BOX_FORMATS,
        default=default.box_format,
        help="what the four numbers of a box are (default auto: COCO's xywh, refused if most look like another format)",
    )
    parser.add_argument(
        "--crowds",
        choices=("auto", "crowds", "objects"),
        default=default.crowds,
        help="what iscrowd: 1 means (default auto: an object in a class that has nothing else)",
    )
    parser.add_argument("--outside-images", action="store_true", help="read image files outside the folder too")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    args = vars(parser.parse_args())
    source, out = args.pop("source"), args.pop("out")
    del args["debug"]
    import_data(source, out, ImportOptions(**args), CONSOLE)
    return 0


if __name__ == "__main__":
    cli.run(main)
