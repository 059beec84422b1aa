"""The RPN equals torchvision's in predictions, losses and proposals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import rpn as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from heads import Conventions, ImageBatch, ImageSize, Proposals, Targets
from heads.anchors import AnchorGrid
from heads.rpn import RPN, RPNOutput, RPNSpec

TORCHVISION = Conventions(round_anchors=True, anchor_stride="grid", rpn_smooth_l1_beta=1 / 9, min_proposal_px=1e-3)
RATIOS, PADDED = (0.5, 1.0, 2.0), (64, 96)
SIZES = [ImageSize(64, 96), ImageSize(50, 80)]
EVERYTHING = RPNSpec(samples_per_image=10**6)
BATCH = ImageBatch(torch.zeros(2, 3, *PADDED), tuple(SIZES))


def make(spec: RPNSpec = EVERYTHING, conventions: Conventions = TORCHVISION) -> RPN:
    grid = AnchorGrid({"p2": (16,), "p3": (32,)}, RATIOS, {"p2": 4, "p3": 8}, conventions)
    return RPN(8, grid, spec, conventions)


def levels() -> dict[str, Tensor]:
    return {"p2": torch.randn(2, 8, 16, 24), "p3": torch.randn(2, 8, 8, 12)}


def torchvision_rpn(ours: RPN, spec: RPNSpec) -> tv.RegionProposalNetwork:
    """torchvision's RPN with the weights of ours."""
    head = tv.RPNHead(8, 3)
    for reference_layer, our_layer in (
        (head.conv[0][0], ours.convs[0]),
        (head.cls_logits, ours.objectness),
        (head.bbox_pred, ours.deltas),
    ):
        reference_layer.load_state_dict(our_layer.state_dict())
    keep_before = {"training": spec.keep_before_nms_train, "testing": spec.keep_before_nms_test}
    keep_after = {"training": spec.keep_after_nms_train, "testing": spec.keep_after_nms_test}
    return tv.RegionProposalNetwork(
        AnchorGenerator(((16,), (32,)), (RATIOS,) * 2),
        head,
        spec.positive_iou,
        spec.negative_iou,
        spec.samples_per_image,
        spec.positive_fraction,
        keep_before,
        keep_after,
        spec.nms_iou,
    )


def with_spread_predictions(rpn: RPN) -> RPN:
    """Draw larger weights than the initial ones, so that predictions spread as after training."""
    for conv in (*rpn.convs, rpn.objectness, rpn.deltas):
        nn.init.normal_(conv.weight, std=0.1)
        nn.init.normal_(conv.get_parameter("bias"), std=0.1)
    return rpn


def some_targets() -> list[Targets]:
    boxes = [torch.tensor([[5.0, 6, 30, 29], [40, 20, 60, 45], [41, 18, 70, 50]]), torch.tensor([[10.0, 10, 44, 40]])]
    return [Targets(b, torch.zeros(len(b), dtype=torch.int64)) for b in boxes]


def losses_of(rpn: RPN, features: dict[str, Tensor], targets: list[Targets]) -> dict[str, Tensor]:
    return rpn.losses(rpn(features, PADDED), features, BATCH, targets)


def proposals_of(rpn: RPN, features: dict[str, Tensor], keep: tuple[int, int] | None = None) -> list[Proposals]:
    return rpn.propose(rpn(features, PADDED), BATCH, keep or rpn.spec.keep_test)


def images() -> ImageList:
    return ImageList(torch.zeros(2, 3, *PADDED), [(s.height, s.width) for s in SIZES])


@pytest.mark.parametrize("keep", [(50, 20), (2000, 1000)])
def test_proposals_and_their_order_equal_torchvision(keep: tuple[int, int]) -> None:
    spec = replace(EVERYTHING, keep_before_nms_test=keep[0], keep_after_nms_test=keep[1])
    ours = with_spread_predictions(make(spec))
    reference, features = torchvision_rpn(ours, spec).eval(), levels()
    with torch.no_grad():
        actual, (boxes, _) = proposals_of(ours, features), reference(images(), dict(features))
    for proposals, expected in zip(actual, boxes):
        torch.testing.assert_close(proposals.boxes, expected, rtol=1e-5, atol=1e-3)
        assert proposals.scores.diff().le(0).all() and 10 < len(proposals) <= keep[1]


