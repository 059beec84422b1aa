"""Predictor: images of any kind in, detections in pixels of the images out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heads import (
    RCNN,
    BitMasks,
    Detections,
    DetectorRecipe,
    ImageBatch,
    ImageSize,
    PolygonMasks,
    Predictor,
    RoiMasks,
    build_detector,
)
from heads.boxes import iou
from heads.images import UnreadableImage
from heads.masks import polygons_from
from heads.predictor import as_array, to_image
from resnet_backbone import Preprocess


@pytest.fixture(scope="module")
def detector(small_recipe: DetectorRecipe) -> RCNN:
    """A small detector with random weights."""
    torch.manual_seed(1)
    net = build_detector(replace(small_recipe, norm="gn"), num_classes=3)
    # initial weights give almost equal scores, and then rounding decides which detections are kept
    for layer in ("box_head.logits", "rpn.objectness", "mask_head.logits"):
        torch.nn.init.normal_(net.get_parameter(f"{layer}.weight"), std=0.5)
    net.preprocess = Preprocess(short_side_px=64, long_side_px=128)
    return net


def detections_at(boxes: Sequence[Sequence[float]], masks: RoiMasks | None = None) -> Detections:
    """Detections at these boxes, with falling scores and different classes."""
    count = len(boxes)
    return Detections(torch.tensor(boxes), torch.linspace(0.9, 0.1, count), torch.arange(count), masks)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal_detections(a: Detections, b: Detections) -> None:
    torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(a.labels, b.labels) and isinstance(a.masks, BitMasks) and isinstance(b.masks, BitMasks)
    assert (a.masks.bits != b.masks.bits).float().mean() < 1e-3


def test_boxes_are_scaled_by_separate_factors_for_width_and_height() -> None:
    """Width and height have different factors, because both resized sides are rounded."""
    network, image = ImageSize(height=50, width=80), ImageSize(height=101, width=164)
    boxes = to_image(detections_at([[8.0, 5.0, 40.0, 25.0], [0.0, 0.0, 80.0, 50.0]]), network, image).boxes
    torch.testing.assert_close(boxes, torch.tensor([[16.4, 10.1, 82.0, 50.5], [0.0, 0.0, 164.0, 101.0]]))


@pytest.mark.parametrize(("height", "width"), [(37, 91), (480, 640), (1000, 333)])
def test_to_image_is_the_inverse_of_resizing(height: int, width: int) -> None:
    image, network = ImageSize(height, width), ImageSize(height=64, width=117)
    corner = torch.rand(20, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + 9], dim=1)
    small = boxes * torch.tensor([network.width / width, network.height / height] * 2)
    torch.testing.assert_close(
        to_image(detections_at(small.tolist()), network, image).boxes, boxes, rtol=1e-5, atol=1e-4
    )


def test_masks_have_the_size_of_the_image_and_lie_on_the_object() -> None:
    diamond = PolygonMasks((polygons_from([[100, 40, 160, 80, 100, 120, 40, 80]]),))
    boxes = torch.tensor([[40.0, 40, 160, 120]])
    roi = RoiMasks(diamond.crop_to(boxes, 28).float())
    (bits,) = to_image(detections_at((boxes / 2).tolist(), roi), ImageSize(90, 120), ImageSize(180, 240)).masks.bits  # type: ignore[union-attr]
    expected = diamond.crop_to(torch.tensor([[0.0, 0, 240, 240]]), 240)[0, :180]
    # 0.9, because a cell of the mask is four pixels wide
    assert bits.shape == (180, 240) and (bits & expected).sum() / (bits | expected).sum() > 0.9


def test_boxes_that_are_empty_in_the_image_are_dropped_with_their_masks() -> None:
    detections = detections_at([[5.0, 5, 9, 9], [3.0, 3, 3, 8], [200.0, 2, 300, 9]], RoiMasks(torch.ones(3, 28, 28)))
    kept = to_image(detections, ImageSize(50, 50), ImageSize(100, 100))
    assert kept.labels.tolist() == [0] and kept.masks is not None and len(kept.masks) == 1


def test_exif_orientation_is_applied_to_paths_and_pillow_images(tmp_path: Path, detector: RCNN) -> None:
    """Orientation 6: the stored image is rotated by 90 degrees clockwise for display."""
    stored = np.zeros((40, 64, 3), dtype=np.uint8)
    stored[:, :32, 0], stored[:20, :, 1] = 200, 200
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(stored).save(path, exif=exif, quality=95)
    upright = np.rot90(stored, k=-1)
    for image in (path, str(path), Image.open(path)):
        array = as_array(image)
        assert array.shape == (64, 40, 3)
        assert np.abs(array.astype(int) - upright).mean() < 5
    (detections,) = Predictor(detector)([path])
    assert isinstance(detections.masks, BitMasks) and detections.masks.bits.shape[1:] == (64, 40)
    assert_equal_detections(detections, Predictor(detector)([as_array(path)])[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros(4, np.uint8), r"\(H, W, 3\) uint8 RGB, or \(H, W\) uint8 for grey, this one is \(4,\) uint8"),
        (np.zeros((4, 4, 3), np.float32), r"this one is \(4, 4, 3\) float32: give image.astype\(np.uint8\) if"),
        (np.zeros((4, 4), np.uint16), r"this one is \(4, 4\) uint16: .* or heads.images.scaled_to_8_bits\(image\)"),
        (np.zeros((4, 4), bool), r"this one is \(4, 4\) bool: give 255 \* image.astype\(np.uint8\)"),
        (np.zeros((3, 4, 5), np.uint8), r"this one is \(3, 4, 5\) uint8: give image.transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 4), np.uint8), r"this one is \(4, 4, 4\) uint8: .*image\[..., :3\] if there is an alpha"),
        (np.zeros((9, 9, 4), np.uint8), r"this one is \(9, 9, 4\) uint8: give image\[..., :3\], without the alpha"),
        (np.zeros((9, 9, 2), np.uint8), r"this one is \(9, 9, 2\) uint8: give image\[..., 0\], without the alpha"),
        (np.zeros((0, 4, 3), np.uint8), r"this one is \(0, 4, 3\) uint8: it has no pixels, leave it out"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "an image is an array, a Pillow image or a path, not Tensor"),
        (None, "not NoneType"),
    ],
)
def test_other_types_and_shapes_than_images_are_refused(image: object, message: str, detector: RCNN) -> None:
    with pytest.raises(TypeError, match=message):
        Predictor(detector)([image])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "image", ["a.jpg", Path("a.jpg"), noise(4, 4), Image.new("RGB", (4, 4))], ids=["str", "path", "array", "pillow"]
)
def test_a_single_image_without_a_list_is_refused(image: object, detector: RCNN) -> None:
    with pytest.raises(TypeError, match="takes a list of images: put this one in brackets"):
        Predictor(detector)(image)  # type: ignore[arg-type]


def test_an_array_of_images_and_what_is_no_list_are_refused(detector: RCNN) -> None:
    images = np.stack([noise(40, 50)] * 2)
    with pytest.raises(TypeError, match=r"this is one array of them: give list\(images\)"):
        Predictor(detector)(images)  # type: ignore[arg-type]
    assert len(Predictor(detector)(list(images))) == 2
    with pytest.raises(TypeError, match="takes a list of images, not int"):
        Predictor(detector)(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["pillow", "opencv", "torch"])
def test_arrays_of_any_strides_equal_their_contiguous_copies(resize: str, detector: RCNN) -> None:
    image = noise(64, 96)
    turned = replace(detector.preprocess, resize=resize)  # type: ignore[arg-type]
    views = [image[..., ::-1], image[::-1], image[:, ::-1], image[::2, ::3], image.transpose(1, 0, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "preprocess", turned)
        copies = [np.array(view, order="C") for view in views]
        for a, b in zip(Predictor(detector)(views), Predictor(detector)(copies), strict=True):
            assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and len(a)


def test_grey_arrays_are_read_as_grey_rgb(detector: RCNN) -> None:
    grey = noise(64, 96)[..., 0]
    rgb = as_array(grey)
    assert rgb.shape == (64, 96, 3) and all(np.array_equal(rgb[..., channel], grey) for channel in range(3))
    assert np.array_equal(as_array(grey[:, :, None]), rgb) and np.array_equal(as_array(grey[:, ::-1]), rgb[:, ::-1])
    assert len(Predictor(detector)([grey])[0])


@pytest.mark.parametrize(("height", "width"), [(20, 5000), (5000, 20)])
def test_a_long_thin_image_has_detections_in_its_own_pixels(height: int, width: int, detector: RCNN) -> None:
    """The network sees 128 by 1 pixels of it."""
    (found,) = Predictor(detector)([noise(height, width)])
    assert (found.boxes <= torch.tensor([width, height, width, height])).all() and (found.boxes >= 0).all()
    assert isinstance(found.masks, BitMasks) and found.masks.image_size == (height, width)


def test_a_generator_is_read_batch_by_batch(detector: RCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    images = [noise(40, 50 + i) for i in range(3)]
    detect = detector.detect

    def recorded(batch: ImageBatch) -> list[Detections]:
        events.append(f"detect {len(batch.sizes)}")
        return detect(batch)

    def generate() -> Iterator[np.ndarray]:
        for image in images:
            events.append("read")
            yield image

    expected = Predictor(detector, batch_size=2)(images)
    monkeypatch.setattr(detector, "detect", recorded)
    for a, b in zip(Predictor(detector, batch_size=2)(generate()), expected, strict=True):
        assert_equal_detections(a, b)
    assert events == ["read", "read", "detect 2", "read", "detect 1"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.002), (torch.bfloat16, 0.01), (torch.float64, 1e-4)]
)
def test_a_detector_of_another_precision_detects_what_it_detects_in_float32(
    dtype: torch.dtype, tolerance: float, detector: RCNN
) -> None:
    """Most boxes that float32 finds are found, with scores that differ by rounding; boxes are float32 or float64."""
    image = noise(60, 90)
    (expected,) = Predictor(detector)([image])
    (found,) = Predictor(copy.deepcopy(detector).to(dtype))([image])
    assert found.boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert isinstance(found.masks, BitMasks) and len(found.masks) == len(found) > 10
    overlaps, rows = iou(expected.boxes, found.boxes.float()).max(dim=1)
    differences = (expected.scores - found.scores[rows].float()).abs()[overlaps > 0.9]
    assert (overlaps > 0.9).float().mean() >= 0.8 and differences.median() <= tolerance


def test_error_for_a_missing_file_names_it(detector: RCNN) -> None:
    with pytest.raises(UnreadableImage, match="no image at nowhere.jpg"):
        Predictor(detector)(["nowhere.jpg"])


def test_an_unknown_precision_is_refused(detector: RCNN) -> None:
    with pytest.raises(ValueError, match="precision='int8' is unknown: give one of fp32, bf16, fp16"):
        Predictor(detector, precision="int8")


def test_no_images_give_no_detections(detector: RCNN) -> None:
    assert Predictor(detector)([]) == []


def test_detections_do_not_depend_on_the_batch_size(detector: RCNN) -> None:
    images = [noise(60, 90), noise(60, 90)[::-1].copy(), noise(60, 90)[:, ::-1].copy()]
    one_per_batch, two_per_batch = Predictor(detector)(images), Predictor(detector, batch_size=2)(images)
    assert len(one_per_batch) == len(two_per_batch) == 3 and all(len(detections) > 3 for detections in one_per_batch)
    for a, b in zip(one_per_batch, two_per_batch):
        assert_equal_detections(a, b)


def test_masks_and_boxes_of_photographs_have_the_size_of_the_photographs(coco_mini: Path, detector: RCNN) -> None:
    paths = sorted((coco_mini / "val2017").glob("*.jpg"))[:2]
    for path, detections in zip(paths, Predictor(detector, precision="bf16")(paths)):
        with Image.open(path) as image:
            width, height = image.size
        assert len(detections) and isinstance(detections.masks, BitMasks)
        assert detections.masks.bits.shape == (len(detections), height, width)
        assert detections.boxes[:, 2].max() <= width and detections.boxes[:, 3].max() <= height
        assert detections.boxes[:, 2:].max() > 130  # more than the 128 px of the resized image
