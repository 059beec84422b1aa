"""Row of the loader: reading, decoding, flipping and resizing a training image with its masks, in one worker."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from tools.data.coco import CocoData, restrict
from tools.data.loader import Draw
from tools.jobs.detection_data import load_train
from tools.jobs.detection_setup import training_images

from . import others
from .contenders import NOT_INSTALLED, Comparison, Contender, for_each
from .data_set import LONG_SIDE_PX, SIDES_PX, config_of
from .setting import Setting

TORCHVISION = "torchvision's references (v2)"


def loader(setting: Setting) -> Iterator[Comparison]:
    """Training images with masks, short side drawn from 640 to 800 px and a random flip, in one process.

    Args:
        setting: how to run.

    Yields:
        One comparison.
    """
    with tempfile.TemporaryDirectory() as temporary, one_thread():
        folder = setting.data
        if folder is None:
            from tools.data.shapes import generate_shapes  # not at the top: `--help` does not need OpenCV

            folder = Path(temporary) / "shapes"
            count = 4 if setting.quick else 40
            generate_shapes(folder, train_images=count, val_images=1, side_px=144 if setting.quick else 480)
        config = config_of(folder)
        data = restrict(load_train(config), objects=None, max_images=4 if setting.quick else 40)
        count = len(data.records)
        images = training_images(config, data)
        annotations = Path(temporary) / "instances.json"
        annotations.write_text(json.dumps(_as_coco(data)), encoding="utf-8")
        read = _torchvision(annotations)
        contenders = [
            Contender(TORCHVISION, for_each(read, range(count))),
            Contender("TrainingImages", for_each(lambda i: images[Draw(i, 0)], range(count)), ours=True),
        ]
        mapper = "detectron2's DatasetMapper"
        if others.installed("detectron2"):
            reader = others.detectron2_reader(annotations, SIDES_PX, LONG_SIDE_PX)
            contenders.append(Contender(mapper, for_each(reader, range(count))))
        else:
            contenders.append(Contender.absent(mapper, NOT_INSTALLED))
        yield Comparison(
            "loader",
            f"{count} training images with masks, short side 640 to 800 px, random flip, one worker of one thread",
            contenders,
            reference=TORCHVISION,
            items=(count, "images"),
            equal=["the transforms are random; every contender draws its own sizes and flips"],
        )


def _as_coco(data: CocoData) -> dict[str, Any]:
    """A split as the content of a COCO file, with absolute paths."""
    content = data.table.to_coco()
    for image, path in zip(content["images"], data.table.paths):
        image["file_name"] = str(path.resolve())
    return content


def _torchvision(annotations: Path) -> Callable[[int], object]:
    """The pipeline of torchvision's detection references with --backend pil --use-v2."""
    from torchvision import tv_tensors
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    transforms = v2.Compose(
        [
            v2.RandomShortestSize(min_size=SIDES_PX, max_size=LONG_SIDE_PX),
            v2.RandomHorizontalFlip(0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float, scale=True),
            v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    with redirect_stdout(StringIO()):
        images = CocoDetection("", str(annotations), transforms=transforms)
    wrapped = wrap_dataset_for_transforms_v2(images, target_keys={"boxes", "labels", "masks"})
    read: Callable[[int], object] = wrapped.__getitem__
    return read


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker of a loader: torch and OpenCV use one thread."""
    import cv2  # not at the top: `--help` does not need it

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
