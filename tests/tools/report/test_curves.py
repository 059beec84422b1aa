"""Plots of runs survive incomplete files, gaps and repeated steps; other files give clear errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_backbone.errors import MissingFile
from tools.report.curves import read_metrics, smooth, write_loss_curve


def train_line(step: int, **changes: Any) -> dict[str, Any]:
    parts = {"losses/loss_rpn_objectness": 0.3, "losses/loss_classes": 1.0 / (1 + step)}
    return {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.01, "loss": 1.5, **parts, **changes}


def val_line(step: int, **changes: Any) -> dict[str, Any]:
    return {"kind": "val", "step": step, "bbox/AP": 0.2, "bbox/AP50": 0.4, "bbox/APs": None, **changes}


def metrics_file(folder: Path, *records: dict[str, Any], tail: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return int(picture.width), int(picture.height)


def test_ap_has_a_panel_if_the_run_was_evaluated(tmp_path: Path) -> None:
    records = [train_line(step) for step in range(10)]
    write_loss_curve(metrics_file(tmp_path, *records), tmp_path / "plots" / "without_ap.png")
    write_loss_curve(metrics_file(tmp_path, *records, val_line(9)), tmp_path / "plots" / "with_ap.png")
    without_ap, with_ap = size_of(tmp_path / "plots" / "without_ap.png"), size_of(tmp_path / "plots" / "with_ap.png")
    assert without_ap[0] == with_ap[0] and without_ap[1] < with_ap[1]


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', "{", '{"kind": "train", "step": 7, "loss": 1.0\n'])
def test_an_incomplete_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    path = metrics_file(tmp_path, train_line(0), train_line(1), tail=tail)
    assert [record["step"] for record in read_metrics(path)] == [0, 1]
    write_loss_curve(path, tmp_path / "loss.png")
    assert size_of(tmp_path / "loss.png")[0] > 500


def test_a_last_line_that_ends_within_a_character_is_left_out(tmp_path: Path) -> None:
    path = metrics_file(tmp_path, train_line(0))
    path.write_bytes(path.read_bytes() + '{"kind": "é'.encode()[:-1])
    assert len(read_metrics(path)) == 1


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no metrics at .*metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_an_incomplete_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = metrics_file(tmp_path, train_line(0), tail='{"kind": "tr\n' + json.dumps(train_line(2)) + "\n")
    with pytest.raises(ValueError, match="line 2 of 3 is not JSON"):
        read_metrics(path)


def test_lines_without_kind_and_step_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be an object with 'kind' and 'step'"):
        read_metrics(metrics_file(tmp_path, {"loss": 1.0}, train_line(1)))


@pytest.mark.parametrize("records", [[], [val_line(5)]])
def test_a_file_without_training_lines_is_an_error(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=f"has {len(records)} lines, but none of kind 'train'"):
        write_loss_curve(metrics_file(tmp_path, *records), tmp_path / "loss.png")


def test_gaps_repeated_steps_and_late_losses_are_drawn(tmp_path: Path) -> None:
    records = [
        train_line(0, loss=math.nan),
        train_line(1),
        train_line(2, **{"losses/loss_masks": math.inf}),
        train_line(1, loss=1.4),  # a resumed run repeats a step
        val_line(2, **{"bbox/AP": None}),
    ]
    write_loss_curve(metrics_file(tmp_path, *records), tmp_path / "loss.png")
    assert size_of(tmp_path / "loss.png")[0] > 500


def test_smooth_keeps_a_constant_and_skips_gaps() -> None:
    assert smooth([2.0] * 50, span=10) == pytest.approx([2.0] * 50)
    means = smooth([1.0, math.nan, 1.0, math.inf, 1.0], span=3)
    assert [math.isnan(mean) for mean in means] == [False, True, False, True, False]
    assert means[4] == pytest.approx(1.0)
    assert smooth([1.0, 5.0, 3.0], span=0.1) == [1.0, 5.0, 3.0]


def test_smooth_of_an_alternating_series_is_near_its_mean() -> None:
    means = smooth([float(i % 2) for i in range(400)], span=50)
    assert all(abs(mean - 0.5) < 0.05 for mean in means[100:])
