"""Reading and resizing images, compared with detectron2's sizes and torchvision's resize."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, features
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from heads import ImageSize
from heads.images import UnreadableImage, read_image, resize, resized_size, scaled_to_8_bits
from tests.claims import claiming


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
    with pytest.raises(UnreadableImage, match="no image at .*, which is a folder: give the files in it"):
        read_image(tmp_path)


def packed(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("image.jpg"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is an empty file .0 bytes.*: replace or remove it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "it is a git-lfs pointer.*`git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--ab.jpg\n", "it is a git-annex pointer.*: run `git annex get`"),
        (b"\n<!DOCTYPE html><title>Sign in", "it is an HTML page which begins '<!DOCTYPE html>.*: the download gave"),
        (b'<?xml version="1.0"?><Error/>', "it is a web page or an XML document which begins '<[?]xml"),
        (b'{"images": []}', 'it is a JSON document which begins \'{"images": .*: replace or remove it'),
        ("id;name\n1;größer\n".encode() * 100, "it is a text file which begins 'id;name"),
        (packed("w"), "it is a tar archive.*: unpack it"),
        (gzip.compress(packed("w"), mtime=0), "it is a gzip archive.*: unpack it"),
        (packed("w:xz"), "it is an xz archive.*: unpack it"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF document.*: convert it to PNG or JPEG"),
        (b"\0\0\0\x24ftypheic\0\0\0\0", "it is a HEIC photograph.*: convert it to PNG or JPEG"),
        (bytes(128) + b"DICM" + bytes(99), "it is a DICOM file.*: convert it"),
        (bytes(range(7, 250)), "cannot identify image file.*: replace or remove it"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"photo.jpg cannot be read as an image .{what}"):
        read_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize(("suffix", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WebP"), ("tif", "TIFF")])
def test_a_damaged_image_is_told_from_other_files(suffix: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        UnreadableImage, match=f"it begins as a {name} image but is incomplete, damaged or unusual; 2,000"
    ):
        read_image(path)


FORMATS = ["jpg", "png", "tif", "gif", "webp", "bmp", "ppm", "jp2", "ico", "tga", "avif", "dds"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([s for s in FORMATS if s != "avif" or features.check("avif")]),
    changes=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=5),
    keep=st.floats(0.02, 1),
)
def test_a_damaged_file_is_read_or_refused_but_never_another_error(
    suffix: str, changes: list[tuple[int, int]], keep: float, tmp_path: Path
) -> None:
    path = tmp_path / f"damaged.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content[: max(1, int(keep * len(content)))])
    image = np.zeros((1, 1, 3), np.uint8)
    with contextlib.suppress(UnreadableImage):
        image = read_image(path, max_pixels=10**6)
    assert image.dtype == np.uint8 and image.ndim == 3


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


GREY_VALUES = np.random.default_rng(1).integers(0, 4096, (7, 11))
GREY_VALUES[0, :3] = 0, 4095, 2048  # 12 bits


@pytest.mark.parametrize(
    ("dtype", "offset", "suffix"),
    [
        ("<u2", 0, "png"),
        ("<u2", 0, "tif"),
        (">u2", 0, "tif"),
        ("<u2", 61000, "png"),
        ("<i4", -2000, "tif"),
        ("<i4", 1_000_000, "tif"),
        ("<f4", -1.5, "tif"),
        ("<f4", 0, "tif"),
    ],
)
def test_deep_greyscale_spans_0_to_255_between_its_extremes(
    dtype: str, offset: float, suffix: str, tmp_path: Path
) -> None:
    """The reference is OpenCV's min-max normalisation; 12 bits in a file of 16 neither clip nor turn black."""
    values = (GREY_VALUES + offset).astype(dtype)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    expected = cv2.normalize(values.astype(np.float64), None, 0, 255, cv2.NORM_MINMAX)
    rgb = read_image(path)
    assert rgb.dtype == np.uint8 and rgb.shape == (7, 11, 3) and (rgb == rgb[..., :1]).all()
    assert np.abs(rgb[..., 0] - expected).max() <= 0.5 + 1e-9
    assert rgb[0, :3, 0].tolist() == [0, 255, 128]


