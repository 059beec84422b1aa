"""The same images in the same batches, whoever reads them; and what happens to files that cannot be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heads import BitMasks, ImageSize, PolygonMasks
from heads.images import UnreadableImage
from tools.data.augment import Augment
from tools.data.coco import CocoData, ImageRecord, load_coco
from tools.data.loader import Batch, BatchPlan, Draw, TrainingImages, make_loader, read_checked

NONE = np.zeros((0, 4)), np.zeros(0, np.int64), (), 0


def data_of(wide: int, tall: int) -> CocoData:
    sizes = [ImageSize(height=60, width=80)] * wide + [ImageSize(height=80, width=60)] * tall
    records = tuple(ImageRecord(i, Path(f"{i}.jpg"), size, *NONE) for i, size in enumerate(sizes))
    return CocoData(records, (1,), ("thing",), {})


plans = given(
    wide=st.integers(0, 23),
    tall=st.integers(1, 23),
    batch_size=st.sampled_from([1, 2, 4, 6, 8]),
    seed=st.integers(0, 99),
    grouped=st.booleans(),
)
quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@plans
def test_an_epoch_holds_every_image_in_whole_batches(
    wide: int, tall: int, batch_size: int, seed: int, grouped: bool
) -> None:
    data = data_of(wide, tall)
    plan = BatchPlan(data, batch_size=batch_size, seed=seed, span=(0, 1), group_by_aspect=grouped)
    for epoch in range(2):
        batches = plan.epoch(epoch)
        assert len(batches) == plan.per_epoch == -(-(wide + tall) // batch_size)
        assert {len(batch) for batch in batches} == {batch_size}
        drawn = [index for batch in batches for index in batch]
        assert sorted(drawn[: wide + tall]) == list(range(wide + tall))  # what is more fills the last batch
    pure = [len({index < wide for index in batch}) == 1 for batch in batches]
    if grouped:
        assert all(pure[: wide // batch_size + tall // batch_size])


@quick
@plans
def test_processes_share_the_batches_of_one(wide: int, tall: int, batch_size: int, seed: int, grouped: bool) -> None:
    data = data_of(wide, tall)
    span = (3, 3 + 2 * BatchPlan(data, batch_size=batch_size, seed=0, span=(0, 0)).per_epoch)

    def plan(rank: int = 0, world: int = 1) -> list[list[Draw]]:
        made = BatchPlan(
            data, batch_size=batch_size, seed=seed, span=span, group_by_aspect=grouped, rank=rank, world=world
        )
        assert len(made) == len(list(made))
        return list(made)

    alone = plan()
    for world in (w for w in (2, 4) if batch_size % w == 0):
        shares = [plan(rank, world) for rank in range(world)]
        together = [[draw for group in zip(*parts) for draw in group] for parts in zip(*shares)]
        assert together == alone


@quick
@plans
def test_a_resumed_plan_is_the_tail_of_the_whole(
    wide: int, tall: int, batch_size: int, seed: int, grouped: bool
) -> None:
    def plan(start: int, stop: int) -> list[list[Draw]]:
        made = BatchPlan(
            data_of(wide, tall), batch_size=batch_size, seed=seed, span=(start, stop), group_by_aspect=grouped
        )
        return list(made)

    whole = plan(0, 20)
    assert all(plan(start, 20) == whole[start:] for start in (1, 7, 19, 20))
    epochs = [batch[0].epoch for batch in whole]
    assert epochs == sorted(epochs) and epochs[0] == 0


def test_epochs_and_seeds_are_different_orders() -> None:
    plan = BatchPlan(data_of(20, 20), batch_size=4, seed=1, span=(0, 0))
    other = BatchPlan(data_of(20, 20), batch_size=4, seed=2, span=(0, 0))
    assert plan.epoch(0) != plan.epoch(1) and plan.epoch(0) != other.epoch(0)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 6 images cannot be shared by 4 processes"):
        BatchPlan(data_of(9, 9), batch_size=6, seed=0, span=(0, 1), world=4)


@pytest.fixture
def images(tiny_shapes: Path, tmp_path: Path) -> Callable[..., TrainingImages]:
    """The tiny training split in a folder of its own, in which files may be broken."""
    folder = tmp_path / "train"
    shutil.copytree(tiny_shapes / "images" / "train", folder)
    data = load_coco(folder, tiny_shapes / "annotations" / "instances_train.json", masks=True)

    def make(on_bad_image: str = "stop") -> TrainingImages:
        return TrainingImages(data, Augment((64, 80, 96), 160, 0.5, masks=True), seed=3, on_bad_image=on_bad_image)

    return make


def read_all(images: TrainingImages, workers: int, span: tuple[int, int] = (0, 6)) -> list[Batch]:
    return list(make_loader(images, BatchPlan(images.data, batch_size=4, seed=3, span=span), workers=workers))


def assert_same(a: Batch, b: Batch) -> None:
    assert a.image_ids == b.image_ids and a.skipped == b.skipped
    for one, two in zip(a.images, b.images, strict=True):
        assert torch.equal(one, two)
    for x, y in zip(a.targets, b.targets, strict=True):
        assert torch.equal(x.boxes, y.boxes) and torch.equal(x.labels, y.labels)
        if isinstance(x.masks, PolygonMasks):
            assert isinstance(y.masks, PolygonMasks)
            for p, q in zip(x.masks.polygons, y.masks.polygons, strict=True):
                assert all(np.array_equal(v, w) for v, w in zip(p, q, strict=True))
        else:
            assert isinstance(x.masks, BitMasks) and isinstance(y.masks, BitMasks)
            assert torch.equal(x.masks.bits, y.masks.bits)


def test_workers_do_not_change_what_is_read(images: Callable[..., TrainingImages]) -> None:
    alone, shared = read_all(images(), workers=0), read_all(images(), workers=2)
    assert len(alone) == len(shared) == 6
    for a, b in zip(alone, shared):
        assert_same(a, b)
    # and a run resumed at batch 3 reads what the whole run read there
    for a, b in zip(alone[3:], read_all(images(), workers=0, span=(3, 6)), strict=True):
        assert_same(a, b)


def test_an_image_is_augmented_anew_in_every_epoch(images: Callable[..., TrainingImages]) -> None:
    made = images()
    seen = [made[Draw(0, epoch)][0] for epoch in range(16)]
    assert {image.shape[2] for image in seen} == {made[Draw(0, 0)][0].shape[2]} | {64, 80, 96}
    widest = [image for image in seen if image.shape == seen[0].shape]
    assert {torch.equal(image, widest[0]) for image in widest} == {True, False}  # as it is, and flipped


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_file_stops_the_run_with_its_name(workers: int, images: Callable[..., TrainingImages]) -> None:
    made = images("stop")
    broken = made.data.records[5].path
    cut_off(broken)
    with pytest.raises(UnreadableImage, match=f"{broken.name} cannot be read.*truncated"):
        read_all(made, workers=workers, span=(0, 4))


def test_a_truncated_file_is_replaced_and_named_where_it_may_be(images: Callable[..., TrainingImages]) -> None:
    made = images("skip")
    whole = read_all(made, workers=0, span=(0, 4))
    broken, following = made.data.records[5], made.data.records[6]
    cut_off(broken.path)
    batches = read_all(made, workers=0, span=(0, 4))
    assert [len(batch.images) for batch in batches] == [4] * 4
    replaced = [following.image_id if i == broken.image_id else i for batch in whole for i in batch.image_ids]
    assert [i for batch in batches for i in batch.image_ids] == replaced
    said = [message for batch in batches for message in batch.skipped]
    assert len(said) == 1 and broken.path.name in said[0] and f"image {broken.image_id} was replaced" in said[0]
    for record in made.data.records:
        cut_off(record.path) if record.path != broken.path else None
    with pytest.raises(UnreadableImage, match="none of the 16 images can be read"):
        made[Draw(0, 0)]


def sideways(path: Path, upright: np.ndarray) -> None:
    """Writes the image as a camera held upright would: lying on its side, with EXIF orientation 6."""
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(path, quality=95, exif=exif)


def test_annotations_meet_the_upright_image(tmp_path: Path) -> None:
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[16:48, 8:24] = 255
    sideways(tmp_path / "phone.jpg", upright)
    assert Image.open(tmp_path / "phone.jpg").size == (96, 64)
    box = np.array([[8.0, 16, 24, 48]])
    size = ImageSize(height=96, width=64)
    record = ImageRecord(1, tmp_path / "phone.jpg", size, box, np.array([0]), ([[8, 16, 24, 16, 24, 48, 8, 48]],), 0)
    data = CocoData((record,), (1,), ("thing",), {})
    images = TrainingImages(data, Augment((128,), 400, 1.0, masks=True), seed=0, on_bad_image="stop")
    pixels, targets, _, _ = images[Draw(0, 0)]
    assert tuple(pixels.shape) == (3, 192, 128)
    bright = pixels[0] >= 128
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    found = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert np.abs(np.array(found) - targets.boxes[0].numpy()).max() <= 1
    assert targets.boxes.tolist() == [[80, 32, 112, 96]]

    lying = replace(record, size=ImageSize(height=64, width=96))
    with pytest.raises(UnreadableImage, match=r"phone.jpg is 64x96 \(upright.*annotations say 96x64"):
        read_checked(lying)
