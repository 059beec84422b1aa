"""The device and the precision that a job runs in."""

from __future__ import annotations

import ctypes
import sys

import torch

from resnet_backbone.errors import InvalidValue, did_you_mean

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def keep_freed_memory(*, largest_mib: int, kept_mib: int) -> None:
    """Let this process keep freed memory for its next tensors; on Linux with glibc, elsewhere nothing changes.

    By default, glibc returns large tensors to the system, which clears every page of the next ones: an eighth of the
    time of a detector on a CPU.

    Args:
        largest_mib: tensors up to this size are kept, in MiB, below 2048; glibc before 2.35 takes 32 at most.
        kept_mib: memory that is kept at most, in MiB, below 2048.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # of glibc's malloc.h
    if not mallopt(m_mmap_threshold, largest_mib * 2**20):
        mallopt(m_mmap_threshold, 32 * 2**20)
    mallopt(m_trim_threshold, kept_mib * 2**20)


def use_tf32(allowed: bool) -> None:
    """Set for this process whether CUDA rounds the factors of float32 products to TF32.

    torch's own default allows it in convolutions and not in matrix products.

    Args:
        allowed: whether it may, in both.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def pick_device(setting: str) -> str:
    """Choose the device.

    Args:
        setting: "auto" (CUDA if available), "cpu" or "cuda".

    Returns:
        "cpu" or "cuda".

    Raises:
        InvalidValue: an unknown setting, or "cuda" without a CUDA device.
    """
    if setting not in DEVICES:
        raise InvalidValue(f"device={setting} is unknown: {did_you_mean(setting, DEVICES)}")
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if setting == "cuda" and not torch.cuda.is_available():
        raise InvalidValue(
            "device=cuda, but torch sees no CUDA device: use cpu or auto (train.device in a configuration)"
        )
    return setting


def pick_precision(setting: str, device: str) -> str:
    """Choose the precision.

    Args:
        setting: "auto" (bf16 if the hardware multiplies in it, otherwise fp32), "fp32", "bf16" or "fp16".
        device: what `pick_device` returned.

    Returns:
        "fp32", "bf16" or "fp16".

    Raises:
        InvalidValue: an unknown setting, or "fp16" on a CPU.
    """
    if setting not in PRECISIONS:
        raise InvalidValue(f"precision={setting} is unknown: {did_you_mean(setting, PRECISIONS)}")
    if setting == "fp16" and device == "cpu":
        raise InvalidValue("precision=fp16 needs a GPU: on a CPU use bf16 or fp32 (train.precision in a configuration)")
    if setting != "auto":
        return setting
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if processor_has("amx_bf16") or processor_has("avx512_bf16") else "fp32"


def processor_has(capability: str) -> bool:
    """Whether the processor has a capability.

    Args:
        capability: a key of `torch.cpu.get_capabilities`, such as "amx_bf16".

    Returns:
        True if it has; False with a version of torch that cannot tell.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(capability))
