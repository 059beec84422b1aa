"""The box stage against torchvision's: layers, assignment, losses, detections."""

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
from heads.roi_stage import BOX_DELTA_WEIGHTS, RoIStage, StageOutput, foreground, without_empty
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
    """The output of a stage whose head computed these logits (S, K + 1) and deltas (S, K * 4)."""
    return StageOutput(boxes, torch.zeros(len(logits), 4, 3, 3), logits, deltas.reshape(len(deltas), K, 4))


def random_boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 150
    return torch.cat([corner, corner + torch.rand(count, 2) * 60 + 5], dim=1)


def around(boxes: Tensor, count: int) -> Tensor:
    """Proposals near the boxes, so that many are positive."""
    return boxes.repeat(count, 1) + torch.randn(count * len(boxes), 4) * 3


def roi_heads() -> RoIHeads:
    parts = (None, None, None)
    return RoIHeads(*parts, 0.5, 0.5, 10**6, 0.25, None, score_thresh=0.05, nms_thresh=0.5, detections_per_img=100)


def background_first(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Our K + 1 logits and 4 K deltas as torchvision orders them: its class 0 is the background."""
    return torch.cat([logits[:, -1:], logits[:, :-1]], dim=1), torch.cat([torch.zeros(len(deltas), 4), deltas], dim=1)


def some_targets() -> list[Targets]:
    return [Targets(random_boxes(n), torch.randint(0, K, (n,))) for n in (4, 2)]


def test_layers_are_torchvisions() -> None:
    ours, mlp, predictor = make().head, TwoMLPHead(4 * 9, 16), FastRCNNPredictor(16, K + 1)
    for theirs, own in ((mlp.fc6, ours.hidden[0]), (mlp.fc7, ours.hidden[1]), (predictor.cls_score, ours.logits)):
        theirs.load_state_dict(own.state_dict())
    predictor.bbox_pred = torch.nn.Linear(16, K * 4)
    predictor.bbox_pred.load_state_dict(ours.deltas.state_dict())
    regions = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(ours(regions), predictor(mlp(regions)))


def test_losses_are_torchvisions() -> None:
    stage, targets = make(), some_targets()
    samples = stage.assign([Proposals(around(t.boxes, 10), torch.zeros(10 * len(t))) for t in targets], targets)
    boxes = [s.boxes for s in samples]
    count = sum(len(b) for b in boxes)
    logits, deltas = torch.randn(count, K + 1), torch.randn(count, K * 4)
    losses = stage.losses(output_of(logits, deltas, boxes), samples, targets)
    goals = BoxCoder(BOX_DELTA_WEIGHTS).encode([t.boxes[s.matched] for s, t in zip(samples, targets)], boxes)
    classification, regression = fastrcnn_loss(
        *background_first(logits, deltas), [(s.labels + 1) % (K + 1) for s in samples], list(goals)
    )
    torch.testing.assert_close(losses["loss_cls"], classification)
    torch.testing.assert_close(losses["loss_box_reg"], regression)


def test_assignment_is_torchvisions_when_everything_is_sampled() -> None:
    truth = some_targets()
    proposals = [torch.cat([around(t.boxes, 6), random_boxes(30)]) for t in truth]
    ours = make().assign([Proposals(p, torch.zeros(len(p))) for p in proposals], truth)
    boxes, _, labels, _ = roi_heads().select_training_samples(
        list(proposals), [{"boxes": t.boxes, "labels": t.labels + 1} for t in truth]
    )
    for assigned, want_boxes, want_labels in zip(ours, boxes, labels):
        rows = torch.cat([assigned.boxes, ((assigned.labels + 1) % (K + 1))[:, None]], dim=1).tolist()
        assert sorted(rows) == sorted(torch.cat([want_boxes, want_labels[:, None]], dim=1).tolist())
        assert 0 < int((assigned.labels < K).sum()) < len(assigned.labels)


def test_the_ground_truth_itself_is_always_among_the_regions() -> None:
    truth = some_targets()
    assigned = make().assign([Proposals(torch.zeros(0, 4), torch.zeros(0))] * 2, truth)
    for regions, target in zip(assigned, truth):
        assert torch.equal(regions.boxes, target.boxes) and torch.equal(regions.labels, target.labels)


def test_sampling_takes_at_most_its_fraction_of_positives() -> None:
    head = make(BoxHeadSpec(pool_size=3, hidden=16, samples_per_image=40))
    truth = some_targets()[:1]
    proposals = torch.cat([around(truth[0].boxes, 20), random_boxes(200) + 300])
    (assigned,) = head.assign([Proposals(proposals, torch.zeros(len(proposals)))], truth)
    assert len(assigned.boxes) == 40 and int((assigned.labels < K).sum()) == 10
    (positives,) = foreground([assigned], K)
    assert len(positives.boxes) == 10 and positives.labels.max() < K


def test_an_image_without_objects_gives_background_alone_and_no_box_loss() -> None:
    head = make()
    nothing = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    (assigned,) = head.assign([Proposals(random_boxes(7), torch.zeros(7))], nothing)
    assert assigned.labels.tolist() == [K] * 7
    output = output_of(torch.randn(7, K + 1), torch.randn(7, K * 4), [assigned.boxes])
    losses = head.losses(output, [assigned], nothing)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"].isfinite()


def test_detections_are_torchvisions() -> None:
    head = make()
    proposals = [random_boxes(60), random_boxes(40)]
    logits, deltas = torch.randn(100, K + 1) * 2, torch.randn(100, K * 4)
    found = select_detections([output_of(logits, deltas, proposals)], head, SIZES)
    want = roi_heads().postprocess_detections(
        *background_first(logits, deltas), list(proposals), [(s.height, s.width) for s in SIZES]
    )
    for detections, boxes, scores, labels in zip(found, *want):
        torch.testing.assert_close(detections.boxes, boxes)
        torch.testing.assert_close(detections.scores, scores)
        assert torch.equal(detections.labels, labels - 1) and len(labels) > 20


def test_detections_obey_their_settings() -> None:
    spec = BoxHeadSpec(pool_size=3, hidden=16, min_score=0.4, max_detections=7)
    output = output_of(torch.randn(200, K + 1) * 3, torch.zeros(200, K * 4), [random_boxes(200)])
    (found,) = select_detections([output], make(spec), SIZES[:1])
    assert len(found) == 7 and found.scores.min() > 0.4 and found.scores.diff().le(0).all()


def test_predictions_that_are_not_finite_are_no_detections() -> None:
    logits, deltas = torch.zeros(3, K + 1), torch.zeros(3, K * 4)
    logits[0, 0], deltas[1, 5] = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 90, 90]])
    (found,) = select_detections([output_of(logits, deltas, [boxes])], make(), SIZES[:1])
    assert set(map(tuple, found.boxes.tolist())) == {(50.0, 50.0, 90.0, 90.0)}


def test_no_proposals_give_no_detections() -> None:
    output = output_of(torch.zeros(0, K + 1), torch.zeros(0, K * 4), [torch.zeros(0, 4)] * 2)
    found = select_detections([output], make(), SIZES)
    assert [len(f) for f in found] == [0, 0]


def test_predictions_are_at_least_float32_in_half_precision() -> None:
    logits, deltas = make().head.bfloat16()(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert logits.dtype == deltas.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_the_precision_of_the_logits(dtype: torch.dtype) -> None:
    boxes = random_boxes(3).to(dtype)
    samples = SampledRegions(boxes, torch.tensor([0, 1, K]), torch.tensor([0, 1, 0]))
    target = Targets(boxes[:2], torch.tensor([0, 1]))
    output = output_of(torch.randn(3, K + 1, dtype=dtype), torch.randn(3, K * 4, dtype=dtype), [boxes])
    losses = make().losses(output, [samples], [target])
    assert {loss.dtype for loss in losses.values()} == {dtype}


def test_the_next_stage_gets_the_boxes_of_the_best_class() -> None:
    """Checked against torchvision's decoder, class by class, and clipped."""
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


def test_regions_keep_their_places_from_stage_to_stage() -> None:
    """Scores of all stages are averaged region by region: nothing may be dropped between them in inference."""
    boxes, deltas = [torch.tensor([[10.0, 10, 50, 60], [20, 20, 40, 40], [5, 5, 9, 9]])], torch.zeros(3, K, 4)
    deltas[0, :, 0], deltas[1, :, 2] = -1e4, float("nan")  # the first leaves the image, the second is not finite
    output = output_of(torch.randn(3, K + 1), deltas.flatten(1), boxes)
    (proposals,) = make().next_proposals(output, SIZES[:1])
    assert proposals.boxes[:, 0].tolist() == [0.0, 20.0, 5.0] and proposals.boxes[0, 2] == 0
    (kept,) = without_empty([proposals])
    assert kept.boxes[:, 0].tolist() == [20.0, 5.0]


def test_stages_that_scored_the_same_regions_are_averaged() -> None:
    boxes, deltas = [random_boxes(40)], torch.zeros(40, K * 4)
    logits = [torch.randn(40, K + 1) * 3 for _ in range(3)]
    spec = BoxHeadSpec(pool_size=3, hidden=16, min_score=0.0, nms_iou=1.0, max_detections=1000)
    (detections,) = select_detections(
        [output_of(of_one, deltas, boxes) for of_one in logits], make(spec), [ImageSize(400, 400)]
    )
    mean = torch.stack([of_one.softmax(1) for of_one in logits]).mean(0)[:, :K]
    torch.testing.assert_close(detections.scores, mean.flatten().sort(descending=True).values)
