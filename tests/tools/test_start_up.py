"""Commands start without the packages that take long to import; `--help` needs none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(p.stem for p in (ROOT / "tools").glob("*.py") if "cli.run(main)" in p.read_text(encoding="utf-8"))
SLOW = (
    "accelerate", "albumentations", "hotcoco", "matplotlib", "scipy", "sympy", "tensorboard", "torch._dynamo",
    "torchvision", "triton",
)  # fmt: skip


def imported_by(*modules: str) -> set[str]:
    """What a new process has imported, beyond torch, after it imported these modules."""
    code = (
        f"import sys, torch; before = {{*sys.modules}}; import {', '.join(modules)}; print(*{{*sys.modules}} - before)"
    )
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


def test_no_command_imports_a_slow_package_at_its_start() -> None:
    assert {"train_det", "eval_det", "doctor", "analyse"} < set(COMMANDS)
    imported = imported_by(*(f"tools.{name}" for name in COMMANDS))
    assert not imported & set(SLOW) and "heads.detector" in imported


def test_the_backbone_imports_only_torch_and_the_standard_library() -> None:
    packages = {name.partition(".")[0] for name in imported_by("resnet_backbone")}
    assert packages - set(sys.stdlib_module_names) == {"resnet_backbone"}
