"""Pictures of training images and of detections, and detections as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from heads.detector import RCNN
from heads.masks import BitMasks, PolygonMasks
from heads.predictor import Predictor
from heads.structures import Detections, Targets
from tools.config.detection import RunConfig
from tools.data.coco import CocoData
from tools.data.loader import BatchPlan, TrainingImages
from tools.report.draw import draw_instances
from tools.report.page import write_page

from . import runs
from .detection_setup import image_reader

PAGE_IMAGES = 12
PAGE_MIN_SCORE = 0.5
TILE_PX = 320


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    class_names: tuple[str, ...],
    *,
    min_score: float,
    min_side_px: int = 0,
) -> np.ndarray:
    """Draw the detections of one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: R detections in pixels of the image, on the CPU.
        class_names: names of the classes, in the order of the labels.
        min_score: detections with a lower score are not drawn.
        min_side_px: a smaller image is magnified, so that text can be read.

    Returns:
        A new image, (h, w, 3) uint8 RGB.
    """
    detections = detections[detections.scores >= min_score]
    masks = detections.masks if isinstance(detections.masks, BitMasks) else None
    labels = [class_names[label] for label in detections.labels.tolist()]
    scores = detections.scores.tolist()
    return draw_instances(image, detections.boxes.numpy(), labels, scores=scores, masks=masks, min_side_px=min_side_px)


def detections_to_json(
    path: Path | str, image: np.ndarray, detections: Detections, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Convert the detections of one image to plain values.

    Args:
        path: the file of the image, or its URL.
        image: (H, W, 3) uint8 RGB, upright.
        detections: R detections in pixels of the image, on the CPU.
        class_names: names of the classes, in the order of the labels.

    Returns:
        {"image", "height", "width", "detections": R of {"label", "score", "box_xyxy", "mask_rle"}}. Masks are COCO's
        RLE; a detector without masks has no "mask_rle".
    """
    masks = detections.masks.to_rle() if isinstance(detections.masks, BitMasks) else [None] * len(detections)
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), masks)
    entries = [
        {"label": class_names[label], "score": score, "box_xyxy": box} | ({"mask_rle": mask} if mask else {})
        for box, score, label, mask in rows
    ]
    return {"image": str(path), "height": image.shape[0], "width": image.shape[1], "detections": entries}


def write_training_page(path: Path, images: TrainingImages, data: CocoData, *, seed: int) -> None:
    """Write a page of augmented training images with their ground truth.

    Args:
        path: the picture to write.
        images: the training images.
        data: the split that they are from.
        seed: the seed of the run; the page shows the images of its first batches.
    """
    plan = BatchPlan(data, batch_size=min(PAGE_IMAGES, len(images)), seed=seed, span=(0, 1))
    tiles, captions = [], []
    for draw in next(iter(plan)):
        pixels, target, image_id, _ = images[draw]
        tiles.append(_draw_target(pixels, target, data.class_names))
        captions.append(f"image {image_id}, {pixels.shape[2]}x{pixels.shape[1]}")
    write_page(path, tiles, captions, title="augmented training images with their ground truth")


def _draw_target(pixels: torch.Tensor, target: Targets, class_names: tuple[str, ...]) -> np.ndarray:
    """pixels: (3, H, W)."""
    height, width = pixels.shape[1:]
    bits = target.masks.bits if isinstance(target.masks, BitMasks) else None
    if isinstance(target.masks, PolygonMasks):
        bits = target.masks.rasterise(height, width).bits
    labels = [class_names[label] for label in target.labels.tolist()]
    masks = None if bits is None else bits.numpy()
    image = pixels.permute(1, 2, 0).numpy()
    return draw_instances(image, target.boxes.numpy(), labels, masks=masks, min_side_px=TILE_PX)


def write_prediction_page(path: Path, detector: RCNN, data: CocoData, config: RunConfig) -> None:
    """Write a page of images of a split, evenly spaced, with what a detector finds in them.

    Args:
        path: the picture to write.
        detector: the detector; it is put into inference mode.
        data: the split.
        config: the settings; `data.on_bad_image` is used.

    Raises:
        UnreadableImage: an image cannot be read and `data.on_bad_image` is "stop".
    """
    step = max(1, len(data.records) // PAGE_IMAGES)
    predictor = Predictor(detector)
    tiles, captions = [], []
    for record, image in runs.read_images(image_reader(config), data.records[::step][:PAGE_IMAGES], config):
        detections = predictor([image])[0]
        tiles.append(
            draw_detections(image, detections, detector.class_names, min_score=PAGE_MIN_SCORE, min_side_px=TILE_PX)
        )
        captions.append(f"image {record.image_id}, {len(record.boxes)} objects")
    write_page(path, tiles, captions, title=f"predictions of score {PAGE_MIN_SCORE:g} and more")
