"""Put the backbone into a model of your own: python examples/own_segmentation_head.py WEIGHTS.

WEIGHTS: a file of ResNet-18 ImageNet weights in torchvision's layout. The model is a fully-convolutional segmenter; it
takes one training step on random labels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone import ResNetBackbone, build_backbone


class Segmenter(nn.Module):
    """Class scores from C3 and C5, summed at the stride of C3 and brought to the size of the image."""

    def __init__(self, backbone: ResNetBackbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        specs = backbone.feature_specs
        self.scores = nn.ModuleDict({level: nn.Conv2d(specs[level].channels, num_classes, 1) for level in ("c3", "c5")})

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) to logits (N, classes, H, W)."""
        levels = self.backbone(pixels)
        fine, coarse = (self.scores[level](levels[level]) for level in ("c3", "c5"))
        merged = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        return F.interpolate(merged, size=pixels.shape[-2:], mode="bilinear")


model = Segmenter(build_backbone("resnet18", weights=sys.argv[1], source="torchvision"), num_classes=5)
optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
logits = model(torch.randn(2, 3, 128, 160))
loss = F.cross_entropy(logits, torch.randint(0, 5, (2, 128, 160)))
loss.backward()
optimiser.step()
print("logits", tuple(logits.shape), "loss", f"{loss.item():.3f}")
