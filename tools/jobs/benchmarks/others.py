"""detectron2, mayaku and OpenVINO, where they are installed, with the weights of our detector.

They are imported inside functions only; nothing else of this project needs them.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.detector import RCNN
from heads.keymaps import to_layout

from .setting import Sizes

Run = Callable[[np.ndarray], object]


def installed(package: str) -> bool:
    """Whether a package can be imported.

    Args:
        package: its name.

    Returns:
        True if it is there.
    """
    return importlib.util.find_spec(package) is not None


def detectron2_detector(detector: RCNN, sizes: Sizes, device: str) -> Any:
    """detectron2's Mask R-CNN R50-FPN with the weights of ours.

    Its RoIAlign, its anchors and its clipping follow detectron2's conventions, so its detections differ from those of a
    detector with torchvision's conventions; the work is the same.

    Args:
        detector: ours.
        sizes: number of proposals.
        device: where it runs.

    Returns:
        The detector, in inference mode.
    """
    from detectron2 import model_zoo

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    config.MODEL.DEVICE = device
    config.MODEL.WEIGHTS = ""
    config.MODEL.ROI_HEADS.NUM_CLASSES = detector.box_head.num_classes
    config.MODEL.RESNETS.STRIDE_IN_1X1 = False
    config.MODEL.RPN.POST_NMS_TOPK_TEST = sizes.proposals
    mean, std = detector.preprocess.mean, detector.preprocess.std
    config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD = [255 * v for v in mean], [255 * v for v in std]
    from detectron2.modeling import build_model

    model = build_model(config)
    state = to_layout(detector.state_dict(), "detectron2", detector.background)
    missing = [key for key in model.load_state_dict(state, strict=False).missing_keys if not key.startswith("pixel_")]
    assert not missing, missing
    return model.eval()


def detectron2_run(model: Any, sizes: Sizes) -> Run:
    """What `DefaultPredictor` does: resize by Pillow, detect, and paste the masks.

    Args:
        model: from `detectron2_detector`.
        sizes: image size.

    Returns:
        The function from a picture to its instances.
    """
    from detectron2.data.transforms import ResizeShortestEdge

    resize = ResizeShortestEdge([sizes.short_side_px] * 2, sizes.long_side_px)

    def run(picture: np.ndarray) -> object:
        image = resize.get_transform(picture).apply_image(picture)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with torch.inference_mode():
            return model([{"image": pixels, "height": picture.shape[0], "width": picture.shape[1]}])

    return run


def detectron2_reader(annotations: Path, sides_px: Sequence[int], long_side_px: int) -> Callable[[int], object]:
    """detectron2's `DatasetMapper` for training with masks.

    Args:
        annotations: a COCO file with absolute paths.
        sides_px: short sides to draw from, pixels.
        long_side_px: largest long side, pixels.

    Returns:
        The function from the index of an image to its sample.
    """
    from detectron2.data import DatasetMapper, transforms
    from detectron2.data.datasets import load_coco_json

    with redirect_stdout(StringIO()):
        rows = load_coco_json(str(annotations), "")
    outlines = [annotation["segmentation"] for row in rows for annotation in row["annotations"]]
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[transforms.ResizeShortestEdge(sides_px, long_side_px, "choice"), transforms.RandomFlip()],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon" if all(isinstance(outline, list) for outline in outlines) else "bitmask",
    )
    return lambda index: mapper(rows[index])


def mayaku_run(detector: RCNN, sizes: Sizes, device: str) -> Run:
    """Mayaku's Mask R-CNN R50-FPN with the weights of ours; the function from a picture to its instances.

    Args:
        detector: ours.
        sizes: image size and number of proposals.
        device: where it runs.

    Returns:
        Its predictor.
    """
    from mayaku import d2
    from mayaku.config.schemas import MayakuConfig
    from mayaku.inference.predictor import Predictor
    from mayaku.models.detectors import build_mask_rcnn

    model = {
        "meta_architecture": "mask_rcnn",
        "mask_on": True,
        "roi_mask_head": {},
        "roi_heads": {"num_classes": detector.box_head.num_classes},
        "rpn": {"post_nms_topk_test": sizes.proposals},
    }
    built = build_mask_rcnn(MayakuConfig.model_validate({"model": model}))
    # the conversion that `mayaku convert-d2` does; it has no function for tensors that are no file
    state = d2._remap(to_layout(detector.state_dict(), "detectron2", detector.background))
    built.load_state_dict(state)
    limits = {"min_size_test": sizes.short_side_px, "max_size_test": sizes.long_side_px}
    predictor: Run = Predictor(built.to(device), **limits)

    def run(picture: np.ndarray) -> object:
        with torch.inference_mode():
            return predictor(picture)

    return run


class DenseAsTuple(nn.Module):
    """`RCNN.dense` with a tuple of tensors as output, without the anchors.

    Args:
        detector: a copy for inference.
    """

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features, logits and deltas of every level."""
        output = self.detector.plain_dense(pixels)
        return (*output.features.values(), *output.rpn.logits, *output.rpn.deltas)


def openvino_dense(detector: RCNN, pixels: Tensor, dtype: str) -> tuple[Callable[[], list[np.ndarray]], float]:
    """Our dense part, compiled by OpenVINO for the CPU and the size of these pixels.

    Args:
        detector: a copy for inference, in fp32.
        pixels: (N, 3, H, W).
        dtype: "fp32" or "bf16".

    Returns:
        A function that runs it on the pixels, and the seconds that conversion and compilation took.
    """
    import openvino

    began = time.perf_counter()
    converted = openvino.convert_model(DenseAsTuple(detector), example_input=pixels, input=[tuple(pixels.shape)])
    hint = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[dtype]}
    compiled = openvino.compile_model(converted, "CPU", hint)
    array = np.ascontiguousarray(pixels.numpy())
    seconds = time.perf_counter() - began

    def run() -> list[np.ndarray]:
        outputs = compiled(array)
        return [outputs[i] for i in range(len(compiled.outputs))]

    return run, seconds
