"""Files with any combination of faults: never a traceback, no object lost, and intact objects exactly as they are."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_backbone.errors import UserError
from tests.tools.annotations.faulty import Faulty, faulty_files, make_images
from tools.annotations.findings import BadAnnotations
from tools.annotations.reader import ReadOptions, read_annotations
from tools.annotations.table import AnnotationTable
from tools.config.detection import RunConfig
from tools.config.settings import validate
from tools.data.coco import CocoData
from tools.evaluation.scores import score_coco
from tools.jobs.detection import train
from tools.jobs.doctor import check_data

options = st.builds(
    ReadOptions,
    masks=st.booleans(),
    on_bad_annotation=st.sampled_from(["drop", "stop"]),
    on_bad_image=st.sampled_from(["skip", "stop"]),
    box_format=st.sampled_from(["xywh", "auto"]),
    crowds=st.sampled_from(["crowds", "auto"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("faults") / "train")


def check(file: Faulty, reading: ReadOptions, folder: Path) -> None:
    """Read a file and score nothing on it; see the module's docstring."""
    path = file.write(folder.parent / "faulty.json")
    table, error = read(path, folder, reading)
    if table is None:
        assert str(path) in error
        return
    dropped = table.findings.count("dropped")
    assert table.objects_in_file == len(table.rows) + dropped, table.findings.lines()
    # by position: a fault may give another annotation the id of an intact one
    used = {table.numbers[row]: (row, image) for row, image in zip(table.rows, table.images_of_rows())}
    for number, annotation in file.intact.items():
        row, image = used[number - 1]
        assert table.image_ids[image] == annotation["image_id"]
        assert table.category_ids[table.labels[row]] == annotation["category_id"]
        assert table.boxes[row].tolist() == annotation["bbox"]
        assert table.segmentation(int(row), int(image)) == annotation["segmentation"]
    score_itself(table, reading.masks)


def read(path: Path, folder: Path, reading: ReadOptions) -> tuple[AnnotationTable | None, str]:
    """The table, or the message of the only error that there may be."""
    try:
        return read_annotations(path, folder, reading), ""
    except BadAnnotations as error:
        return None, str(error)


def score_itself(table: AnnotationTable, masks: bool) -> None:
    """The boxes that training uses, as results, score 1: training and scoring use the same objects."""
    data = CocoData(table)
    results = []
    for record in data.records:
        for box, label in zip(record.boxes, record.labels):
            row = {"image_id": record.image_id, "category_id": table.category_ids[label], "score": 1.0}
            results.append({**row, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
    truth = [a for a in table.to_coco(segmentations=masks)["annotations"] if not a["iscrowd"]]
    assert len(truth) == len(results) > 0
    inside = all(
        np.allclose(a["bbox"], r["bbox"], atol=1e-9) and a["image_id"] == r["image_id"] for a, r in zip(truth, results)
    )
    scores = score_coco(table, results)
    if inside and len({(r["image_id"], r["category_id"], *r["bbox"]) for r in results}) == len(results):
        assert scores.kinds["bbox"].figures["AP"] == pytest.approx(1.0)


slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@settings(max_examples=300, deadline=None, suppress_health_check=slow, derandomize=True)
@given(file=faulty_files(), reading=options)
def test_no_object_is_lost_and_intact_ones_are_exact(file: Faulty, reading: ReadOptions, folder: Path) -> None:
    check(file, reading, folder)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, deadline=None, suppress_health_check=slow, derandomize=True)
@given(file=faulty_files(), reading=options)
def test_no_object_is_lost_in_20_000_files(file: Faulty, reading: ReadOptions, folder: Path) -> None:
    check(file, reading, folder)


@pytest.mark.long
@pytest.mark.timeout(5400)
@settings(max_examples=200, deadline=None, suppress_health_check=slow, derandomize=True)
@given(file=faulty_files(), reading=options)
def test_a_training_step_and_the_doctor_agree_with_the_reader_on_200_files(
    file: Faulty, reading: ReadOptions, folder: Path
) -> None:
    path = file.write(folder.parent / "trained.json")
    table, _ = read(path, folder, reading)
    config = tiny_run(folder, path, reading)
    verdicts = {check.verdict for check in check_data(config)}
    if table is None:
        assert "NO" in verdicts
        with pytest.raises(BadAnnotations, match="trained.json"):
            train(config, overwrite=True)
        return
    assert table.objects_in_file == len(table.rows) + table.findings.count("dropped")
    detector = train(config, overwrite=True)
    assert all(parameter.isfinite().all() for parameter in detector.parameters())
    (line,) = [json.loads(row) for row in (config.out / "metrics.jsonl").read_text().splitlines() if "loss" in row]
    assert np.isfinite(line["loss"])


def tiny_run(folder: Path, annotations: Path, reading: ReadOptions) -> RunConfig:
    """One training step of a small detector on a file."""
    masks = reading.masks
    model = {
        **{"recipe": "mask_rcnn_r18_fpn" if masks else "faster_rcnn_r18_fpn", "norm": "bn", "frozen_stages": 0},
        **{"pyramid_channels": 16, "box": {"hidden": 32, "samples_per_image": 16}},
        **({"mask": {"channels": 16}} if masks else {}),
    }
    return validate(
        {
            "out": str(folder.parent / "run"),
            "model": model,
            "backbone_weights": None,
            "schedule": {"iters": 1, "warmup_iters": 0},
            "train": {"batch_size": 2, "device": "cpu"},
            "input": {"short_side_px": [64], "long_side_px": 96, "test_short_side_px": 64},
            "data": {
                "train": {"images": str(folder), "annotations": str(annotations)},
                "workers": 0,
                "empty_images": "keep",
                "on_bad_annotation": reading.on_bad_annotation,
                "on_bad_image": reading.on_bad_image,
                "box_format": reading.box_format,
                "crowds": reading.crowds,
            },
        },
        RunConfig,
    )


def test_faults_need_little_memory(folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=50, deadline=None, suppress_health_check=slow, derandomize=True)
    @given(file=faulty_files())
    def read(file: Faulty) -> None:
        with contextlib.suppress(UserError):
            read_annotations(file.write(folder.parent / "memory.json"), folder, ReadOptions(masks=True))

    read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: one GiB
