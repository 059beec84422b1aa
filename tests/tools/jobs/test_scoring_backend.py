"""Which library computes the scores of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_backbone.errors import MissingPackage
from tests.tools.conftest import Said
from tools import train_det
from tools.config.detection import RunConfig
from tools.evaluation import backends
from tools.jobs import detection

SHORT = ("schedule={iters: 2, warmup_iters: 0}", "model.mask=null", "data.train.max_images=4", "data.val.max_images=2")


@pytest.mark.parametrize(("setting", "final"), [("auto", "pycocotools 2."), ("hotcoco", "hotcoco 1.")])
def test_scores_during_training_and_at_its_end_name_their_library(
    setting: str, final: str, tiny_yaml: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    settings = (*SHORT, "eval.every_epochs=1", f"eval.backend={setting}")
    said = call(train_det, tiny_yaml, *(part for value in settings for part in ("--set", value)))
    assert said.code == 0, said.err
    assert "scores during training: hotcoco 1." in said.out and f"final scores: {final}" in said.out
    during, last = (said.out.index(f"scored by {name}") for name in ("hotcoco 1.", final))
    assert during < last or setting == "hotcoco"
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["backend"].startswith(final) and scores["images"] == 2 and scores["skipped_images"] == []


def test_a_run_that_asks_for_hotcoco_does_not_start_without_it(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_lacking", lambda: "hotcoco is not installed")
    with pytest.raises(MissingPackage, match="eval.backend=hotcoco, but hotcoco is not installed: pip install"):
        detection.train(tiny(*SHORT, "eval.backend=hotcoco"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
