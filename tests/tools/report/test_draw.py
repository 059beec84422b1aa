"""Drawn outlines and masks change exactly their own pixels; labels are complete and readable."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads import BitMasks, RoiMasks
from tools.report.draw import MAX_MAGNIFIED_PX, colour_of, draw_instances, readable_on, zoom_for

Pixels = npt.NDArray[np.uint8]
GREY = 127
H, W = 90, 120


def grey(height: int = H, width: int = W) -> Pixels:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def changed(drawn: Pixels) -> npt.NDArray[np.bool_]:
    different: npt.NDArray[np.bool_] = (drawn != GREY).any(axis=2)
    return different


def extent(bits: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def in_colour(drawn: Pixels, name: str) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (drawn == np.array(colour_of(name), dtype=np.uint8)).all(axis=2)
    return same


sides = st.floats(0.0, 40.0, allow_nan=False).map(lambda side: round(side, 3))


@settings(max_examples=60, deadline=None)
@given(x1=sides, y1=sides, width=sides, height=sides)
def test_an_outline_is_the_border_of_the_pixels_that_its_box_touches(
    x1: float, y1: float, width: float, height: float
) -> None:
    box = (x1, y1, x1 + width + 0.5, y1 + height + 0.5)
    drawn = draw_instances(grey(), np.array([box]), [""])
    left, top, right, bottom = (
        *(math.floor(side) for side in box[:2]),
        *(math.ceil(side) - 1 for side in box[2:]),
    )
    border = np.zeros((H, W), dtype=bool)
    border[top : bottom + 1, left : right + 1] = True
    border[top + 1 : bottom, left + 1 : right] = False
    assert np.array_equal(changed(drawn), border)


def test_a_magnified_outline_covers_the_same_pixels() -> None:
    drawn = draw_instances(grey(30, 40), np.array([[3.0, 5.0, 20.0, 12.0]]), [""], min_side_px=100)
    assert drawn.shape == (120, 160, 3)  # zoom 4: the smallest integer that gives 100 px
    assert extent(changed(drawn)) == (12, 20, 79, 47)


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 9000), width=st.integers(1, 9000), min_side_px=st.integers(0, 1000))
def test_magnification_stops_before_the_longer_side_is_too_long(height: int, width: int, min_side_px: int) -> None:
    zoom = zoom_for(height, width, min_side_px)
    long_side, short_side = max(height, width), min(height, width)
    assert zoom == 1 or zoom * long_side <= MAX_MAGNIFIED_PX
    assert zoom * short_side >= min_side_px or (zoom + 1) * long_side > MAX_MAGNIFIED_PX
    assert zoom == 1 or (zoom - 1) * short_side < min_side_px


@pytest.mark.parametrize(("height", "width"), [(20, 5000), (5000, 20), (1, 9000), (3, 700)])
def test_the_drawing_of_a_long_thin_image_is_small(height: int, width: int) -> None:
    """To give 480 px, these images would be magnified 24, 480 and 160 times: up to 2 gigapixels."""
    mask = np.ones((1, height, width), dtype=bool)
    drawn = draw_instances(
        grey(height, width), np.array([[0.0, 0, width, height]]), ["cat"], scores=[0.9], masks=mask, min_side_px=480
    )
    assert max(drawn.shape) <= max(height, width, MAX_MAGNIFIED_PX) and drawn.size < 2**20


def test_a_large_enough_image_is_not_magnified() -> None:
    assert draw_instances(grey(), np.zeros((0, 4)), [], min_side_px=H).shape == (H, W, 3)


def test_boxes_are_cropped_to_the_image_and_left_out_if_outside() -> None:
    boxes = np.array([[-50.0, -50.0, 10.0, 10.0], [200.0, 10.0, 220.0, 30.0], [5.0, 70.0, 5.0, 80.0]])
    drawn = draw_instances(grey(), boxes, ["", "outside", "empty"])
    assert extent(changed(drawn)) == (0, 0, 9, 9)


def test_the_argument_is_not_changed() -> None:
    image = grey()
    image.flags.writeable = False
    drawn = draw_instances(image, np.array([[3.0, 3.0, 30.0, 30.0]]), ["cat"], masks=np.ones((1, H, W), bool))
    assert (image == GREY).all() and changed(drawn).any()


@pytest.mark.parametrize("min_side_px", [0, 200])
def test_a_mask_changes_its_own_pixels_only(min_side_px: int) -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((1, H, W), dtype=bool)
    mask[0, 20:60, 30:90] = rng.random((40, 60)) < 0.9
    # a box outside the image: no outline and no label
    drawn = draw_instances(grey(), np.array([[-9.0, 0.0, -5.0, 4.0]]), ["cat"], masks=mask, min_side_px=min_side_px)
    zoom = drawn.shape[0] // H
    assert np.array_equal(changed(drawn), mask[0].repeat(zoom, 0).repeat(zoom, 1))


def test_a_mask_has_an_opaque_contour_and_a_tinted_interior() -> None:
    mask = np.zeros((1, H, W), dtype=bool)
    mask[0, 20:60, 80:W] = True  # to the edge of the image, along which the contour continues
    drawn = draw_instances(grey(), np.array([[-9.0, 0.0, -5.0, 4.0]]), ["cat"], masks=mask)
    contour = in_colour(drawn, "cat")
    assert extent(contour) == (80, 20, W - 1, 59)
    assert contour[20:60, W - 1].all() and not contour[21:59, 81 : W - 1].any()
    middle = drawn[40, 100].astype(float)
    assert np.abs(middle - (0.55 * GREY + 0.45 * np.array(colour_of("cat")))).max() <= 0.51


@pytest.mark.parametrize("min_side_px", [0, 200])
def test_masks_that_are_pasted_one_by_one_are_drawn_as_bitmaps_are(min_side_px: int) -> None:
    torch.manual_seed(0)
    corner = torch.rand(12, 2) * 100 - 20
    boxes = torch.cat([corner, corner + torch.rand(12, 2) * 60 + 1], dim=1)
    masks = RoiMasks(torch.rand(12, 7, 7)).paste(boxes, H, W)
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    names = [f"class {i}" for i in range(12)]
    drawn = draw_instances(image, boxes.numpy(), names, masks=masks, min_side_px=min_side_px)
    assert "bits" not in vars(masks)
    assert np.array_equal(
        drawn, draw_instances(image, boxes.numpy(), names, masks=masks.bits.numpy(), min_side_px=min_side_px)
    )


@settings(max_examples=40, deadline=None)
@given(x=st.integers(0, W - 1), y=st.integers(0, H - 1), width=st.integers(1, 40), height=st.integers(1, 40))
def test_a_label_is_complete_wherever_the_box_lies(x: int, y: int, width: int, height: int) -> None:
    """The number of pixels of the text does not depend on the place: nothing is cropped at the image's edge."""

    def text_pixels(box: list[float]) -> int:
        drawn = draw_instances(grey(), np.array([box]), ["tv"], scores=[0.5])
        return int((changed(drawn) & ~in_colour(drawn, "tv")).sum())

    expected = text_pixels([50.0, 50.0, 51.0, 51.0])
    assert expected > 20
    assert text_pixels([x, y, x + width, y + height]) == expected


