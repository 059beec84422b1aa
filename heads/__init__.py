"""C2..C5 -> detections: pyramid, proposals, box and mask heads. Needs torch and torchvision."""

from .box_head import BoxHeadSpec
from .boxes import clip, decode, encode, iou
from .build import build_detector, fine_tune
from .conventions import Conventions
from .detector import RCNN
from .files import load_detector, save_detector
from .images import UnreadableImage
from .mask_head import MaskHeadSpec
from .masks import BitMasks, PolygonMasks
from .predictor import Predictor
from .recipes import DETECTORS, DetectorRecipe
from .roi_masks import RoiMasks
from .rpn import RPNSpec
from .structures import Detections, ImageBatch, ImageSize, Proposals, Targets

__all__ = [
    "DETECTORS",
    "RCNN",
    "BitMasks",
    "BoxHeadSpec",
    "Conventions",
    "Detections",
    "DetectorRecipe",
    "ImageBatch",
    "ImageSize",
    "MaskHeadSpec",
    "PolygonMasks",
    "Predictor",
    "Proposals",
    "RPNSpec",
    "RoiMasks",
    "Targets",
    "UnreadableImage",
    "build_detector",
    "clip",
    "decode",
    "encode",
    "fine_tune",
    "iou",
    "load_detector",
    "save_detector",
]
