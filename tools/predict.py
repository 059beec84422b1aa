"""See what a detector sees: python tools/predict.py RUN_OR_WEIGHTS IMAGE... --out DIR

For each image a picture with boxes, masks, names and scores, and beside it a JSON of the detections.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from heads.files import load_detector
from heads.images import read_image
from heads.masks import BitMasks
from heads.predictor import Predictor
from heads.structures import Detections
from tools import cli
from tools.engine.train import pick_device, pick_precision
from tools.report.draw import draw_instances


def picture(
    image: np.ndarray, found: Detections, names: tuple[str, ...], *, min_score: float, min_side_px: int = 0
) -> np.ndarray:
    """The image with the detections of at least min_score drawn on."""
    found = found[found.scores >= min_score]
    masks = found.masks.bits.numpy() if isinstance(found.masks, BitMasks) else None
    labels = [names[label] for label in found.labels.tolist()]
    return draw_instances(
        image, found.boxes.numpy(), labels, scores=found.scores.tolist(), masks=masks, min_side_px=min_side_px
    )


def as_json(path: Path, image: np.ndarray, found: Detections, names: tuple[str, ...]) -> dict[str, Any]:
    """Boxes xyxy in pixels of the upright image, masks as COCO's RLE."""
    masks = found.masks.to_rle() if isinstance(found.masks, BitMasks) else [None] * len(found)
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks)
    detections = [
        {"label": names[label], "score": score, "box_xyxy": box} | ({"mask_rle": mask} if mask else {})
        for box, score, label, mask in rows
    ]
    return {"image": str(path), "height": image.shape[0], "width": image.shape[1], "detections": detections}


def main() -> int:
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("run_or_weights", type=Path, help="a run's folder, or a file that train_det.py wrote")
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and their JSON")
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="0..1; weaker detections are not drawn (default 0.5)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default auto")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16", "fp16"), help="default fp32")
    args = parser.parse_args()
    detector, _ = load_detector(cli.checkpoint_of(args.run_or_weights))
    device = pick_device(args.device)
    predictor = Predictor(detector.to(device), precision=pick_precision(args.precision, device))
    names = detector.class_names
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.images:
        image = read_image(path)
        found = predictor([image])[0]
        drawn = args.out / f"{path.stem}.png"
        Image.fromarray(picture(image, found, names, min_score=args.min_score, min_side_px=480)).save(drawn)
        drawn.with_suffix(".json").write_text(json.dumps(as_json(path, image, found, names)) + "\n", encoding="utf-8")
        shown = int((found.scores >= args.min_score).sum())
        cli.CONSOLE.print(f"{path.name}: {shown} objects of score {args.min_score:g} and more -> {drawn}")
    return 0


if __name__ == "__main__":
    cli.run(main)