def test_labels_do_not_cover_one_another() -> None:
    boxes = np.array([[40.0, 40.0, 80.0, 80.0], [42.0, 41.0, 78.0, 79.0]])
    areas_alone = [in_colour(draw_instances(grey(), boxes[[i]], [name]), name).sum() for i, name in enumerate("ab")]
    both = draw_instances(grey(), boxes, ["a", "b"])
    for name, area in zip("ab", areas_alone, strict=True):
        assert in_colour(both, name).sum() >= 0.9 * area


def test_scores_are_written_after_names() -> None:
    boxes = np.array([[10.0, 40.0, 60.0, 80.0]])
    plain, scored = (draw_instances(grey(), boxes, ["cat"], scores=scores) for scores in (None, [0.87]))
    assert in_colour(scored, "cat").sum() > 1.3 * in_colour(plain, "cat").sum()


def test_colours_are_stable_and_distinct() -> None:
    assert colour_of("person") == (45, 200, 45)  # constant: the same in every process and version
    names = [f"class {i}" for i in range(100)]
    assert len({colour_of(name) for name in names}) == 100


@pytest.mark.parametrize(
    ("background", "level"), [((255, 255, 0), 0), ((0, 0, 160), 255), ((255, 255, 255), 0), ((0, 0, 0), 255)]
)
def test_text_is_black_on_bright_and_white_on_dark_colours(background: tuple[int, int, int], level: int) -> None:
    assert readable_on(background) == (level, level, level)


def test_no_instances_give_a_copy() -> None:
    image = grey()
    drawn = draw_instances(image, np.zeros((0, 4)), [], scores=[], masks=np.zeros((0, H, W), dtype=bool))
    assert np.array_equal(drawn, image) and not np.shares_memory(drawn, image)


def test_invalid_arguments_are_errors() -> None:
    box = np.array([[1.0, 1.0, 5.0, 5.0]])
    with pytest.raises(ValueError, match=r"float64 .* give uint8"):
        draw_instances(grey().astype(float), box, ["a"])
    with pytest.raises(ValueError, match="1 boxes came with 2 labels and no scores"):
        draw_instances(grey(), box, ["a", "b"])
    with pytest.raises(ValueError, match=r"must be bool \(1, 90, 120\)"):
        draw_instances(grey(), box, ["a"], masks=np.zeros((1, 4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"masks are bool \(1, 4, 4\), but must be bool \(1, 90, 120\)"):
        draw_instances(grey(), box, ["a"], masks=BitMasks(torch.zeros(1, 4, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"masks are uint8 .*, but must be bool \(1, 90, 120\)"):
        draw_instances(grey(), box, ["a"], masks=np.zeros((1, H, W), dtype=np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"boxes \[0\] are not finite"):
        draw_instances(grey(), box * np.nan, ["a"])
