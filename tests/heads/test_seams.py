"""The seams of RCNN: dense compiles as one graph, kernels can be exchanged, steps can be called from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from heads import DetectorRecipe, ImageBatch, MaskHeadSpec, build_detector
from heads.detector import RCNN
from heads.kernels import RoIAlign, roi_align, roi_align_operator, roi_align_rows
from heads.mask_head import MaskHead
from heads.protocols import InstanceHead
from heads.roi_pool import RegionPooler
from heads.selection import above_threshold, class_scores, decode_candidates, suppress, top_k
from resnet_backbone import Backbone, FeatureSpec, ResNetBackbone

MakeBatch = Callable[..., ImageBatch]


@pytest.fixture
def detector(small_recipe: DetectorRecipe) -> RCNN:
    made = build_detector(replace(small_recipe, norm="gn"), num_classes=3)
    nn.init.normal_(made.box_head.logits.weight, std=0.1)
    return made.eval()


@torch.inference_mode()
def test_dense_is_one_graph_and_compiled_gives_the_same_tensors(detector: RCNN, make_batch: MakeBatch) -> None:
    """fullgraph=True raises at the first Python decision that depends on data."""
    compiled = torch.compile(detector.dense, backend="aot_eager", fullgraph=True)
    pixels = make_batch().pixels
    expected, dense = detector.dense(pixels), compiled(pixels)
    torch.testing.assert_close(dense.features, expected.features)
    torch.testing.assert_close(list(dense.rpn), list(expected.rpn))


def test_compiled_roi_align_is_torchvisions_operator() -> None:
    """Eager mode takes matrix products for this grid; a trace must not depend on the size of the grid."""
    feature, regions = torch.randn(1, 4, 16, 16), torch.tensor([[0.0, 2, 3, 40, 50], [0, 10, 10, 12, 60]])
    settings = {"size": 3, "scale": 0.25, "samples": 2, "aligned": True}
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(roi_align, backend=keep, fullgraph=True)
    expected = roi_align_operator(feature, regions, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(compiled(feature, regions, **settings), expected)
    assert any("roi_align" in str(node.target) for node in graphs[0].graph.nodes)


def test_a_pooler_uses_the_kernel_that_it_is_given(small_recipe: DetectorRecipe) -> None:
    calls: list[str] = []

    def counted(feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
        calls.append("counted")
        return roi_align_rows(feature, regions, size=size, scale=scale, samples=samples, aligned=aligned)

    kernel: RoIAlign = counted
    specs = {"p2": FeatureSpec(4, 4), "p3": FeatureSpec(4, 8)}
    levels = {"p2": torch.randn(1, 4, 16, 16), "p3": torch.randn(1, 4, 8, 8)}
    boxes = [torch.tensor([[2.0, 2, 30, 40], [0, 0, 60, 60]])]

    def pooled(**options: RoIAlign) -> Tensor:
        pooler = RegionPooler(specs, list(specs), size=7, conventions=small_recipe.conventions, **options)
        return pooler(levels, boxes)

    torch.testing.assert_close(pooled(kernel=kernel), pooled())
    assert calls == ["counted", "counted"]  # one call per level


@torch.inference_mode()
def test_the_steps_called_one_by_one_give_the_detections_of_detect(detector: RCNN, make_batch: MakeBatch) -> None:
    batch = make_batch()
    dense = detector.dense(batch.pixels)
    proposals = detector.propose(dense, batch, detector.rpn.spec.keep_test)
    (stage,) = detector.roi_stages
    output = stage(dense.features, [p.boxes for p in proposals])
    spec = stage.head.spec
    parts = zip(class_scores([output]), output.per_image(output.deltas), output.boxes, batch.sizes)
    for (scores, deltas, boxes, size), expected in zip(parts, detector.detect(batch), strict=True):
        candidates = above_threshold(scores, deltas, spec.min_score)
        decoded = decode_candidates(candidates, deltas, boxes, stage, size)
        detections = top_k(suppress(decoded, spec.nms_iou), spec.max_detections)
        assert len(detections) and torch.equal(detections.boxes, expected.boxes)
        assert torch.equal(detections.scores, expected.scores) and torch.equal(detections.labels, expected.labels)


def test_parts_satisfy_their_protocols(small_recipe: DetectorRecipe) -> None:
    assert isinstance(MaskHead(4, 3, MaskHeadSpec(channels=4), small_recipe.conventions), InstanceHead)
    backbone = build_detector(replace(small_recipe, norm="gn"), num_classes=1).backbone
    assert isinstance(backbone, ResNetBackbone) and isinstance(backbone, Backbone)
