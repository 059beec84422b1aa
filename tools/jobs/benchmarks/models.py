"""torchvision's Mask R-CNN R50-FPN and ours with the same weights, and inputs for both.

The weights are random but calibrated: activations have a spread near that of a trained net, so that there are hundreds
of proposals and detections, as many as a trained net gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.build import assemble, empty_backbone
from heads.detector import RCNN
from heads.masks import BitMasks
from heads.predictor import prepare
from heads.recipes import DETECTORS
from heads.structures import Detections, ImageBatch, ImageSize, Targets
from resnet_backbone import load_weights

from .setting import Setting, Sizes

RECIPE = "maskrcnn_resnet50_fpn"  # torchvision's name and ours
NUM_CLASSES = 90
# standard deviations of the output channels, near those of a trained net: rounding errors grow with them
SPREAD = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "box_predictor.cls_score": 1.0,
    "box_predictor.bbox_pred": 1.0,
    "mask_fcn_logits": 2.0,
}


@dataclass(frozen=True)
class Pair:
    """Both detectors, in inference mode.

    Attributes:
        theirs: torchvision's.
        ours: ours, with the same weights.
    """

    theirs: Any
    ours: RCNN


@lru_cache(maxsize=1)
def pair(setting: Setting) -> Pair:
    """Make both detectors. The pair is kept for all rows: leave it as it is.

    Args:
        setting: device, sizes, and the pictures for the calibration.

    Returns:
        Both, on the device.
    """
    torch.manual_seed(1)
    theirs = torchvision_detector(setting.sizes)
    calibrate(theirs, as_tensors(setting.pictures[:1]), SPREAD)
    return Pair(theirs.to(setting.device), our_detector(setting.sizes, theirs.state_dict()).to(setting.device))


def torchvision_detector(sizes: Sizes, state: Mapping[str, Tensor] | None = None) -> Any:
    """Torchvision's detector as `maskrcnn_resnet50_fpn` builds it for published weights, with frozen norms.

    Args:
        sizes: image size and number of proposals.
        state: its weights; None for random ones.

    Returns:
        The detector, in inference mode.
    """
    from torchvision.models.detection import MaskRCNN  # not at the top: `--help` does not need torchvision
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    options = {"min_size": sizes.short_side_px, "max_size": sizes.long_side_px}
    detector = MaskRCNN(
        backbone, num_classes=NUM_CLASSES + 1, rpn_post_nms_top_n_test=sizes.proposals, **options
    ).eval()
    if state is not None:
        detector.load_state_dict(state)
    return detector


def our_detector(sizes: Sizes, state: Mapping[str, Tensor]) -> RCNN:
    """Our detector.

    Args:
        sizes: image size and number of proposals.
        state: torchvision's weights.

    Returns:
        The detector, in inference mode.
    """
    recipe = DETECTORS[RECIPE]
    recipe = replace(recipe, rpn=replace(recipe.rpn, keep_after_nms_test=sizes.proposals))
    ours = assemble(recipe, NUM_CLASSES, empty_backbone(recipe))
    assert load_weights(ours, dict(state), source="torchvision").complete
    ours.preprocess = replace(ours.preprocess, short_side_px=sizes.short_side_px, long_side_px=sizes.long_side_px)
    return ours.eval()


def as_tensors(pictures: Sequence[np.ndarray]) -> list[Tensor]:
    """The inputs of torchvision's detectors: (3, H, W) float32 with values from 0 to 1."""
    return [torch.tensor(picture).permute(2, 0, 1).float() / 255 for picture in pictures]


def our_batch(pictures: Sequence[np.ndarray], detector: RCNN, device: str) -> ImageBatch:
    """Our batch of pictures, resized and normalised."""
    images = [prepare(picture, detector.preprocess).pixels.to(device) for picture in pictures]
    return ImageBatch.from_images(images, detector.preprocess)


