"""The outputs of every stage of a detector for a generated image: what a certificate holds and is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from resnet_backbone.backbone import ResNetBody
from resnet_backbone.errors import InvalidType
from resnet_backbone.weights.certificate import (
    Fingerprint,
    check_fingerprint,
    generated_pixels,
    inference_copy,
    sample_outputs,
)

from .detector import RCNN

# boxes for which the heads run, in pixels of the generated image: inside it, touching its sides, of several sizes
BOXES = ((8.0, 8.0, 72.0, 56.0), (30.5, 20.25, 140.0, 110.0), (0.0, 0.0, 159.0, 119.0), (60.0, 40.0, 76.0, 52.0))


def rebuildable_body(detector: RCNN) -> ResNetBody:
    """The backbone of a detector that can be written to a file.

    Args:
        detector: the detector.

    Returns:
        Its backbone.

    Raises:
        InvalidType: a backbone of another project, which no recipe can build again, or a copy for inference.
    """
    if detector.is_copy_for_inference:
        raise InvalidType(
            "this detector is a copy for inference, with folded norms: save the one on which for_inference was called"
        )
    if not isinstance(detector.backbone, ResNetBody):
        raise InvalidType(f"{type(detector.backbone).__name__} cannot be rebuilt from a recipe: save its state_dict()")
    return detector.backbone


def detector_fingerprint(detector: RCNN) -> Fingerprint:
    """Run every stage on a generated image, the heads on fixed boxes; nothing behind a suppression.

    Args:
        detector: a detector around a `ResNetBackbone`, on any device and in any mode.

    Returns:
        Stage -> sampled outputs, in the order in which an image meets the stages.

    Raises:
        InvalidType: another backbone, which no recipe can build again.
    """
    plain = inference_copy(detector)
    body, pixels = rebuildable_body(plain), generated_pixels(plain.preprocess)
    boxes = [torch.tensor(BOXES)]
    with torch.inference_mode():
        outputs = body.all_levels(pixels)
        levels = plain.neck({level: outputs[level] for level in body.out_levels})
        rpn = plain.rpn(levels, (pixels.shape[-2], pixels.shape[-1]))
        outputs |= levels | {"rpn logits": torch.cat(rpn.logits, 1), "rpn deltas": torch.cat(rpn.deltas, 1)}
        for number, stage in enumerate(plain.roi_stages):
            suffix = f" {number + 1}" if number else ""
            regions = stage.pooler(levels, boxes)
            logits, deltas = stage.head(regions)
            outputs |= {f"box regions{suffix}": regions, f"box logits{suffix}": logits, f"box deltas{suffix}": deltas}
        for name, instance in plain.instance_heads.items():
            outputs[f"{name} logits"] = instance.head(instance.pooler(levels, boxes))
    return sample_outputs(outputs)


def check_outputs(detector: RCNN, meta: Mapping[str, Any], where: str) -> None:
    """Compare a detector's outputs with those in the certificate of the file that it was loaded from.

    Args:
        detector: the detector, with the weights of the file.
        meta: the metadata of the file. The stage of a mask head that the detector was built without is not compared.
        where: the name of the file, for the message.

    Raises:
        CertificateMismatch: the outputs differ; the message names the first stage.
    """
    certified = dict(meta["fingerprint"])
    if meta["recipe"]["mask"] is not None and "mask" not in detector.instance_heads:
        certified.pop("mask logits", None)
    check_fingerprint(detector_fingerprint(detector), certified, where)
