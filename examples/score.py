"""Score a detector with COCO-eval: python examples/score.py RUN.

RUN: the folder of a run of tools/train_det.py; its config.yaml names the validation images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.jobs.detection import evaluate

for kind, scores in evaluate(sys.argv[1]).kinds.items():
    print(kind, {name: value if value is None else round(value, 3) for name, value in scores.figures.items()})
    best = sorted(scores.by_category.items(), key=lambda item: -(item[1]["AP"] or 0))[:3]
    print("  best categories:", {name: round(figures["AP"] or 0, 3) for name, figures in best})
