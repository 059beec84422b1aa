"""Which device and which precision a job runs in."""

from __future__ import annotations

import torch

from resnet_backbone.errors import InvalidValue


def pick_device(setting: str) -> str:
    """Choose the device.

    Args:
        setting: "auto" (CUDA where there is one), "cpu" or "cuda".

    Returns:
        "cpu" or "cuda".

    Raises:
        InvalidValue: "cuda" without a CUDA device.
    """
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if setting == "cuda" and not torch.cuda.is_available():
        raise InvalidValue("train.device=cuda, but torch sees no CUDA device: set train.device=cpu or auto")
    return setting


def pick_precision(setting: str, device: str) -> str:
    """Choose the precision.

    Args:
        setting: "auto" (bf16 where the hardware multiplies it, otherwise fp32), "fp32", "bf16" or "fp16".
        device: what `pick_device` returned.

    Returns:
        "fp32", "bf16" or "fp16".

    Raises:
        InvalidValue: "fp16" on a CPU.
    """
    if setting == "fp16" and device == "cpu":
        raise InvalidValue("train.precision=fp16 needs a GPU: on a CPU use bf16 or fp32")
    if setting != "auto":
        return setting
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # older versions of torch have no get_capabilities: fp32 is always right
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
