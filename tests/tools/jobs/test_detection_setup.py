"""What a detector starts training from: initial values, pretrained backbones, and tensors that may be missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from heads import RCNN
from heads.build import assemble, empty_backbone
from heads.files import load_detector, save_detector
from heads.keymaps import to_layout
from resnet_backbone import RESNETS, ResNetClassifier, WeightMismatch
from resnet_backbone.weights.keymaps import body_in_layout
from resnet_backbone.weights.sources import AmbiguousWeights
from tests.tools.engine.tiny_training import QUIET, Tiny, max_difference, run, start_of
from tools.config.detection import RunConfig
from tools.jobs import detection


def test_a_run_from_scratch_starts_at_the_initial_values_of_assemble(tiny: Tiny) -> None:
    config = tiny()
    data = detection.load_train(config)
    torch.manual_seed(config.train.seed)
    by_hand = assemble(config.model, len(data.class_names), empty_backbone(config.model))
    assert max_difference(by_hand, start_of(config, data)) == 0.0


def test_a_run_from_msras_weights_uses_bgr_and_records_it(tiny: Tiny, tmp_path: Path) -> None:
    """Synthetic: a net with bottlenecks, with the keys of detectron2's model zoo."""
    torch.manual_seed(1)
    net = ResNetClassifier(replace(RESNETS["resnet50"], stride_on="1x1"))
    content = {"model": body_in_layout(net.state_dict(), "detectron2"), "__author__": "Detectron2 Model Zoo"}
    torch.save(content, tmp_path / "R-50.pth")
    sets = (
        f"backbone_weights={tmp_path / 'R-50.pth'}",
        "model.backbone=resnet50",
        "schedule={iters: 1, warmup_iters: 0}",
        "data.val=null",
        "train.batch_size=1",
    )
    with pytest.raises(ValueError, match="stride on the 1x1, this net has it on the 3x3.*DetectorRecipe"):
        run(tiny(*sets))
    config = tiny(*sets, "model.stride_on=1x1", f"out={tmp_path / 'bgr'}")
    run(config)
    detector, _ = load_detector(config.out / "checkpoints" / "last.pt")
    assert detector.preprocess.channel_order == "bgr" and detector.preprocess.resize == "pillow"
    assert detector.preprocess.short_side_px == config.input.test_short_side_px


