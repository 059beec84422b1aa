"""Reading and resizing images, compared with detectron2's sizes and torchvision's resize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from heads import ImageSize
from heads.images import UnreadableImage, read_image, resize, resized_size


def detectron2_size(height: int, width: int, short: int, longest: int) -> tuple[float, float]:
    """`ResizeShortestEdge.get_output_shape`, before it rounds."""
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return new_height, new_width


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 5000), width=st.integers(1, 5000), rule=st.sampled_from([(800, 1333), (640, 640), (64, 128)])
)
def test_resized_size_equals_detectron2(height: int, width: int, rule: tuple[int, int]) -> None:
    exact = detectron2_size(height, width, *rule)
    # at exact halves the result depends on the order of operations
    assume(all(abs(side % 1 - 0.5) > 1e-6 for side in exact))
    size = resized_size(ImageSize(height, width), short_side_px=rule[0], long_side_px=rule[1])
    assert (size.height, size.width) == tuple(max(1, int(side + 0.5)) for side in exact)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_resized_sides_are_between_one_pixel_and_the_limit(height: int, width: int) -> None:
    size = resized_size(ImageSize(height, width), short_side_px=800, long_side_px=1333)
    assert max(size.height, size.width) <= 1333 and min(size.height, size.width) >= 1
    assert min(size.height, size.width) == 800 or max(size.height, size.width) == 1333


@pytest.mark.parametrize("size", [ImageSize(40, 50), ImageSize(150, 260), ImageSize(33, 240)])
def test_default_resize_is_bilinear_with_antialiasing(size: ImageSize) -> None:
    """The reference is torch's antialiased filter."""
    image = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    resized = resize(image, size)
    assert resized.shape == (size.height, size.width, 3) and resized.dtype == np.uint8
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(planes, size=(size.height, size.width), mode="bilinear", antialias=True)[0].permute(
        1, 2, 0
    )
    assert np.abs(resized - expected.numpy()).max() <= 1.01


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 1200), width=st.integers(1, 1200), rule=st.sampled_from([(800, 1333), (320, 480)]))
def test_torch_size_equals_torchvision(height: int, width: int, rule: tuple[int, int]) -> None:
    size = resized_size(ImageSize(height, width), short_side_px=rule[0], long_side_px=rule[1], how="torch")
    # torchvision fails for sides below one pixel
    assume(size.height * size.width < 10**6 and min(size.height, size.width) > 1)
    transform = GeneralizedRCNNTransform(*rule, [0.0] * 3, [1.0] * 3)
    resized, _ = transform.resize(torch.zeros(3, height, width))
    assert resized.shape == (3, size.height, size.width)


def test_torch_resize_equals_torchvision() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    transform = GeneralizedRCNNTransform(60, 90, [0.0] * 3, [1.0] * 3)
    size = resized_size(ImageSize(100, 160), short_side_px=60, long_side_px=90, how="torch")
    for precise in (False, True):
        planes = torch.from_numpy(image).permute(2, 0, 1)
        expected, _ = transform.resize(planes.double() if precise else planes.float())
        resized = resize(image, size, how="torch", precise=precise)
        assert np.array_equal(resized, expected.permute(1, 2, 0).numpy())


def test_opencv_resize_is_within_one_level_of_the_torch_resize() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    resized = resize(image, ImageSize(57, 90), how="opencv")
    assert resized.dtype == np.uint8 and resized.shape == (57, 90, 3)
    assert np.abs(resized - resize(image, ImageSize(57, 90), how="torch")).max() <= 1.01


def test_an_image_of_the_requested_size_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert np.array_equal(resize(image, ImageSize(7, 9)), image)


def test_error_for_a_missing_image_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no image at .*gone.jpg: check the folder and the file name"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6])
def test_error_for_a_truncated_image_names_it(suffix: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(UnreadableImage, match=f"half.{suffix} cannot be read as an image .*: replace or remove it"):
        read_image(path)


def test_a_text_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(UnreadableImage, match="page.jpg cannot be read as an image"):
        read_image(tmp_path / "page.jpg")
    with pytest.raises(UnreadableImage, match="no image at"):
        read_image(tmp_path)


COLOURS = Image.fromarray(
    np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [40, 80, 160]]], np.uint8), 8, axis=0).repeat(8, axis=1)
)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("L", "jpg"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg")],
)
def test_every_colour_mode_is_converted_to_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    COLOURS.convert(mode).save(path)
    array = read_image(path)
    assert array.shape == (8, 24, 3) and array.dtype == np.uint8
    expected = np.asarray(COLOURS.convert("L").convert("RGB") if mode in ("L", "LA") else COLOURS)
    if mode == "1":
        assert set(np.unique(array)) <= {0, 255} and (array == array[..., :1]).all()
    else:
        assert np.abs(array.astype(int) - expected).mean() < 6
