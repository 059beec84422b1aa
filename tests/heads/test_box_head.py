"""The box head against torchvision's: layers, assignment, losses, detections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from heads import Conventions, ImageSize, Proposals, Targets
from heads.box_head import WEIGHTS, Assigned, BoxHead, BoxHeadSpec

K = 5
SIZES = [ImageSize(200, 300), ImageSize(220, 260)]
EVERYTHING = BoxHeadSpec(pool_size=3, hidden=16, samples_per_image=10**6)


def make(spec: BoxHeadSpec = EVERYTHING, beta: float = 1 / 9) -> BoxHead:
    return BoxHead(4, K, spec, Conventions(box_smooth_l1_beta=beta))


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
    ours, mlp, predictor = make(), TwoMLPHead(4 * 9, 16), FastRCNNPredictor(16, K + 1)
    for theirs, own in ((mlp.fc6, ours.hidden[0]), (mlp.fc7, ours.hidden[1]), (predictor.cls_score, ours.logits)):
        theirs.load_state_dict(own.state_dict())
    predictor.bbox_pred = torch.nn.Linear(16, K * 4)
    predictor.bbox_pred.load_state_dict(ours.deltas.state_dict())
    regions = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(ours(regions), predictor(mlp(regions)))


def test_losses_are_torchvisions() -> None:
    head, truth = make(), some_targets()
    assigned = head.assign([Proposals(around(t.boxes, 10), torch.zeros(10 * len(t))) for t in truth], truth)
    count = sum(len(a.boxes) for a in assigned)
    logits, deltas = torch.randn(count, K + 1), torch.randn(count, K * 4)
    losses = head.losses(logits, deltas, assigned, truth)
    goals = BoxCoder(WEIGHTS).encode([t.boxes[a.truth] for a, t in zip(assigned, truth)], [a.boxes for a in assigned])
    classification, regression = fastrcnn_loss(
        *background_first(logits, deltas), [(a.labels + 1) % (K + 1) for a in assigned], list(goals)
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
    (positives,) = head.positives([assigned])
    assert len(positives.boxes) == 10 and positives.labels.max() < K


def test_an_image_without_objects_gives_background_alone_and_no_box_loss() -> None:
    head = make()
    nothing = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]
    (assigned,) = head.assign([Proposals(random_boxes(7), torch.zeros(7))], nothing)
    assert assigned.labels.tolist() == [K] * 7
    losses = head.losses(torch.randn(7, K + 1), torch.randn(7, K * 4), [assigned], nothing)
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"].isfinite()


def test_detections_are_torchvisions() -> None:
    head = make()
    proposals = [random_boxes(60), random_boxes(40)]
    logits, deltas = torch.randn(100, K + 1) * 2, torch.randn(100, K * 4)
    found = head.select(logits, deltas, [Proposals(p, torch.zeros(len(p))) for p in proposals], SIZES)
    want = roi_heads().postprocess_detections(
        *background_first(logits, deltas), list(proposals), [(s.height, s.width) for s in SIZES]
    )
    for detections, boxes, scores, labels in zip(found, *want):
        torch.testing.assert_close(detections.boxes, boxes)
        torch.testing.assert_close(detections.scores, scores)
        assert torch.equal(detections.labels, labels - 1) and len(labels) > 20


def test_detections_obey_their_settings() -> None:
    spec = BoxHeadSpec(pool_size=3, hidden=16, min_score=0.4, max_detections=7)
    (found,) = make(spec).select(
        torch.randn(200, K + 1) * 3,
        torch.zeros(200, K * 4),
        [Proposals(random_boxes(200), torch.zeros(200))],
        SIZES[:1],
    )
    assert len(found) == 7 and found.scores.min() > 0.4 and found.scores.diff().le(0).all()


def test_predictions_that_are_not_finite_are_no_detections() -> None:
    logits, deltas = torch.zeros(3, K + 1), torch.zeros(3, K * 4)
    logits[0, 0], deltas[1, 5] = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40], [50, 50, 90, 90]])
    (found,) = make().select(logits, deltas, [Proposals(boxes, torch.zeros(3))], SIZES[:1])
    assert set(map(tuple, found.boxes.tolist())) == {(50.0, 50.0, 90.0, 90.0)}


def test_no_proposals_give_no_detections() -> None:
    none = Proposals(torch.zeros(0, 4), torch.zeros(0))
    found = make().select(torch.zeros(0, K + 1), torch.zeros(0, K * 4), [none, none], SIZES)
    assert [len(f) for f in found] == [0, 0]


def test_predictions_are_at_least_float32_in_half_precision() -> None:
    logits, deltas = make().bfloat16()(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert logits.dtype == deltas.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_the_precision_of_the_logits(dtype: torch.dtype) -> None:
    boxes = random_boxes(3).to(dtype)
    assigned, truth = (
        Assigned(boxes, torch.tensor([0, 1, K]), torch.tensor([0, 1, 0])),
        Targets(boxes[:2], torch.tensor([0, 1])),
    )
    losses = make().losses(torch.randn(3, K + 1, dtype=dtype), torch.randn(3, K * 4, dtype=dtype), [assigned], [truth])
    assert {loss.dtype for loss in losses.values()} == {dtype}
