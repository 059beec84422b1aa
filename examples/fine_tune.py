"""Fine-tune a detector on other classes, in a training loop of your own: python examples/fine_tune.py RUN.

RUN: the folder of a run of tools/train_det.py. The images and boxes are made up here.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from heads import ImageBatch, Targets, fine_tune, load_detector
from heads.build import assemble, empty_backbone

trained, recipe = load_detector(sys.argv[1])
recipe = replace(recipe, mask=None)  # boxes only
detector = assemble(recipe, 2, empty_backbone(recipe))
weights = {key: value for key, value in trained.state_dict().items() if not key.startswith("mask_head.")}
report = fine_tune(detector, weights)
print("kept at initial values:", ", ".join(report.kept_initial))

detector.preprocess = trained.preprocess
optimiser = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)]
batch = ImageBatch.from_images(images, detector.preprocess)
boxes = torch.tensor([[10.0, 10.0, 60.0, 50.0], [40.0, 30.0, 110.0, 90.0]])
targets = [Targets(boxes, torch.tensor([0, 1])), Targets(boxes[:0], torch.zeros(0, dtype=torch.int64))]
detector.train()
for step in range(3):
    losses = detector(batch, targets)
    total = torch.stack(list(losses.values())).sum()
    optimiser.zero_grad()
    total.backward()
    optimiser.step()
    print(f"step {step}: loss {total.item():.3f}")
