"""Copies from the host to a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

UNPINNED = ("cpu", "meta", "mps")  # devices that need or have no page-locked memory


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the memory of the host, without waiting for the copy.

    A copy from ordinary memory makes the host wait for everything that the GPU has still to do; page-locked memory is
    copied by the GPU itself.

    Args:
        tensor: on any device.
        device: where to.

    Returns:
        The copy; the tensor itself if it is there already.
    """
    if tensor.device.type == "cpu" and device.type not in UNPINNED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