def their_detections(output: Mapping[str, Tensor]) -> Detections:
    """Torchvision's output for one image in our container, without masks, on the CPU."""
    return Detections(output["boxes"].cpu(), output["scores"].cpu(), output["labels"].cpu() - 1)


def random_targets(sizes: Sequence[ImageSize], per_image: int, seed: int = 0) -> list[Targets]:
    """Ellipses as objects.

    Args:
        sizes: of the images.
        per_image: objects of an image.
        seed: random seed.

    Returns:
        Targets with bitmaps.
    """
    rng = np.random.default_rng(seed)
    targets = []
    for size in sizes:
        y, x = np.mgrid[: size.height, : size.width] + 0.5
        extent = np.array([size.width, size.height])
        radii = rng.uniform(0.05, 0.25, (per_image, 2)) * extent
        centres = radii + rng.random((per_image, 2)) * (extent - 2 * radii)
        bits = np.stack(
            [((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1 for (cx, cy), (rx, ry) in zip(centres, radii)]
        )
        boxes = torch.from_numpy(np.concatenate([centres - radii, centres + radii], axis=1)).float()
        labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, per_image))
        targets.append(Targets(boxes, labels, BitMasks(torch.from_numpy(bits))))
    return targets


def their_targets(targets: Sequence[Targets]) -> list[dict[str, Tensor]]:
    """The same targets as torchvision takes them."""
    found = []
    for target in targets:
        assert isinstance(target.masks, BitMasks)
        masks = target.masks.bits.to(torch.uint8)
        found.append({"boxes": target.boxes, "labels": target.labels + 1, "masks": masks})
    return found


@torch.no_grad()
def calibrate(model: Any, inputs: list[Tensor], spread: Mapping[str, float]) -> None:
    """Set norm statistics like those of real activations, affine terms other than 1 and 0, and the heads' spread.

    Args:
        model: torchvision's detector; changed in-place.
        inputs: what it runs on.
        spread: end of a layer's name -> standard deviation of its output channels.
    """
    from torchvision.ops import FrozenBatchNorm2d

    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
            if name.endswith("bn3"):
                module.weight.mul_(0.25)  # small residual branches, as in a trained net: rounding grows less with depth
            module.register_forward_hook(_take_statistics)
        if name.startswith("rpn.head.conv") and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        for ending, std in spread.items():
            if name.endswith(ending):
                module.register_forward_hook(partial(_spread, std))
    model.eval()(inputs)
    for module in model.modules():
        module._forward_hooks.clear()


def _take_statistics(norm: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: set running statistics near those of the input, and normalise with them."""
    x = inputs[0]
    if len(x):
        norm.running_mean.copy_(x.mean(dim=(0, 2, 3)) + 0.1 * torch.randn(x.shape[1]))
        norm.running_var.copy_(x.var(dim=(0, 2, 3)) * torch.empty(x.shape[1]).uniform_(0.7, 1.5) + 1e-3)
    normalised: Tensor = norm.forward(x)
    return normalised


def _spread(std: float, layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Forward hook: scale the layer so that each output channel has this standard deviation and a mean near 0.

    The RPN's layers are scaled on their first call, on the finest level.
    """
    rows = output.transpose(0, 1).flatten(1)
    factor = std / rows.std(dim=1)
    assert layer.bias is not None
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - rows.mean(dim=1)) * factor + 0.1 * torch.randn(len(rows)))
    layer._forward_hooks.clear()
    return layer.forward(inputs[0])


def compiled_copy(detector: RCNN, dtype: torch.dtype | None = None) -> RCNN:
    """A compiled copy for inference; nothing is taken from a cache of earlier runs, so `compile_s` is the whole time.

    Args:
        detector: the detector.
        dtype: as for `RCNN.for_inference`.

    Returns:
        The copy.
    """
    import torch._inductor.config  # not at the top: it takes a second, and `--help` does not need it

    with torch._inductor.config.patch(force_disable_caches=True):
        return detector.for_inference(dtype=dtype, compile=True)
