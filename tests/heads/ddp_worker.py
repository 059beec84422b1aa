"""One process of test_two_processes.py: python ddp_worker.py RANK WORLD_SIZE FOLDER.

FOLDER/case.pt holds a state dict, pixels and a list of cases (the targets of every image). For each case, the process
takes one SGD step from the state under DistributedDataParallel (gloo), on the image of its rank. Rank 0 writes the
resulting state dicts to FOLDER/after.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from heads import DETECTORS, RCNN, DetectorRecipe, ImageBatch, ImageSize, PolygonMasks, Targets, build_detector
from heads.mask_head import MaskHeadSpec
from heads.masks import polygons_from
from resnet_backbone import ResNetBackbone, ResNetSpec
from resnet_backbone.blocks import BasicBlock

HEIGHT, WIDTH = 64, 96


def recipe() -> DetectorRecipe:
    """A recipe that samples all anchors and regions, so that a step involves no random choice."""
    base = DETECTORS["mask_rcnn_r18_fpn"]
    return replace(
        base,
        pyramid_channels=16,
        rpn=replace(base.rpn, samples_per_image=10**6, keep_after_nms_train=60),
        box=replace(base.box, hidden=32, samples_per_image=10**6),
        mask=MaskHeadSpec(channels=16),
    )


def make_target(boxes: list[list[float]], labels: list[int]) -> Targets:
    triangles = tuple(polygons_from([[x1, y2, (x1 + x2) / 2, y1, x2, y2]]) for x1, y1, x2, y2 in boxes)
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Targets(corners, torch.tensor(labels, dtype=torch.int64), PolygonMasks(triangles))


def make_detector() -> RCNN:
    narrow = ResNetSpec(BasicBlock, depths=(1, 1, 1, 1), widths=(8, 16, 16, 32))
    # group norm: the statistics of batch norm would depend on which images share a batch
    backbone = ResNetBackbone(narrow, norm="gn")
    # float64: both orders of summation must select the same proposals
    return build_detector(recipe(), num_classes=3, backbone=backbone).double()


def step(detector: RCNN, model: nn.Module, pixels: Tensor, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """Take one SGD step and return the state dict after it."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = model(ImageBatch(pixels, (ImageSize(HEIGHT, WIDTH),) * len(pixels)), targets)
    sum(losses.values()).backward()
    optimiser.step()
    return {key: value.clone() for key, value in detector.state_dict().items()}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    inputs = torch.load(folder / "case.pt", weights_only=True)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    after = []
    for case in inputs["cases"]:
        detector = make_detector()
        detector.load_state_dict(inputs["state"])
        model = DistributedDataParallel(detector)
        after.append(step(detector, model, inputs["pixels"][rank : rank + 1], [make_target(*case[rank])]))
    if rank == 0:
        torch.save(after, folder / "after.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
