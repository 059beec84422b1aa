"""A command with the pretend device in place of CUDA: python -m tests.tools.pretend.command MODULE ARGUMENT...

`train.device=cpu` is the pretend device here. The waits of every training step are printed at the end as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from accelerate.state import PartialState

from tests.tools.pretend.device import DEVICE, waits
from tools import cli
from tools.engine import train as engine

make_on_cpu = engine.make_accelerator
take_step = engine.Trainer._take_step
counts: list[dict[str, int]] = []


def make_accelerator(config: Any) -> Any:
    accelerator = make_on_cpu(config)
    PartialState().device = accelerator.state.device = DEVICE
    return accelerator


def counted_step(trainer: engine.Trainer, *arguments: Any) -> None:
    with waits() as counted:
        take_step(trainer, *arguments)
    counts.append({f"{what} at {line}": number for (what, line), number in counted.items()})


if __name__ == "__main__":
    engine.make_accelerator = make_accelerator
    engine.Trainer._take_step = counted_step  # type: ignore[method-assign]
    command = importlib.import_module(sys.argv[1])
    sys.argv = sys.argv[1:]
    try:
        cli.run(command.main)
    finally:
        print("\n" + json.dumps({"waits": counts}))