@settings(max_examples=100, deadline=None)
@given(
    values=arrays(np.float32, (3, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    | arrays(np.uint16, (3, 5))
    | arrays(np.int32, (3, 5))
)
def test_scaling_keeps_the_order_of_values_and_ends_at_0_and_255(values: np.ndarray) -> None:
    scaled = scaled_to_8_bits(values).reshape(-1)[np.argsort(values, axis=None)]
    assert (np.diff(scaled.astype(int)) >= 0).all()
    assert [scaled[0], scaled[-1]] == [0, 255 if values.min() < values.max() else 0]


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<f4"])
def test_a_turned_tiff_is_read_upright(dtype: str, tmp_path: Path) -> None:
    """Also uncompressed ones, which Pillow reads wrong from a path."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((GREY_VALUES % 251).astype(dtype)).save(tmp_path / "turned.tif", exif=exif)
    Image.fromarray((GREY_VALUES % 251).astype(dtype)).save(tmp_path / "plain.tif")
    assert np.array_equal(read_image(tmp_path / "turned.tif"), np.rot90(read_image(tmp_path / "plain.tif"), k=-1))


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_white_is_zero_in_a_tiff_of_more_than_8_bits_is_inverted(dtype: str, tmp_path: Path) -> None:
    """Pillow inverts 8-bit images of this kind only."""
    Image.fromarray(GREY_VALUES.astype(dtype)).save(tmp_path / "black_is_zero.tif")
    Image.fromarray(GREY_VALUES.astype(dtype)).save(tmp_path / "white_is_zero.tif", tiffinfo={262: 0})
    assert np.array_equal(read_image(tmp_path / "white_is_zero.tif"), 255 - read_image(tmp_path / "black_is_zero.tif"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_images_with_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    values = GREY_VALUES.astype(np.float32)
    values[2, 3] = value
    Image.fromarray(values).save(tmp_path / "gap.tif")
    with pytest.raises(UnreadableImage, match=r"gap.tif: 1 of 77 values are NaN or infinite: replace them"):
        read_image(tmp_path / "gap.tif")


PIXELS = np.random.default_rng(2).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(3).integers(0, 256, (6, 9, 1), dtype=np.uint8)
PALETTE = np.random.default_rng(4).integers(0, 256, (16, 3), dtype=np.uint8)
INDEX = np.random.default_rng(5).integers(0, 16, (6, 9), dtype=np.uint8)


def palette_image() -> Image.Image:
    image = Image.fromarray(INDEX, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def from_cmyk(cmyk: np.ndarray) -> np.ndarray:
    """Subtractive colour: (255 - ink) (255 - black) / 255."""
    ink, black = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    return (255 - ink) * (255 - black) / 255


def from_ycbcr(ycbcr: np.ndarray) -> np.ndarray:
    """The matrix of JFIF (ITU-R BT.601, full range)."""
    y, cb, cr = ycbcr[..., 0].astype(float), ycbcr[..., 1] - 128.0, ycbcr[..., 2] - 128.0
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    return np.clip(rgb, 0, 255)


RGBA = np.concatenate([PIXELS, ALPHA], axis=2)
GREY3 = PIXELS[..., :1].repeat(3, axis=2)


@pytest.mark.parametrize(
    ("name", "image", "options", "expected", "tolerance"),
    [
        ("rgb.png", Image.fromarray(PIXELS), {}, PIXELS, 0),
        ("grey.png", Image.fromarray(PIXELS[..., 0]), {}, GREY3, 0),
        ("one_bit.png", Image.fromarray(PIXELS[..., 0] > 99), {}, 255 * (GREY3 > 99), 0),
        ("palette.png", palette_image(), {}, PALETTE[INDEX], 0),
        ("transparent_palette.png", palette_image(), {"transparency": 3}, PALETTE[INDEX], 0),
        ("grey_alpha.png", Image.fromarray(RGBA[..., [0, 3]]), {}, GREY3, 0),
        ("rgba.png", Image.fromarray(RGBA), {}, PIXELS, 0),
        ("cmyk.tif", Image.fromarray(RGBA, "CMYK"), {}, from_cmyk(RGBA), 1),
        ("pages.tif", Image.fromarray(PIXELS), {"save_all": True, "append_images": [palette_image()]}, PIXELS, 0),
        ("still.gif", palette_image(), {"save_all": True, "append_images": [Image.fromarray(INDEX)]}, None, 0),
        ("ycbcr.tif", Image.fromarray(PIXELS, "YCbCr"), {}, from_ycbcr(PIXELS), 1),
    ],
)
def test_every_mode_has_the_colours_that_an_independent_computation_gives(
    name: str, image: Image.Image, options: dict[str, Any], expected: np.ndarray | None, tolerance: int, tmp_path: Path
) -> None:
    """Alpha is ignored, palettes are looked up, of several pages or frames the first is taken."""
    image.save(tmp_path / name, **options)
    expected = PALETTE[INDEX] if expected is None else expected
    assert np.abs(read_image(tmp_path / name).astype(float) - expected).max() <= tolerance


def test_colour_of_16_bits_keeps_its_upper_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(6).integers(0, 2**16, (5, 8, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), values[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "deep.png"), values >> 8)


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(claiming(100_000, 100_000))
    with pytest.raises(
        UnreadableImage, match=r"bomb.png is too large \(.*10000000000 pixels.*data.max_image_mpx.*max_pixels"
    ):
        read_image(tmp_path / "bomb.png")


def test_max_pixels_lowers_and_raises_the_limit_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png", max_pixels=54), PIXELS)
    with pytest.raises(UnreadableImage, match=r"\(54 pixels\) exceeds limit of 53 pixels"):
        read_image(tmp_path / "image.png", max_pixels=53)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow refuses more than twice as many
    with pytest.raises(UnreadableImage, match="image.png is too large"):
        read_image(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png", max_pixels=54), PIXELS)  # the fix of the message
    assert Image.MAX_IMAGE_PIXELS == 20


@pytest.mark.parametrize("size", [ImageSize(20, 5000), ImageSize(5000, 20), ImageSize(1, 60000)])
@pytest.mark.parametrize("how", ["pillow", "opencv", "torch"])
def test_a_long_thin_image_is_resized_within_the_limit_of_the_long_side(size: ImageSize, how: str) -> None:
    new_size = resized_size(size, short_side_px=800, long_side_px=1333, how=how)
    resized = resize(np.zeros((size.height, size.width, 3), np.uint8), new_size, how=how)
    assert resized.shape == (new_size.height, new_size.width, 3) and 1332 <= max(resized.shape) <= 1333
