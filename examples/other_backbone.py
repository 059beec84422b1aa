"""Put a timm model under Faster R-CNN: python examples/other_backbone.py. Needs timm."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import timm

from heads import DETECTORS, Predictor, build_detector
from resnet_backbone import as_backbone

body = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4))  # pretrained=True downloads weights
backbone = as_backbone(body)
print({level: (spec.channels, spec.stride) for level, spec in backbone.feature_specs.items()})
recipe = replace(DETECTORS["faster_rcnn_r18_fpn"], pyramid_channels=64)  # the heads; the backbone is given
detector = build_detector(recipe, num_classes=3, backbone=backbone)
(detections,) = Predictor(detector)([np.zeros((240, 320, 3), np.uint8)])
print("detections of the untrained detector:", len(detections))
