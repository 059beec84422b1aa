"""Detect objects in images.

python tools/predict.py RUN_OR_WEIGHTS IMAGE... --out DIR

Writes for each image a picture with boxes, masks, class names and scores, and a JSON file of the detections.

IMAGE is a file, a folder (all images in it, at any depth), a glob in quotes ("photos/**/*.jpg") or an http(s) URL.
A name that exists is never taken as a glob. The files are called after the image: 1.jpg gives DIR/1.png and
DIR/1.json; sub-folders of a folder or a glob are kept. Where two would have one name, they keep the suffix of the
image (1.jpg.png, 1.tif.png), and if that is not enough, the folders in which the images differ (a/1.png, b/1.png).

Nothing that exists is overwritten. With --overwrite earlier predictions are replaced, but never another file. Images
that cannot be read are listed at the end; the others are predicted, and the exit code is 1 (2 if there are no others).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools import interrupts

    interrupts.watch()  # the imports below take seconds

import warnings
from io import TextIOWrapper

from PIL import Image

from heads.images import MAX_PIXELS
from resnet_backbone.errors import InvalidValue
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
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, globs and URLs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and JSON files")
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="0..1; detections with a lower score are not drawn (default 0.5)"
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default auto: CUDA if available")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default fp32")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the detector with torch.compile; it takes about a minute and pays off for many images",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace earlier predictions in DIR; other files are never replaced"
    )
    parser.add_argument(
        "--max-image-mpx",
        type=float,
        default=MAX_PIXELS / 1e6,
        help=f"megapixels; larger images are treated as damaged, since a small file can claim a size that exhausts the "
        f"memory (default {MAX_PIXELS / 1e6:.0f})",
    )
    args = parser.parse_args()
    if not args.max_image_mpx > 0:
        raise InvalidValue(f"--max-image-mpx {args.max_image_mpx:g}: give a number above 0")
    # for this process; Pillow refuses images of more than twice this number
    Image.MAX_IMAGE_PIXELS = round(args.max_image_mpx * 1e6 / 2)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show

    def report(prediction: detection.Prediction) -> None:
        text = f"{prediction.drawn} objects of score {args.min_score:g} and more -> {prediction.picture}"
        CONSOLE.print(f"{prediction.image}: {text}", markup=False, emoji=False, soft_wrap=True)

    try:
        detection.predict(
            args.weights,
            args.images,
            out=args.out,
            min_score=args.min_score,
            device=args.device,
            precision=args.precision,
            compile=args.compile,
            overwrite=args.overwrite,
            report=report,
        )
    except detection.UnreadableImages as error:
        if not error.predictions:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
