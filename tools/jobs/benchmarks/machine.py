"""The machine that a benchmark ran on, and the versions of everything that it measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from tools.devices import processor_has

PACKAGES = (
    "torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "albumentations", "pycocotools", "hotcoco",
    "faster-coco-eval", "detectron2", "mayaku", "openvino",
)  # fmt: skip


def describe(device: str) -> dict[str, Any]:
    """Describe the machine.

    Args:
        device: "cpu" or "cuda".

    Returns:
        processor, cores, threads of torch, memory, capabilities, GPU and versions; None for a package that is not
        installed.
    """
    import psutil  # not at the top: `--help` does not need it

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "amx_bf16": processor_has("amx_bf16"),
        "avx512_bf16": processor_has("avx512_bf16"),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts | {"versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}}


def version(package: str) -> str | None:
    """The version of a package; None if it is not installed.

    Args:
        package: its name.

    Returns:
        The version.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The name of the processor; platform.processor() has none on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
