"""The box stage equals torchvision's in layers, assignment, losses and detections; several stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from heads import Conventions, ImageSize, Proposals, Targets
from heads.box_head import BoxHead, BoxHeadSpec
from heads.matching import SampledRegions
from heads.roi_pool import RegionPooler
from heads.roi_stage import BOX_DELTA_WEIGHTS, RoIStage, StageOutput, without_empty
from heads.selection import select_detections
from resnet_backbone import FeatureSpec

K = 5
SIZES = [ImageSize(200, 300), ImageSize(220, 260)]
EVERYTHING = BoxHeadSpec(pool_size=3, hidden=16, samples_per_image=10**6)


def make(spec: BoxHeadSpec = EVERYTHING, beta: float = 1 / 9) -> RoIStage:
    conventions = Conventions(box_smooth_l1_beta=beta)
    pooler = RegionPooler({"p2": FeatureSpec(4, 4)}, ["p2"], size=spec.pool_size, conventions=conventions)
    return RoIStage(pooler, BoxHead(4, K, spec, conventions), BOX_DELTA_WEIGHTS)


def output_of(logits: Tensor, deltas: Tensor, boxes: list[Tensor]) -> StageOutput:
    """The output of a stage with these logits (S, K + 1) and deltas (S, K * 4)."""
    return StageOutput(boxes, torch.zeros(len(logits), 4, 3, 3), logits, deltas.reshape(len(deltas), K, 4))


def random_boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 150
    return torch.cat([corner, corner + torch.rand(count, 2) * 60 + 5], dim=1)


def around(boxes: Tensor, count: int) -> Tensor:
    """Proposals near the boxes, so that many are positive."""
    return boxes.repeat(count, 1) + torch.randn(count * len(boxes), 4) * 3


def roi_heads() -> RoIHeads:
    """torchvision's box stage, with all regions sampled."""
    parts = (None, None, None)
    return RoIHeads(*parts, 0.5, 0.5, 10**6, 0.25, None, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100)


