"""Print the feature levels of a photo: python examples/backbone_features.py WEIGHTS PHOTO.

WEIGHTS: a file of ResNet-18 ImageNet weights in torchvision's layout, such as resnet18-f37072fd.pth.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from heads.images import read_image
from resnet_backbone import build_backbone

weights, photo = sys.argv[1:]
backbone = build_backbone("resnet18", weights=weights, source="torchvision").eval()
image = torch.tensor(read_image(photo)).permute(2, 0, 1)  # (3, H, W) uint8, RGB
pixels = backbone.preprocess.pad([backbone.preprocess.normalise(image)])  # (1, 3, H, W), multiples of 32
with torch.inference_mode():
    for level, features in backbone(pixels).items():
        print(level, tuple(features.shape), "stride", backbone.feature_specs[level].stride)
