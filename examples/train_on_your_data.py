"""Train a detector from Python: python examples/train_on_your_data.py CONFIG [A.B=C ...].

CONFIG names a recipe and your images; `A.B=C` overrides a setting, as `--set` does for tools/train_det.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.config.detection import load_config
from tools.jobs.detection import evaluate, train

if __name__ == "__main__":  # loader processes import this file
    config = load_config(sys.argv[1], sys.argv[2:])
    train(config, overwrite=True)
    scores = evaluate(config.out)
    print({kind: found.figures["AP50"] for kind, found in scores.kinds.items()})
