"""C2..C5 -> detections: pyramid, proposals, box and mask heads. Needs torch and torchvision."""

from .boxes import clip, decode, encode, iou
from .build import DETECTORS, DetectorRecipe, build_detector
from .conventions import Conventions
from .detector import RCNN
from .files import load_detector, save_detector
from .masks import BitMasks, PolygonMasks, RoiMasks
from .predictor import Predictor
from .structures import Detections, ImageBatch, ImageSize, Proposals, Targets

__all__ = [
    "DETECTORS",
    "RCNN",
    "BitMasks",
    "Conventions",
    "Detections",
    "DetectorRecipe",
    "ImageBatch",
    "ImageSize",
    "PolygonMasks",
    "Predictor",
    "Proposals",
    "RoiMasks",
    "Targets",
    "build_detector",
    "clip",
    "decode",
    "encode",
    "iou",
    "load_detector",
    "save_detector",
]
