"""Whatever fails while a sample is loaded names the image, in this process and in loader processes."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.images import UnreadableImage
from heads.structures import ImageSize
from resnet_backbone.errors import InvalidValue, UserError
from tests.tools.conftest import GivenRecords
from tests.tools.engine.tiny_training import Tiny
from tools.data.coco import ImageRecord
from tools.data.guard import Failed, UnusableSample, WorkerTraceback, augment_record, read_record
from tools.data.labelled import LabelledImage
from tools.data.loader import BatchPlan, Draw, TrainingImages, make_loader, read_checked
from tools.failures import OutOfMemory, ProcessLost, SystemFailure, explained
from tools.jobs import detection, runs

ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
    AssertionError,
    UnicodeError,
    StopIteration,
)


@dataclass(frozen=True)
class Fails:
    """A reader or an augmentation that fails; loader processes get it by pickle."""

    error: BaseException

    def __call__(self, *arguments: Any) -> Any:
        raise self.error


def first(tiny: Tiny, **changes: Any) -> Any:
    """The training split with a first record that has these fields."""
    data = detection.load_train(tiny())
    return GivenRecords.of([replace(data.records[0], **changes), *data.records[1:]], data)


def load_all(images: TrainingImages, workers: int) -> list[Any]:
    plan = BatchPlan(images.data, batch_size=4, seed=0, span=(0, 4))
    return list(make_loader(images, plan, workers=workers))


@given(st.sampled_from(ERRORS), st.text(max_size=40), st.booleans())
def test_any_error_of_a_library_becomes_an_error_of_the_user_that_names_the_image(
    kind: type[Exception], text: str, reads: bool
) -> None:
    record, error = LabelledImage(7, "ant/7.png", 0), kind(text)
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(UserError, match=r"ant/7\.png \(image 7\)") as raised:
        read_record(Fails(error), record) if reads else augment_record(Fails(error), image, record, 0)
    expected = OutOfMemory if kind is MemoryError else UnreadableImage if reads else UnusableSample
    assert type(raised.value) is expected and raised.value.__cause__ is error
    assert str(raised.value).count("\n") == 0 or kind is MemoryError
    sent = pickle.loads(pickle.dumps(Failed.of(raised.value, "images"))).error()
    assert type(sent) is expected and str(sent) == str(raised.value)
    assert isinstance(sent.__cause__, WorkerTraceback) and kind.__name__ in str(sent.__cause__)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_outline_that_pycocotools_cannot_read_is_named_with_its_object(workers: int, tiny: Tiny) -> None:
    data = detection.load_train(tiny())
    row = next(i for i, record in enumerate(data.records) if len(record.boxes) > 1)
    record = data.records[row]
    size = [record.size.height, record.size.width]
    good, bad = {"size": size, "counts": [0, size[0] * size[1]]}, {"size": size, "counts": ["many"]}
    broken = replace(record, segmentations=(good, bad, *[good] * (len(record.boxes) - 2)))
    images = detection.training_images(tiny(), GivenRecords.of([broken] * 4, data))
    place = rf"{record.path} \(image {record.image_id}\), annotation {record.object_ids[1]}, object 2"
    pattern = rf"{place} of {len(record.boxes)} \(box .*cannot be augmented"
    with pytest.raises(UserError, match=pattern) as raised:
        load_all(images, workers)
    assert "Traceback" not in str(raised.value) and "DataLoader" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_box_that_albumentations_refuses_is_named(workers: int, tiny: Tiny) -> None:
    boxes = detection.load_train(tiny()).records[0].boxes
    data = first(tiny, boxes=boxes[:, [2, 3, 0, 1]])
    images = detection.training_images(tiny("model.mask=null"), GivenRecords.of(data.records[:1] * 4, data))
    with pytest.raises(
        UnusableSample, match=rf"{data.records[0].path} .*object 1 of .*cannot be augmented \(ValueError"
    ):
        load_all(images, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_this_project_keeps_its_class_and_message(workers: int, tiny: Tiny) -> None:
    data = detection.load_train(tiny())
    images = TrainingImages(
        data, Fails(InvalidValue("too small: set input.short_side_px")), seed=0, on_bad_image="stop"
    )
    with pytest.raises(InvalidValue, match=r"/\d+\.jpg \(image \d+\): too small: set input.short_side_px$"):
        load_all(images, workers)


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_a_codec_that_fails_in_any_way_is_an_image_that_cannot_be_read(on_bad_image: str, tiny: Tiny) -> None:
    config = tiny(f"data.on_bad_image={on_bad_image}")
    records = detection.load_train(config).records[:3]

    def read(record: ImageRecord) -> np.ndarray:
        if record is records[1]:
            raise struct.error("unpack requires a buffer of 4 bytes")
        return read_checked(record)

    if on_bad_image == "skip":
        assert [record for record, _ in runs.read_images(read, records, config)] == [records[0], records[2]]
    else:
        with pytest.raises(UnreadableImage, match=f"{records[1].path} .*unpack requires"):
            list(runs.read_images(read, records, config))


@pytest.mark.skipif(os.name != "posix", reason="limits of open files are POSIX's")
def test_a_lack_of_file_descriptors_is_never_taken_for_a_bad_image(tiny: Tiny) -> None:
    import resource

    images = detection.training_images(tiny("data.on_bad_image=skip"), detection.load_train(tiny()))
    assert images[Draw(0, 0)][3] is None  # everything is imported
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SystemFailure, match=r"\d\.jpg.*Too many open files.*ulimit -n.*data.workers"):
            images[Draw(0, 0)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_killed_loader_process_is_an_error_that_says_what_to_lower(tiny: Tiny) -> None:
    data = detection.load_train(tiny())
    plan = BatchPlan(data, batch_size=4, seed=0, span=(0, 4000))
    batches = iter(make_loader(detection.training_images(tiny(), data), plan, workers=2))
    next(batches)
    workers = [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]
    assert len(workers) >= 2
    os.kill(workers[-1].pid, signal.SIGKILL)
    with pytest.raises(ProcessLost, match=r"a loader process .* lower data.workers"), explained():
        list(batches)


def test_ctrl_c_in_the_terminal_does_not_reach_loader_processes(tiny: Tiny) -> None:
    data = detection.load_train(tiny())
    plan = BatchPlan(data, batch_size=4, seed=0, span=(0, 40))
    before = {child.pid for child in psutil.Process().children()}
    loader = iter(make_loader(detection.training_images(tiny(), data), plan, workers=2))
    next(loader)
    started = [child for child in psutil.Process().children() if child.pid not in before]
    for child in started:
        child.send_signal(signal.SIGINT)
    assert len(list(loader)) == 39 and len(started) >= 2


def test_objects_are_not_blamed_for_an_image_that_fails_without_them() -> None:
    size = ImageSize(height=4, width=4)
    record = ImageRecord(1, __file__, size, np.array([[0.0, 0, 2, 2]]), np.array([0]), (None,), (1,), 0)  # type: ignore[arg-type]
    with pytest.raises(UnusableSample) as raised:
        augment_record(Fails(ValueError("no")), np.zeros((4, 4, 3), np.uint8), record, 0)
    assert "object" not in str(raised.value)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_faults_of_the_system_are_not_faults_of_the_image(number: int) -> None:
    record: Any = LabelledImage(7, "ant/7.png", 0)
    read: Callable[[Any], Any] = Fails(OSError(number, os.strerror(number), "ant/7.png"))
    with pytest.raises(SystemFailure, match=os.strerror(number)):
        read_record(read, record)
