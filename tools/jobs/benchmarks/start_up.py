"""Row of starting: importing the backbone, and the help of the largest command, in new processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .contenders import Comparison, Contender
from .setting import Setting

ROOT = Path(__file__).resolve().parents[3]
BEYOND_TORCH = "import time, torch; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def start_up(setting: Setting) -> Iterator[Comparison]:
    """Seconds to import packages beyond torch, and to print the help of train_det.py.

    Args:
        setting: how to run.

    Yields:
        Two comparisons.
    """
    modules = {
        "import torchvision": "torchvision",
        "import resnet_backbone": "resnet_backbone",
        "import heads": "heads",
    }
    yield Comparison(
        "start_up",
        "import in a new process that has torch already",
        [
            Contender(name, lambda module=module: _import(module), ours=module != "torchvision")  # type: ignore[misc]
            for name, module in modules.items()
        ],
        reference="import torchvision",
    )
    yield Comparison(
        "start_up",
        "a new process from its start to its end",
        [
            Contender("python -c 'import torch'", lambda: _process("-c", "import torch")),
            Contender("train_det.py --help", lambda: _process("tools/train_det.py", "--help"), ours=True),
        ],
    )


def _import(module: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", BEYOND_TORCH.format(module)], cwd=ROOT, text=True))


def _process(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
