"""Batches do not depend on workers, processes or resuming, and unreadable files are handled as requested."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heads import BitMasks, ImageSize, PolygonMasks
from heads.images import UnreadableImage
from heads.masks import polygons_from
from tools.annotations.reader import ReadOptions
from tools.data.augment import Augment
from tools.data.coco import ImageRecord, load_coco
from tools.data.loader import Batch, BatchPlan, Draw, TrainingImages, make_loader, read_checked

NO_OBJECTS = np.zeros((0, 4)), np.zeros(0, np.int64), (), (), 0


@dataclass(frozen=True)
class Split:
    records: tuple[ImageRecord, ...]

    def wide(self) -> list[bool]:
        return [record.size.width > record.size.height for record in self.records]


def data_of(wide: int, tall: int) -> Split:
    sizes = [ImageSize(height=60, width=80)] * wide + [ImageSize(height=80, width=60)] * tall
    return Split(tuple(ImageRecord(i, Path(f"{i}.jpg"), size, *NO_OBJECTS) for i, size in enumerate(sizes)))


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
def test_an_epoch_has_every_image_in_full_batches(
    wide: int, tall: int, batch_size: int, seed: int, grouped: bool
) -> None:
    data = data_of(wide, tall)
    plan = BatchPlan(data, batch_size=batch_size, seed=seed, span=(0, 1), group_by_aspect=grouped)
    for epoch in range(2):
        batches = plan.epoch(epoch)
        assert len(batches) == plan.per_epoch == -(-(wide + tall) // batch_size)
        assert {len(batch) for batch in batches} == {batch_size}
        indices = [index for batch in batches for index in batch]
        assert sorted(indices[: wide + tall]) == list(range(wide + tall))  # the others fill the last batch
    is_pure = [len({index < wide for index in batch}) == 1 for batch in batches]
    if grouped:
        assert all(is_pure[: wide // batch_size + tall // batch_size])


@quick
@plans
def test_processes_together_have_the_batches_of_one_process(
    wide: int, tall: int, batch_size: int, seed: int, grouped: bool
) -> None:
    data = data_of(wide, tall)
    span = (3, 3 + 2 * BatchPlan(data, batch_size=batch_size, seed=0, span=(0, 0)).per_epoch)

    def plan(rank: int = 0, world: int = 1) -> list[list[Draw]]:
        batches = BatchPlan(
            data, batch_size=batch_size, seed=seed, span=span, group_by_aspect=grouped, rank=rank, world=world
        )
        assert len(batches) == len(list(batches))
        return list(batches)

    one_process = plan()
    for world in (w for w in (2, 4) if batch_size % w == 0):
        shares = [plan(rank, world) for rank in range(world)]
        together = [[draw for group in zip(*parts) for draw in group] for parts in zip(*shares)]
        assert together == one_process


@quick
@plans
def test_a_resumed_plan_is_the_rest_of_the_whole_plan(
    wide: int, tall: int, batch_size: int, seed: int, grouped: bool
) -> None:
    def plan(start: int, stop: int) -> list[list[Draw]]:
        data = data_of(wide, tall)
        return list(BatchPlan(data, batch_size=batch_size, seed=seed, span=(start, stop), group_by_aspect=grouped))

    whole = plan(0, 20)
    assert all(plan(start, 20) == whole[start:] for start in (1, 7, 19, 20))
    epochs = [batch[0].epoch for batch in whole]
    assert epochs == sorted(epochs) and epochs[0] == 0


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    plan = BatchPlan(data_of(20, 20), batch_size=4, seed=1, span=(0, 0))
    other = BatchPlan(data_of(20, 20), batch_size=4, seed=2, span=(0, 0))
    assert plan.epoch(0) != plan.epoch(1) and plan.epoch(0) != other.epoch(0)


def test_a_batch_that_processes_cannot_share_equally_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 6 images cannot be shared by 4 processes"):
        BatchPlan(data_of(9, 9), batch_size=6, seed=0, span=(0, 1), world=4)


@pytest.fixture
def images(tiny_shapes: Path, tmp_path: Path) -> Callable[..., TrainingImages]:
    """A function that opens a copy of the tiny training split, of which files may be damaged."""
    folder = tmp_path / "train"
    shutil.copytree(tiny_shapes / "images" / "train", folder)
    data = load_coco(folder, tiny_shapes / "annotations" / "instances_train.json", ReadOptions(masks=True))

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


def test_the_number_of_workers_does_not_change_the_batches(images: Callable[..., TrainingImages]) -> None:
    without_workers, with_workers = read_all(images(), workers=0), read_all(images(), workers=2)
    assert len(without_workers) == len(with_workers) == 6
    for a, b in zip(without_workers, with_workers):
        assert_same(a, b)
    # a run resumed at batch 3 has the remaining batches of the whole run
    for a, b in zip(without_workers[3:], read_all(images(), workers=0, span=(3, 6)), strict=True):
        assert_same(a, b)


def test_augmentation_differs_between_epochs(images: Callable[..., TrainingImages]) -> None:
    dataset = images()
    samples = [dataset[Draw(0, epoch)][0] for epoch in range(16)]
    assert {image.shape[2] for image in samples} == {dataset[Draw(0, 0)][0].shape[2]} | {64, 80, 96}
    same_size = [image for image in samples if image.shape == samples[0].shape]
    assert {torch.equal(image, same_size[0]) for image in same_size} == {True, False}  # flipped or not


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_file_is_an_error_with_its_name(workers: int, images: Callable[..., TrainingImages]) -> None:
    dataset = images("stop")
    damaged = dataset.data.records[5].path
    truncate(damaged)
    with pytest.raises(UnreadableImage, match=f"{damaged.name} cannot be read.*truncated"):
        read_all(dataset, workers=workers, span=(0, 4))


def test_a_truncated_file_is_replaced_with_a_message_if_it_may_be_skipped(
    images: Callable[..., TrainingImages],
) -> None:
    dataset = images("skip")
    intact = read_all(dataset, workers=0, span=(0, 4))
    damaged, following = dataset.data.records[5], dataset.data.records[6]
    truncate(damaged.path)
    batches = read_all(dataset, workers=0, span=(0, 4))
    assert [len(batch.images) for batch in batches] == [4] * 4
    expected = [following.image_id if i == damaged.image_id else i for batch in intact for i in batch.image_ids]
    assert [i for batch in batches for i in batch.image_ids] == expected
    (message,) = [message for batch in batches for message in batch.skipped]
    assert damaged.path.name in message and f"image {damaged.image_id} was replaced" in message
    for record in dataset.data.records:
        truncate(record.path) if record.path != damaged.path else None
    with pytest.raises(UnreadableImage, match="none of the 16 images can be read"):
        dataset[Draw(0, 0)]


def write_rotated(path: Path, upright: np.ndarray) -> None:
    """Write an image as a camera held upright does: rotated by 90 degrees, with EXIF orientation 6."""
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(path, quality=95, exif=exif)


def test_annotations_refer_to_the_upright_image(tmp_path: Path) -> None:
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[16:48, 8:24] = 255
    write_rotated(tmp_path / "phone.jpg", upright)
    assert Image.open(tmp_path / "phone.jpg").size == (96, 64)
    box = np.array([[8.0, 16, 24, 48]])
    size = ImageSize(height=96, width=64)
    outline = polygons_from([[8, 16, 24, 16, 24, 48, 8, 48]])
    record = ImageRecord(1, tmp_path / "phone.jpg", size, box, np.array([0]), (outline,), (1,), 0)
    data = Split((record,))
    images = TrainingImages(data, Augment((128,), 400, 1.0, masks=True), seed=0, on_bad_image="stop")
    pixels, targets, _, _ = images[Draw(0, 0)]
    assert tuple(pixels.shape) == (3, 192, 128)
    bright = pixels[0] >= 128
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    bounds = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert np.abs(np.array(bounds) - targets.boxes[0].numpy()).max() <= 1
    assert targets.boxes.tolist() == [[80, 32, 112, 96]]

    swapped = replace(record, size=ImageSize(height=64, width=96))
    with pytest.raises(UnreadableImage, match=r"phone.jpg is 64x96 \(upright.*annotations are for 96x64"):
        read_checked(swapped)


@dataclass
class Pinnable:
    """Stands for a tensor or for targets of a machine with a GPU."""

    pinned: bool = False

    def pin_memory(self) -> Pinnable:
        return Pinnable(True)


def test_pinning_a_batch_pins_images_and_targets_and_leaves_labels() -> None:
    pinned = Batch([Pinnable(), Pinnable()], [Pinnable(), 3], [1, "b"], ["message"]).pin_memory()  # type: ignore[list-item]
    assert pinned == Batch([Pinnable(True), Pinnable(True)], [Pinnable(True), 3], [1, "b"], ["message"])  # type: ignore[list-item]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_for_a_gpu(workers: int, images: Callable[..., TrainingImages]) -> None:
    data = images()
    plan = BatchPlan(data.data, batch_size=4, seed=3, span=(0, 2))
    for batch in make_loader(data, plan, workers=workers, pin=True):
        assert all(image.is_pinned() for image in batch.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_pinned_only_if_asked_for(
    workers: int, images: Callable[..., TrainingImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinning itself needs a GPU: its calls are counted."""
    pins: list[Batch] = []
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: pins.append(batch) or batch)
    data = images()
    plan = BatchPlan(data.data, batch_size=4, seed=3, span=(0, 3))
    for pin, expected in ((False, 0), (True, 3)):
        pins.clear()
        assert len(list(make_loader(data, plan, workers=workers, pin=pin))) == 3
        assert len(pins) == expected


def test_a_batch_of_a_loader_process_stays_as_it_is_while_it_is_held(images: Callable[..., TrainingImages]) -> None:
    """Its memory is used again after it is gone."""
    held = read_all(images(), workers=1, span=(0, 12))
    for one, two in zip(held, read_all(images(), workers=0, span=(0, 12)), strict=True):
        assert_same(one, two)