def background_first(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Our K + 1 logits and 4 K deltas in torchvision's order, where class 0 is the background."""
    return torch.cat([logits[:, -1:], logits[:, :-1]], dim=1), torch.cat([torch.zeros(len(deltas), 4), deltas], dim=1)


def some_targets() -> list[Targets]:
    return [Targets(random_boxes(n), torch.randint(0, K, (n,))) for n in (4, 2)]


def test_layers_equal_torchvision() -> None:
    ours, mlp, predictor = make().head, TwoMLPHead(4 * 9, 16), FastRCNNPredictor(16, K + 1)
    for reference_layer, our_layer in (
        (mlp.fc6, ours.hidden[0]),
        (mlp.fc7, ours.hidden[1]),
        (predictor.cls_score, ours.logits),
    ):
        reference_layer.load_state_dict(our_layer.state_dict())
    predictor.bbox_pred = torch.nn.Linear(16, K * 4)
    predictor.bbox_pred.load_state_dict(ours.deltas.state_dict())
    regions = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(ours(regions), predictor(mlp(regions)))


def test_losses_equal_torchvision() -> None:
    stage, targets = make(), some_targets()
    samples = stage.assign([Proposals(around(t.boxes, 10), torch.zeros(10 * len(t))) for t in targets], targets)
    boxes = [s.boxes for s in samples]
    count = sum(len(b) for b in boxes)
    logits, deltas = torch.randn(count, K + 1), torch.randn(count, K * 4)
    losses = stage.losses(output_of(logits, deltas, boxes), samples, targets)
    delta_targets = BoxCoder(BOX_DELTA_WEIGHTS).encode([t.boxes[s.matched] for s, t in zip(samples, targets)], boxes)
    classification, regression = fastrcnn_loss(
        *background_first(logits, deltas), [(s.labels + 1) % (K + 1) for s in samples], list(delta_targets)
    )
    torch.testing.assert_close(losses["loss_cls"], classification)
    torch.testing.assert_close(losses["loss_box_reg"], regression)


def test_assignment_equals_torchvision_when_everything_is_sampled() -> None:
    targets = some_targets()
    proposals = [torch.cat([around(t.boxes, 6), random_boxes(30)]) for t in targets]
    ours = make().assign([Proposals(p, torch.zeros(len(p))) for p in proposals], targets)
    boxes, _, labels, _ = roi_heads().select_training_samples(
        list(proposals), [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    )
    for assigned, expected_boxes, expected_labels in zip(ours, boxes, labels):
        rows = torch.cat([assigned.boxes, ((assigned.labels + 1) % (K + 1))[:, None]], dim=1).tolist()
        assert sorted(rows) == sorted(torch.cat([expected_boxes, expected_labels[:, None]], dim=1).tolist())
        assert 0 < int((assigned.labels < K).sum()) < len(assigned.labels)


def test_ground_truth_boxes_are_among_the_regions() -> None:
    targets = some_targets()
    assigned = make().assign([Proposals(torch.zeros(0, 4), torch.zeros(0))] * 2, targets)
    for regions, target in zip(assigned, targets):
        assert torch.equal(regions.boxes, target.boxes) and torch.equal(regions.labels, target.labels)


def test_sampling_limits_the_fraction_of_positives() -> None:
    stage = make(BoxHeadSpec(pool_size=3, hidden=16, samples_per_image=40))
    targets = some_targets()[:1]
    proposals = torch.cat([around(targets[0].boxes, 20), random_boxes(200) + 300])
    (assigned,) = stage.assign([Proposals(proposals, torch.zeros(len(proposals)))], targets)
    assert len(assigned.boxes) == 40 and int((assigned.labels < K).sum()) == 10
    positives = assigned.foreground()
    assert len(positives.boxes) == 10 and positives.labels.max() < K


def test_an_image_without_objects_gives_only_background_and_no_box_loss() -> None:
    stage = make()
    no_objects = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    (assigned,) = stage.assign([Proposals(random_boxes(7), torch.zeros(7))], no_objects)
    assert assigned.labels.tolist() == [K] * 7
    output = output_of(torch.randn(7, K + 1), torch.randn(7, K * 4), [assigned.boxes])
    losses = stage.losses(output, [assigned], no_objects)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"].isfinite()


def test_detections_equal_torchvision() -> None:
    stage = make()
    proposals = [random_boxes(60), random_boxes(40)]
    logits, deltas = torch.randn(100, K + 1) * 2, torch.randn(100, K * 4)
    detections_of_images = select_detections([output_of(logits, deltas, proposals)], stage, SIZES)
    expected = roi_heads().postprocess_detections(
        *background_first(logits, deltas), list(proposals), [(s.height, s.width) for s in SIZES]
    )
    for detections, boxes, scores, labels in zip(detections_of_images, *expected):
        torch.testing.assert_close(detections.boxes, boxes)
        torch.testing.assert_close(detections.scores, scores)
        assert torch.equal(detections.labels, labels - 1) and len(labels) > 20


def test_detections_respect_min_score_and_max_detections() -> None:
    spec = BoxHeadSpec(pool_size=3, hidden=16, min_score=0.4, max_detections=7)
    output = output_of(torch.randn(200, K + 1) * 3, torch.zeros(200, K * 4), [random_boxes(200)])
    (detections,) = select_detections([output], make(spec), SIZES[:1])
    assert len(detections) == 7 and detections.scores.min() > 0.4 and detections.scores.diff().le(0).all()


def test_non_finite_predictions_give_no_detections() -> None:
    logits, deltas = torch.zeros(3, K + 1), torch.zeros(3, K * 4)
    logits[0, 0], deltas[1, 5] = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 90, 90]])
    (detections,) = select_detections([output_of(logits, deltas, [boxes])], make(), SIZES[:1])
    assert set(map(tuple, detections.boxes.tolist())) == {(50.0, 50.0, 90.0, 90.0)}


