"""Images for scoring are those that the detector would make itself, in order, from any number of processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from heads.images import UnreadableImage
from heads.predictor import prepare
from heads.structures import ImageSize
from resnet_backbone import Preprocess
from tools.data.coco import CocoData, load_coco
from tools.data.loader import Batch, Batches, Draw, read_checked
from tools.data.scoring import ImagesToScore

RULES = {how: Preprocess(short_side_px=80, long_side_px=200, resize=how) for how in ("pillow", "opencv", "torch")}  # type: ignore[arg-type]


@pytest.fixture
def data(tiny_shapes: Path) -> CocoData:
    return load_coco(tiny_shapes / "images" / "val", tiny_shapes / "annotations" / "instances_val.json")


def load(data: CocoData, workers: int, how: str = "pillow", on_bad_image: str = "stop") -> list[Batch]:
    images = ImagesToScore(data, read_checked, partial(prepare, preprocess=RULES[how]), on_bad_image=on_bad_image)
    plan = [[Draw(0, 0), Draw(1, 0)], [Draw(2, 0)], [Draw(3, 0), Draw(4, 0)]]
    return list(Batches(images, plan, workers))


@pytest.mark.parametrize("how", RULES)
def test_images_equal_those_of_the_predictor(data: CocoData, how: str) -> None:
    records = data.records
    for workers in (0, 2):
        batches = load(data, workers, how)
        assert [i for batch in batches for i in batch.image_ids] == [record.image_id for record in records[:5]]
        found = [pair for batch in batches for pair in zip(batch.images, batch.targets)]
        for (pixels, size), record in zip(found, records[:5], strict=True):
            image = read_checked(record)
            expected = prepare(image, RULES[how])
            assert torch.equal(pixels, expected.pixels) and size == ImageSize(*image.shape[:2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_or_is_left_out_of_its_batch(tmp_path: Path, data: CocoData, workers: int) -> None:
    path = data.records[1].path
    content = path.read_bytes()
    try:
        path.write_bytes(content[:100])
        with pytest.raises(UnreadableImage, match=path.name):
            load(data, workers)
        first, *others = load(data, workers, on_bad_image="skip")
        assert first.image_ids == [data.records[0].image_id] and path.name in first.skipped[0]
        assert [len(batch.images) for batch in others] == [1, 2] and not any(b.skipped for b in others)
    finally:
        path.write_bytes(content)
