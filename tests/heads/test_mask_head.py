"""The mask head equals torchvision's in layers, loss and masks of detections."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, maskrcnn_loss

from heads import BitMasks, Conventions, Detections, RoiMasks, Targets
from heads.mask_head import MaskHead, MaskHeadSpec, mask_loss
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


def positives(target: Targets, count: int) -> SampledRegions:
    """Regions that are matched at random with boxes of the target."""
    index = torch.randint(0, len(target), (count,))
    return SampledRegions(random_boxes(count), target.labels[index], index, count)


def of_classes(logits: Tensor, regions: Sequence[SampledRegions]) -> Tensor:
    """From (S, K, M, M), the masks of the regions' classes."""
    labels = torch.cat([r.labels for r in regions])
    return logits[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("convs", [1, 4])
def test_layers_equal_torchvision(convs: int) -> None:
    ours, reference = make(convs=convs), MaskRCNNHeads(6, [8] * convs, 1)
    predictor = MaskRCNNPredictor(8, 8, K)
    for block, conv in zip(reference, ours.convs):
        block[0].load_state_dict(conv.state_dict())
    predictor.conv5_mask.load_state_dict(ours.upsample.state_dict())
    predictor.mask_fcn_logits.load_state_dict(ours.logits.state_dict())
    regions = torch.randn(5, 6, 14, 14)
    logits = ours(regions)
    assert logits.shape == (5, K, 28, 28)
    torch.testing.assert_close(logits, predictor(reference(regions)))


def test_loss_equals_torchvision_on_the_same_targets() -> None:
    targets = [some_targets(3), some_targets(2)]
    regions = [positives(targets[0], 6), positives(targets[1], 4)]
    logits = torch.randn(10, K, 28, 28)
    loss = mask_loss(of_classes(logits, regions), regions, targets, make().conventions)
    mask_targets = [t.masks[r.matched].crop_to(r.boxes, 28) for t, r in zip(targets, regions)]  # type: ignore[index]
    # with this box, torchvision's RoIAlign returns a 28 x 28 bitmap unchanged
    whole_bitmap = torch.tensor([[-0.5, -0.5, 27.5, 27.5]])
    expected = maskrcnn_loss(
        logits,
        [whole_bitmap.repeat(len(g), 1) for g in mask_targets],
        [g.to(torch.uint8) for g in mask_targets],
        [r.labels for r in regions],
        [torch.arange(len(g)) for g in mask_targets],
    )
    assert 0.2 < torch.cat(mask_targets).float().mean() < 0.8
    torch.testing.assert_close(loss, expected)


def test_the_loss_and_its_gradients_are_those_of_the_masks_of_all_classes() -> None:
    head, target = make(), some_targets(3)
    torch.nn.init.normal_(head.logits.weight)
    sampled, regions = positives(target, 7), torch.randn(7, 6, 14, 14)
    results = []
    for logits in (head.class_logits(regions, sampled.labels), of_classes(head(regions), [sampled])):
        head.zero_grad()
        loss = mask_loss(logits, [sampled], [target], head.conventions)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in head.parameters())])
    for one, all_classes in zip(*results, strict=True):
        torch.testing.assert_close(one, all_classes)
    head.zero_grad()
    head.losses(regions, [sampled], [target])["loss_mask"].backward()
    has_gradient = head.logits.weight.grad.abs().sum((1, 2, 3)) > 0  # type: ignore[union-attr]
    assert torch.equal(has_gradient.nonzero().flatten(), sampled.labels.unique())


def test_loss_of_a_perfect_prediction_is_zero() -> None:
    target = some_targets(4)
    mask_targets = target.masks.crop_to(target.boxes, 28)  # type: ignore[union-attr]
    logits = (mask_targets.float() * 2 - 1)[:, None].expand(-1, K, -1, -1) * 50
    regions = SampledRegions(target.boxes, target.labels, torch.arange(4), 4)
    assert mask_loss(of_classes(logits, [regions]), [regions], [target], make().conventions) < 1e-6


def test_loss_without_regions_is_zero_and_gives_zero_gradients() -> None:
    head, target = make(), some_targets(0)
    no_index = torch.zeros(0, dtype=torch.int64)
    no_regions = SampledRegions(torch.zeros(0, 4), no_index, no_index, 0)
    loss = head.losses(torch.zeros(0, 6, 14, 14), [no_regions], [target])["loss_mask"]
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_targets_without_masks_are_refused() -> None:
    target = Targets(random_boxes(1), torch.tensor([0]))
    regions = SampledRegions(target.boxes, target.labels, torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="this detector learns masks, these targets have none"):
        make().losses(torch.zeros(1, 6, 14, 14), [regions], [target])


def test_detections_get_the_masks_of_their_classes_like_torchvision() -> None:
    head, regions = make(), torch.randn(5, 6, 14, 14)
    torch.nn.init.normal_(head.logits.weight)
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1, 1])]
    detections = [Detections(random_boxes(len(x)), torch.rand(len(x)), x) for x in labels]
    with_masks = head.detect(regions, detections)
    with torch.no_grad():
        expected = maskrcnn_inference(head(regions), labels)
    for detection, probabilities in zip(with_masks, expected):
        assert isinstance(detection.masks, RoiMasks)
        torch.testing.assert_close(detection.masks.probabilities, probabilities[:, 0])