def test_no_proposals_give_no_detections() -> None:
    output = output_of(torch.zeros(0, K + 1), torch.zeros(0, K * 4), [torch.zeros(0, 4)] * 2)
    detections_of_images = select_detections([output], make(), SIZES)
    assert [len(detections) for detections in detections_of_images] == [0, 0]


def test_predictions_of_a_half_precision_head_are_float32() -> None:
    logits, deltas = make().head.bfloat16()(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert logits.dtype == deltas.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_the_precision_of_the_logits(dtype: torch.dtype) -> None:
    boxes = random_boxes(3).to(dtype)
    samples = SampledRegions(boxes, torch.tensor([0, 1, K]), torch.tensor([0, 1, 0]), 2)
    target = Targets(boxes[:2], torch.tensor([0, 1]))
    output = output_of(torch.randn(3, K + 1, dtype=dtype), torch.randn(3, K * 4, dtype=dtype), [boxes])
    losses = make().losses(output, [samples], [target])
    assert {loss.dtype for loss in losses.values()} == {dtype}


def test_next_proposals_are_the_boxes_of_the_best_class() -> None:
    """Each class is decoded by torchvision's coder, and the boxes are clipped."""
    stage, boxes = make(), [random_boxes(30), random_boxes(20)]
    logits, deltas = torch.randn(50, K + 1), torch.randn(50, K * 4)
    proposals = stage.next_proposals(output_of(logits, deltas, boxes), SIZES)
    decoded = BoxCoder(BOX_DELTA_WEIGHTS).decode(deltas, boxes).split([30, 20])  # (R, K, 4)
    parts = zip(proposals, decoded, logits.split([30, 20]), SIZES, strict=True)
    for proposal, image_boxes, image_logits, size in parts:
        scores, labels = image_logits[:, :K].max(1)
        best = image_boxes[torch.arange(len(labels)), labels]
        expected = torch.stack([best[:, i].clamp(0, (size.width, size.height)[i % 2]) for i in range(4)], dim=1)
        torch.testing.assert_close(proposal.boxes, expected)
        assert torch.equal(proposal.scores, scores)


def test_next_proposals_keep_the_number_and_order_of_regions() -> None:
    """Scores are averaged over the stages for each region, so no region may be dropped between stages in inference."""
    boxes, deltas = [torch.tensor([[10.0, 10, 50, 60], [20, 20, 40, 40], [5, 5, 9, 9]])], torch.zeros(3, K, 4)
    deltas[0, :, 0], deltas[1, :, 2] = -1e4, float("nan")  # the first box leaves the image, the second is not finite
    output = output_of(torch.randn(3, K + 1), deltas.flatten(1), boxes)
    (proposals,) = make().next_proposals(output, SIZES[:1])
    assert proposals.boxes[:, 0].tolist() == [0.0, 20.0, 5.0] and proposals.boxes[0, 2] == 0
    (kept,) = without_empty([proposals])
    assert kept.boxes[:, 0].tolist() == [20.0, 5.0]


def test_scores_of_several_stages_are_averaged() -> None:
    boxes, deltas = [random_boxes(40)], torch.zeros(40, K * 4)
    logits = [torch.randn(40, K + 1) * 3 for _ in range(3)]
    spec = BoxHeadSpec(pool_size=3, hidden=16, min_score=0.0, nms_iou=1.0, max_detections=1000)
    (detections,) = select_detections(
        [output_of(stage_logits, deltas, boxes) for stage_logits in logits], make(spec), [ImageSize(400, 400)]
    )
    mean = torch.stack([stage_logits.softmax(1) for stage_logits in logits]).mean(0)[:, :K]
    torch.testing.assert_close(detections.scores, mean.flatten().sort(descending=True).values)
