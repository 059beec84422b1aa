"""Write a trained detector for torchvision: python examples/to_torchvision.py RUN OUT.

RUN: the folder of a run of tools/train_det.py with a pyramid. OUT: a .pth file with the keys of torchvision's Faster
and Mask R-CNN and its order of classes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from heads import load_detector
from heads.keymaps import to_layout

run, out = sys.argv[1:]
detector, recipe = load_detector(run)
state = to_layout(detector.state_dict(), "torchvision", detector.background)
torch.save(state, out)
print(f"{out}: {len(state)} tensors, {len(detector.class_names)} classes and the background")
print("torchvision's transform needs:", detector.preprocess)
print("norms have an epsilon of", recipe.conventions.norm_eps)