def test_losses_equal_torchvision_except_for_the_divisor() -> None:
    ours = with_spread_predictions(make())
    reference, features, targets = torchvision_rpn(ours, EVERYTHING).train(), levels(), some_targets()
    losses = losses_of(ours, features, targets)
    _, expected = reference(images(), dict(features), [{"boxes": t.boxes} for t in targets])
    anchors = reference.anchor_generator(images(), list(features.values()))
    labels, _ = reference.assign_targets_to_anchors(anchors, [{"boxes": t.boxes} for t in targets])
    sampled = int((torch.cat(labels) >= 0).sum())
    # torchvision divides by the number of sampled anchors; ours and detectron2 by images * samples_per_image
    ratio = 2 * EVERYTHING.samples_per_image / sampled
    torch.testing.assert_close(losses["loss_rpn_cls"] * ratio, expected["loss_objectness"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["loss_rpn_loc"] * ratio, expected["loss_rpn_box_reg"], rtol=1e-5, atol=1e-6)


def test_gradients_of_the_losses_equal_torchvision_except_for_the_divisor() -> None:
    ours = with_spread_predictions(make())
    reference, features, targets = torchvision_rpn(ours, EVERYTHING).train(), levels(), some_targets()
    losses = losses_of(ours, features, targets)
    _, expected = reference(images(), dict(features), [{"boxes": t.boxes} for t in targets])
    ratio = expected["loss_objectness"].detach() / losses["loss_rpn_cls"].detach()
    (torch.stack(list(losses.values())).sum() * ratio).backward()
    torch.stack(list(expected.values())).sum().backward()
    for our_layer, reference_layer in (
        (ours.convs[0], reference.head.conv[0][0]),
        (ours.deltas, reference.head.bbox_pred),
    ):
        torch.testing.assert_close(our_layer.weight.grad, reference_layer.weight.grad, rtol=1e-4, atol=1e-6)


def test_all_anchors_are_background_without_objects() -> None:
    rpn = with_spread_predictions(make())
    no_objects = [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 2
    features = levels()
    losses = losses_of(rpn, features, no_objects)
    assert losses["loss_rpn_loc"] == 0
    logits = rpn(features, PADDED).logits
    expected = nn.functional.softplus(torch.cat(logits, 1)).sum() / (2 * EVERYTHING.samples_per_image)
    torch.testing.assert_close(losses["loss_rpn_cls"], expected)


def test_proposals_are_detached_inside_the_image_and_larger_than_the_minimum() -> None:
    rpn = with_spread_predictions(make(conventions=replace(TORCHVISION, min_proposal_px=9.0)))
    proposals_of_images = proposals_of(rpn, {k: x.requires_grad_() for k, x in levels().items()}, rpn.spec.keep_train)
    for proposals, size in zip(proposals_of_images, SIZES):
        assert proposals.boxes.min() >= 0 and not proposals.boxes.requires_grad and not proposals.scores.requires_grad
        assert proposals.boxes[:, 2].max() <= size.width and proposals.boxes[:, 3].max() <= size.height
        assert (proposals.boxes[:, 2:] - proposals.boxes[:, :2]).min() > 9


def test_non_finite_predictions_are_not_proposed() -> None:
    rpn = with_spread_predictions(make())
    features = levels()
    output = rpn(features, PADDED)
    clean = rpn.propose(output, BATCH, (2000, 1000))
    output.deltas[0].data[0, :100] = float("nan")
    output.logits[1].data[0, 5] = float("inf")
    proposals = rpn.propose(output, BATCH, (2000, 1000))
    assert all(p.boxes.isfinite().all() and p.scores.isfinite().all() and len(p) for p in proposals)
    assert torch.equal(proposals[1].boxes, clean[1].boxes)  # the other image is not affected


def test_suppression_does_not_cross_levels() -> None:
    """Two levels with two equal anchors each: one of the equal boxes is kept per level."""
    conventions = Conventions()
    strides = {"p2": 48, "p3": 48}  # one cell per level and image
    grid = AnchorGrid({"p2": (32, 32), "p3": (32, 32)}, (1.0,), strides, conventions)
    rpn, features = RPN(8, grid, EVERYTHING, conventions), {level: torch.zeros(1, 8, 1, 1) for level in strides}
    batch = ImageBatch(torch.zeros(1, 3, 48, 48), (ImageSize(48, 48),))
    low, no_deltas = torch.full((1, 2), -9.0), [torch.zeros(1, 2, 4)] * 2
    output = RPNOutput([torch.tensor([[2.0, 1.0]]), low], no_deltas, rpn.anchors(features, (48, 48)))
    (proposals,) = rpn.propose(output, batch, (10, 10))
    assert proposals.scores.tolist() == [2.0, -9.0]  # the best score of each level
    assert torch.equal(proposals.boxes[0], proposals.boxes[1])


def test_predictions_and_proposals_of_a_half_precision_rpn_are_float32() -> None:
    rpn = make().bfloat16()
    output = rpn({k: x.bfloat16() for k, x in levels().items()}, PADDED)
    assert {t.dtype for t in (*output.logits, *output.deltas)} == {torch.float32}
    assert all(
        p.boxes.dtype == torch.float32 for p in proposals_of(rpn, {k: x.bfloat16() for k, x in levels().items()})
    )


@pytest.mark.parametrize("convs", [1, 2, 3])
def test_chosen_anchors_have_the_outputs_and_gradients_of_the_head_over_all_cells(
    convs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rpn = with_spread_predictions(make(RPNSpec(convs=convs))).double()
    results = []
    for dense_from in (10**9, 0):  # over all cells; around the chosen ones
        monkeypatch.setattr("heads.rpn.DENSE_FROM", dense_from)
        torch.manual_seed(0)
        features = {level: x.double().requires_grad_() for level, x in levels().items()}
        total = 3 * (16 * 24 + 8 * 12)
        # the corners of both levels, and any others, some of them twice
        corners = torch.tensor([0, 1, 23 * 3, 15 * 24 * 3, 16 * 24 * 3 - 1, 16 * 24 * 3, total - 1])
        chosen = [torch.cat([corners, torch.randint(0, total, (30,))]), torch.randint(0, total, (4,))]
        logits, deltas = rpn.at(features, chosen)
        rpn.zero_grad()
        (logits.square().sum() + deltas.sin().sum()).backward()
        gradients = [x.grad for x in (*features.values(), *rpn.parameters())]
        results.append([logits.detach(), deltas.detach(), *gradients])
    assert len(results[0][0]) == 41
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-10)


def test_no_chosen_anchors_give_zero_gradients() -> None:
    rpn, features = make(), levels()
    none = torch.zeros(0, dtype=torch.int64)
    logits, deltas = rpn.at(features, [none, none])
    (logits.sum() + deltas.sum()).backward()
    assert logits.shape == (0,) and deltas.shape == (0, 4)
    assert all(p.grad is not None and not p.grad.any() for p in rpn.parameters())
