"""Both backends of scoring compute the same bits, and one that does not is not used."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_backbone.errors import InvalidValue, MissingPackage
from tests.tools.evaluation.test_scores import (
    COCO_MINI_VAL,
    jittered,
    needs_coco_mini,
    toy_ground_truth,
    toy_result,
)
from tools.evaluation import backends
from tools.evaluation.backends import Hotcoco, Pycocotools, choose_backend
from tools.evaluation.interface import Curves, Kind, Objects, ToScore
from tools.evaluation.scores import score_coco
from tools.evaluation.self_check import differences, generated

BOTH = pytest.mark.parametrize("backend", [Pycocotools(), Hotcoco()], ids=["pycocotools", "hotcoco"])


class Recorded(Pycocotools):
    """pycocotools; what it was given is kept."""

    def __init__(self) -> None:
        self.data: list[ToScore] = []

    def curves(self, data: ToScore) -> Curves:
        self.data.append(data)
        return super().curves(data)


def assert_bits_equal(data: ToScore) -> Curves:
    """The arrays of hotcoco, after a comparison with those of pycocotools."""
    ours, theirs = Hotcoco().curves(data), Pycocotools().curves(data)
    for field in fields(Curves):
        found, expected = getattr(ours, field.name), getattr(theirs, field.name)
        assert found.dtype == expected.dtype and found.shape == expected.shape, field.name
        assert found.tobytes() == expected.tobytes(), field.name
    return ours


@needs_coco_mini
@pytest.mark.parametrize("limit", [10, 100, 300])
def test_both_compute_the_same_bits_on_coco_mini(limit: int) -> None:
    content: dict[str, Any] = json.loads(COCO_MINI_VAL.read_text())
    recorded = Recorded()
    every_third = sorted(image["id"] for image in content["images"])[::3]
    score_coco(
        content,
        jittered(content, seed=7),
        kinds=("bbox", "segm"),
        max_detections=limit,
        image_ids=every_third if limit == 300 else None,
        backend=recorded,
    )
    assert [data.kind for data in recorded.data] == ["bbox", "segm"]
    for data in recorded.data:
        precision = assert_bits_equal(data).precision
        assert 0.05 < precision[precision > -1].mean() < 0.95


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_both_compute_the_same_bits_on_2000_images_with_crowds_and_ties(kind: Kind) -> None:
    data = generated(kind, 100, images=2000, wrong=1, seed=1)
    assert data.truth.crowd.sum() > 300 and len(np.unique(data.detections.scores)) == 11
    assert_bits_equal(data)


@pytest.mark.parametrize("limit", [10, 11, 100, 300])
@pytest.mark.parametrize("seed", range(2))
def test_limits_on_detections_cut_the_same_detections(limit: int, seed: int) -> None:
    data = generated("bbox", limit, wrong=60, seed=seed)
    assert_bits_equal(data)
    of_class = np.bincount(data.detections.images * data.num_categories + data.detections.categories)
    assert of_class.max() > 20  # so that limits of 10 and 11 cut


NOTHING = Objects(*(np.zeros(0, np.int64),) * 2, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool), np.zeros(0), [])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("empty", ["truth", "detections", "both"])
def test_no_objects_and_no_detections_give_the_same_bits(empty: str, kind: Kind) -> None:
    nothing = NOTHING if kind == "segm" else replace(NOTHING, masks=None)
    names = ("truth", "detections") if empty == "both" else (empty,)
    assert_bits_equal(replace(generated(kind, 100), **dict.fromkeys(names, nothing)))


@BOTH
def test_ids_of_texts_score_as_ids_of_numbers(backend: Any) -> None:
    truth, results = toy_ground_truth(), [toy_result(), toy_result(image_id=2, score=0.7)]
    expected = score_coco(truth, results, backend=backend)
    texts = copy.deepcopy(truth)
    for row in (*texts["images"], *texts["categories"]):
        row["id"] = f"id {row['id']}"
    rows = [*texts["annotations"], *(results := copy.deepcopy(results))]
    for row in rows:
        row["image_id"], row["category_id"] = f"id {row['image_id']}", f"id {row['category_id']}"
    found = score_coco(texts, results, backend=backend, image_ids=["id 2", "id 1"])
    assert found == expected and found.kinds["bbox"].figures["AP"] == pytest.approx(0.5, abs=0.01)


@BOTH
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_is_printed_or_changed(backend: Any, kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
    data = generated(kind, 10)
    before = copy.deepcopy(data)
    backend.curves(data)
    assert capfd.readouterr() == ("", "")
    for name in ("truth", "detections"):
        for field in fields(Objects):
            ours, theirs = getattr(getattr(data, name), field.name), getattr(getattr(before, name), field.name)
            assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs, field.name
    assert np.array_equal(data.images, before.images) and np.array_equal(data.sizes, before.sizes)


def test_the_self_check_has_objects_of_all_sizes_crowds_ties_and_empty_images() -> None:
    assert differences(Hotcoco(), Pycocotools()) == ""
    data = generated("segm", 10)
    areas = np.histogram(data.truth.areas, [0, 32**2, 96**2, np.inf])[0]
    assert (areas >= 10).all() and data.truth.crowd.sum() >= 5
    assert {type(mask) for mask in data.truth.masks or ()} == {list, dict}
    with_truth, with_detections = set(data.truth.images), set(data.detections.images)
    assert with_truth - with_detections and with_detections - with_truth
    assert set(data.images) - with_truth - with_detections
    curves = Pycocotools().curves(data)
    assert all(0.1 < curves.recall[..., area, 2].mean() < 0.9 for area in range(4))
    # each limit changes the result
    curves = Pycocotools().curves(generated("segm", 100))
    assert len({curves.recall[..., 0, limit].mean() for limit in range(3)}) == 3


def one_bit(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[(0,) * array.ndim] = np.nextafter(changed[(0,) * array.ndim], 2)
    return changed


@pytest.mark.parametrize("fault", ["precision", "recall", "scores", "shape", "error"])
def test_a_backend_that_differs_by_one_bit_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Hotcoco.curves

    def wrong(self: Hotcoco, data: ToScore) -> Curves:
        if fault == "error":
            raise RuntimeError("out of order")
        curves = right(self, data)
        if fault == "shape":
            return replace(curves, recall=curves.recall[..., :2])
        return replace(curves, **{fault: one_bit(getattr(curves, fault))})

    monkeypatch.setattr(Hotcoco, "curves", wrong)
    said = {"shape": "recall is float64", "error": "fails with RuntimeError: out of order"}.get(
        fault, f"of {fault} differ"
    )
    chosen, reason = choose_backend("auto", final=False)
    assert isinstance(chosen, Pycocotools) and said in reason, reason
    with pytest.raises(InvalidValue, match=f"eval.backend=hotcoco, but hotcoco .* does not score as .*{said}"):
        choose_backend("hotcoco", final=True)


@pytest.mark.parametrize("installed", [None, "1.2.9", "2.0.0"])
def test_hotcoco_of_no_or_another_version_is_said(installed: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed is None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(backends, "version", lambda name: installed)
    chosen, reason = choose_backend("auto", final=False)
    assert isinstance(chosen, Pycocotools) and 'pip install "hotcoco>=1.3,<2"' in reason
    said = "hotcoco is not installed" if installed is None else f"hotcoco {installed} is installed, not hotcoco>=1.3,<2"
    with pytest.raises(MissingPackage, match=f'eval.backend=hotcoco, but {said}: pip install "hotcoco>=1.3,<2"'):
        choose_backend("hotcoco", final=False)


def test_the_version_in_the_message_is_that_of_the_package() -> None:
    pyproject = Path(__file__).resolve().parents[3] / "pyproject.toml"
    assert f'"{backends.SUPPORTED}"' in pyproject.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("setting", "during", "final"),
    [
        ("auto", Hotcoco, Pycocotools),
        ("hotcoco", Hotcoco, Hotcoco),
        ("pycocotools", Pycocotools, Pycocotools),
    ],
)
def test_final_scores_come_from_pycocotools_unless_the_setting_says_otherwise(
    setting: Any, during: type, final: type
) -> None:
    assert type(choose_backend(setting, final=False)[0]) is during
    assert type(choose_backend(setting, final=True)[0]) is final


def test_the_figures_of_both_are_equal_and_name_their_backend() -> None:
    results = [toy_result(), toy_result(image_id=2)]
    ours, theirs = (score_coco(toy_ground_truth(), results, backend=b) for b in (Hotcoco(), Pycocotools()))
    assert ours.kinds == theirs.kinds
    assert ours.backend.startswith("hotcoco 1.") and theirs.backend.startswith("pycocotools 2.")
    assert ours.to_json()["backend"] == ours.backend
