"""Row of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heads.build import assemble, empty_backbone
from heads.detector import RCNN
from heads.predictor import prepare
from heads.recipes import DETECTORS
from heads.structures import ImageBatch, Targets
from tools.config.settings import OptimiserConfig
from tools.engine.optim import make_optimiser

from .contenders import BF16, Comparison, Contender
from .equality import loss_difference
from .limit import count_flops
from .models import (
    NUM_CLASSES,
    RECIPE,
    our_detector,
    pair,
    random_targets,
    their_targets,
    torchvision_detector,
)
from .setting import Setting, Sizes, generated_pictures

TORCHVISION = "torchvision"
IMAGES, OBJECTS, LR = 2, 8, 1e-6
EVERYTHING, FEW = 1_000_000, 200
LOSSES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_box_reg": "loss_box_reg",
    "loss_mask": "loss_mask",
}


def training_images(setting: Setting, detector: RCNN) -> tuple[list[Tensor], list[Targets]]:
    """Two resized images with eight objects each.

    Args:
        setting: pictures and sizes.
        detector: ours.

    Returns:
        (3, h, w) each, and targets.
    """
    pictures = [*setting.pictures, *generated_pictures(IMAGES, 480)][:IMAGES]
    images = [prepare(picture, detector.preprocess).pixels for picture in pictures]
    sizes = [ImageBatch.from_images([image], detector.preprocess).sizes[0] for image in images]
    return images, random_targets(sizes, OBJECTS)


def their_step(model: Any, images: Sequence[Tensor], targets: Sequence[Targets], device: str, low: bool = False) -> Any:
    """A training step of torchvision, with its reference's SGD.

    Args:
        model: the detector; it is trained.
        images: resized images.
        targets: their targets.
        device: where the model is.
        low: whether to use bf16 autocast.

    Returns:
        The step.
    """
    optimiser = torch.optim.SGD(
        [p for p in model.train().parameters() if p.requires_grad], lr=LR, momentum=0.9, weight_decay=1e-4
    )
    scaled = [image.float() / 255 for image in images]
    given = their_targets(targets)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=low):
            losses = model(
                [image.to(device) for image in scaled],
                [{name: value.to(device) for name, value in target.items()} for target in given],
            )
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()

    return step


def our_step(
    detector: RCNN, images: Sequence[Tensor], targets: Sequence[Targets], device: str, low: bool = False
) -> Callable[[], None]:
    """A training step as `tools/train_det.py` takes it; arguments and result as for `their_step`."""
    settings = OptimiserConfig(lr=LR)
    optimiser = make_optimiser(detector.train(), settings, LR)
    if device == "cuda":
        detector.to(memory_format=torch.channels_last)  # as in training
    preprocess = detector.preprocess

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=low):
            batch = ImageBatch.from_images([image.to(device) for image in images], preprocess)
            losses = detector(batch, [target.to(device) for target in targets])
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()

    return step


def training(setting: Setting) -> Iterator[Comparison]:
    """A training step of two images: forward, backward and the optimiser.

    Args:
        setting: how to run.

    Yields:
        One comparison.
    """
    state, sizes, device = pair(setting).theirs.state_dict(), setting.sizes, setting.device
    images, targets = training_images(setting, pair(setting).ours)
    equal = [_equal_losses(state, sizes, images, targets)]

    def make(low: bool) -> tuple[Any, Callable[[], None]]:
        theirs = trainable(torchvision_detector(sizes, state)).to(device)
        ours = our_detector(sizes, state).to(device)
        return their_step(theirs, images, targets, device, low), our_step(ours, images, targets, device, low)

    theirs, ours = make(low=False)
    contenders = [Contender(TORCHVISION, theirs), Contender("detector", ours, ours=True)]
    names = ("torchvision, bf16 autocast", "detector, bf16 autocast")
    if setting.no_bf16:
        contenders += [Contender.absent(n, setting.no_bf16, ours=n == names[1], dtype=BF16) for n in names]
    else:
        steps = make(low=True)
        contenders += [Contender(n, step, ours=n == names[1], dtype=BF16) for n, step in zip(names, steps)]
    yield Comparison(
        "training",
        f"training step of {IMAGES} images with {OBJECTS} objects each, Mask R-CNN R50-FPN",
        contenders,
        reference=TORCHVISION,
        flops=count_flops(ours, gradients=True),
        items=(IMAGES, "images"),
        equal=equal,
    )


def trainable(model: Any) -> Any:
    """Freeze the stem and the first stage, as `maskrcnn_resnet50_fpn` does and our recipe too."""
    for key, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(key.startswith(("layer2", "layer3", "layer4")))
    return model


def _equal_losses(state: Any, sizes: Sizes, images: Sequence[Tensor], targets: Sequence[Targets]) -> str:
    """Compare losses on the CPU, with every anchor and proposal sampled: nothing random is left."""
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    theirs = torchvision_detector(sizes, state).train()
    for part in (theirs.rpn, theirs.roi_heads):
        part.fg_bg_sampler = BalancedPositiveNegativeSampler(EVERYTHING, 1.0)
    theirs.rpn._post_nms_top_n = {"training": FEW, "testing": FEW}
    recipe = DETECTORS[RECIPE]
    rpn = replace(recipe.rpn, keep_after_nms_train=FEW, samples_per_image=EVERYTHING, positive_fraction=1.0)
    box = replace(recipe.box, samples_per_image=EVERYTHING, positive_fraction=1.0)
    recipe = replace(recipe, rpn=rpn, box=box)
    usual, ours = our_detector(sizes, state), assemble(recipe, NUM_CLASSES, empty_backbone(recipe))
    ours.load_state_dict(usual.state_dict())
    ours.preprocess = usual.preprocess
    with torch.no_grad():
        expected = theirs([image.float() / 255 for image in images], their_targets(targets))
        losses = ours.train()(ImageBatch.from_images(images, ours.preprocess), targets)
    difference = loss_difference(losses, expected, LOSSES)
    return f"losses within {difference:.1e} of torchvision's (every anchor and {FEW} proposals sampled)"