def test_tensors_that_may_be_missing_are_printed_and_written_to_weights_txt(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("schedule={iters: 1, warmup_iters: 0}", "data.val=null")
    detector = run(config)
    torch.manual_seed(0)
    state = {k: v for k, v in detector.state_dict().items() if k not in ("rpn.deltas.bias", "backbone.bn1.bias")}
    backbone = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    torch.save(backbone, tmp_path / "gap.pth")
    sets = f"backbone_weights={tmp_path / 'gap.pth'}", "backbone_source=torchvision", f"out={tmp_path / 'tuned'}"
    with pytest.raises(WeightMismatch, match="bn1.bias"):
        run(tiny(*sets))
    capsys.readouterr()
    config = tiny(*sets, "allow_missing=[backbone.bn1.*]", "schedule={iters: 1, warmup_iters: 0}", "data.val=null")
    config.out.mkdir(exist_ok=True)
    detection.make_detector(config, detection.load_train(config), Console())
    cells = [line.split() for line in (config.out / "weights.txt").read_text().splitlines()]
    rows = {line[0]: line[2:] for line in cells if len(line) == 4}
    assert rows["backbone"] == ["1", "bn1.bias"] and "bn1.bias" in capsys.readouterr().out
    assert all(rows[part][1] == "all" for part in ("neck", "rpn", "box_head"))


def test_weights_whose_source_is_ambiguous_are_refused_with_the_setting_that_tells(tiny: Tiny, tmp_path: Path) -> None:
    torch.save(ResNetClassifier("resnet18").state_dict(), tmp_path / "net.pth")
    weights = f"backbone_weights={tmp_path / 'net.pth'}"
    with pytest.raises(AmbiguousWeights, match="backbone_source"):
        detection.make_detector(tiny(weights), detection.load_train(tiny()), QUIET)
    config = tiny(weights, "backbone_source=torchvision")
    detection.make_detector(config, detection.load_train(config), QUIET)


def detector_of(config: RunConfig, names: Sequence[str]) -> RCNN:
    """A detector of the configuration's model with random class layers."""
    torch.manual_seed(7)
    detector = assemble(config.model, len(names), empty_backbone(config.model))
    for layer in (detector.box_head.logits, detector.box_head.deltas):
        torch.nn.init.normal_(layer.weight)
    detector.class_names = tuple(names)
    return detector


def said_while_making(config: RunConfig) -> tuple[RCNN, str]:
    """The detector that a run starts from, and its weights.txt on one line."""
    config.out.mkdir(exist_ok=True)
    console = Console(file=StringIO())
    detector = detection.make_detector(config, detection.load_train(config), console)
    return detector, " ".join((config.out / "weights.txt").read_text().split())


def test_a_detector_of_another_project_gives_the_rows_of_shared_names(tiny: Tiny, tmp_path: Path) -> None:
    """The conventions that the message suggests are those that load it."""
    torchvision = tiny("model.conventions=torchvision")
    theirs = detector_of(torchvision, ("star", "kite", "circle"))
    state = {f"module.{k}": v for k, v in to_layout(theirs.state_dict(), "torchvision", {}).items()}
    meta = {"CLASSES": ("star", "kite", "circle")}
    torch.save({"state_dict_ema": state, "meta": meta}, tmp_path / "theirs.pth")
    sets = f"init_from={tmp_path / 'theirs.pth'}", "backbone_source=torchvision"
    with pytest.raises(ValueError, match="conventions of these weights differ") as error:
        said_while_making(tiny(*sets))
    match = re.search(r"set (model\.conventions=\w+)", str(error.value))
    assert match is not None
    ours, said = said_while_making(tiny(*sets, match[1]))
    assert ours.class_names[0] == "circle" and "star" in ours.class_names
    labels = [ours.class_names.index("circle"), ours.class_names.index("star"), len(ours.class_names)]
    assert torch.equal(ours.box_head.logits.weight[labels], theirs.box_head.logits.weight[[2, 0, 3]])
    assert "note: averaged (EMA) weights taken, from 'state_dict_ema'" in said
    assert "note: prefix 'module.' removed from all" in said
    assert "2 of 5 classes are in the weights (circle, star), initial values for" in said


def test_a_mask_rcnns_run_starts_a_faster_rcnn_and_the_other_way_round(tiny: Tiny, tmp_path: Path) -> None:
    masks, boxes = tiny(), tiny("model.mask=null")
    names = detection.load_train(masks).class_names
    for config, other, said in [
        (masks, boxes, "tensors of a mask head, first mask_head.convs.0.weight, are not used: this detector has none"),
        (boxes, masks, "note: the weights have no mask_head: it keeps its initial values"),
    ]:
        source = detector_of(config, names)
        save_detector(source, config.model, tmp_path / "source.pth", source="a test")
        made, text = said_while_making(other.model_copy(update={"init_from": tmp_path / "source.pth"}))
        assert said in text
        shared = [key for key in made.state_dict() if not key.startswith("mask_head.")]
        assert all(torch.equal(made.state_dict()[key], source.state_dict()[key]) for key in shared)


def test_other_conventions_of_init_from_are_said(tiny: Tiny, tmp_path: Path) -> None:
    theirs = tiny("model.conventions=torchvision")
    names = detection.load_train(theirs).class_names
    save_detector(detector_of(theirs, names), theirs.model, tmp_path / "theirs.pth", source="a test")
    _, said = said_while_making(tiny(f"init_from={tmp_path / 'theirs.pth'}"))
    assert "init_from was trained with other settings: model.conventions.round_anchors=True (here False)" in said
    _, said = said_while_making(tiny(f"init_from={tmp_path / 'theirs.pth'}", "model.conventions=torchvision"))
    assert "other settings" not in said and "note" not in said
