"""Detect objects in a photo: python examples/detect_objects.py RUN PHOTO.

RUN: the folder of a run of tools/train_det.py, or a file that tools/convert_weights.py wrote.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from heads import BitMasks, Predictor, load_detector

run, photo = sys.argv[1:]
detector, recipe = load_detector(run)
(detections,) = Predictor(detector)([photo])  # boxes in pixels of the photo, best first
masks = detections.masks.bits.sum(dim=(1, 2)) if isinstance(detections.masks, BitMasks) else [0] * len(detections)
print(f"{recipe.backbone}, {recipe.neck}: {len(detections)} detections")
for box, score, label, area in list(zip(detections.boxes, detections.scores, detections.labels, masks))[:5]:
    corners = ", ".join(f"{side:.0f}" for side in box.tolist())
    print(f"{detector.class_names[label]:12} {score:.2f}  box {corners}  mask of {int(area)} px")
