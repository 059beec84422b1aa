"""The mask head against torchvision's: layers, loss, masks of detections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

from heads import BitMasks, Conventions, Detections, RoiMasks, Targets
from heads.mask_head import MaskHead, MaskHeadSpec
from heads.matching import SampledRegions

K = 3


def make(**spec: int) -> MaskHead:
    return MaskHead(6, K, MaskHeadSpec(**{"channels": 8, **spec}), Conventions())


def random_boxes(count: int) -> Tensor:
    corner = torch.rand(count, 2) * 30
    return torch.cat([corner, corner + torch.rand(count, 2) * 25 + 5], dim=1)


def some_targets(count: int) -> Targets:
    coarse = torch.rand(count, 1, 8, 8)
    bits = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")[:, 0] > 0.5
    return Targets(random_boxes(count), torch.randint(0, K, (count,)), BitMasks(bits))


def positives(truth: Targets, count: int) -> SampledRegions:
    index = torch.randint(0, len(truth), (count,))
    return SampledRegions(random_boxes(count), truth.labels[index], index)


@pytest.mark.parametrize("convs", [1, 4])
def test_layers_are_torchvisions(convs: int) -> None:
    ours, theirs = make(convs=convs), MaskRCNNHeads(6, [8] * convs, 1)
    predictor = MaskRCNNPredictor(8, 8, K)
    for block, conv in zip(theirs, ours.convs):
        block[0].load_state_dict(conv.state_dict())
    predictor.conv5_mask.load_state_dict(ours.upsample.state_dict())
    predictor.mask_fcn_logits.load_state_dict(ours.logits.state_dict())
    regions = torch.randn(5, 6, 14, 14)
    found = ours(regions)
    assert found.shape == (5, K, 28, 28)
    torch.testing.assert_close(found, predictor(theirs(regions)))


def test_the_loss_is_torchvisions_on_the_same_targets() -> None:
    truth = [some_targets(3), some_targets(2)]
    regions = [positives(truth[0], 6), positives(truth[1], 4)]
    logits = torch.randn(10, K, 28, 28)
    loss = make().losses(logits, regions, truth)["loss_mask"]
    goals = [t.masks[r.matched].crop_to(r.boxes, 28) for t, r in zip(truth, regions)]  # type: ignore[index]
    # through this box torchvision's RoIAlign reads a 28 x 28 bitmap pixel by pixel
    whole = torch.tensor([[-0.5, -0.5, 27.5, 27.5]])
    want = maskrcnn_loss(
        logits,
        [whole.repeat(len(g), 1) for g in goals],
        [g.to(torch.uint8) for g in goals],
        [r.labels for r in regions],
        [torch.arange(len(g)) for g in goals],
    )
    assert 0.2 < torch.cat(goals).float().mean() < 0.8
    torch.testing.assert_close(loss, want)


def test_only_the_mask_of_the_true_class_learns() -> None:
    truth = some_targets(2)
    regions = SampledRegions(truth.boxes, truth.labels, torch.arange(2))
    logits = torch.randn(2, K, 28, 28, requires_grad=True)
    make().losses(logits, [regions], [truth])["loss_mask"].backward()
    learning = logits.grad.abs().sum((2, 3)) > 0  # type: ignore[union-attr]
    assert torch.equal(learning, torch.nn.functional.one_hot(truth.labels, K).bool())


def test_a_perfect_prediction_costs_nothing() -> None:
    truth = some_targets(4)
    goals = truth.masks.crop_to(truth.boxes, 28)  # type: ignore[union-attr]
    logits = (goals.float() * 2 - 1)[:, None].expand(-1, K, -1, -1) * 50
    loss = make().losses(logits, [SampledRegions(truth.boxes, truth.labels, torch.arange(4))], [truth])["loss_mask"]
    assert loss < 1e-6


def test_nothing_to_learn_from_is_a_loss_of_zero_with_gradients() -> None:
    head, truth = make(), some_targets(0)
    nobody = SampledRegions(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    loss = head.losses(head(torch.zeros(0, 6, 14, 14)), [nobody], [truth])["loss_mask"]
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_targets_without_masks_are_refused() -> None:
    truth = Targets(random_boxes(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="this detector learns masks, these targets have none"):
        make().losses(
            torch.zeros(1, K, 28, 28), [SampledRegions(truth.boxes, truth.labels, torch.tensor([0]))], [truth]
        )


def test_a_detection_gets_the_mask_of_its_own_class() -> None:
    head, regions = make(), torch.randn(5, 6, 14, 14)
    torch.nn.init.normal_(head.logits.weight)
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1, 1])]
    detections = [Detections(random_boxes(len(x)), torch.rand(len(x)), x) for x in labels]
    found = head.detect(regions, detections)
    with torch.no_grad():
        want = maskrcnn_inference(head(regions), labels)
    for detection, probabilities in zip(found, want):
        assert isinstance(detection.masks, RoiMasks)
        torch.testing.assert_close(detection.masks.probabilities, probabilities[:, 0])
