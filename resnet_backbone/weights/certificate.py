"""Certificates: what a file that this project writes carries, so that a reader can prove that it is intact.

The metadata of a file (`meta`, plain values) names the source of the weights, their `Preprocess` and how to build the
net. A certificate adds a SHA-256 of every tensor and a fingerprint: the outputs of every stage for a generated image.
The hashes find a changed tensor. The fingerprint finds a changed setting (another stride, epsilon or channel order) and
names the stage where it shows first.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..plain import from_plain, to_plain
from ..preprocess import Preprocess
from .sources import WeightSource

T = TypeVar("T", bound=nn.Module)
FORMAT = 1
METADATA = "resnet_backbone"  # the entry of a safetensors header that holds `meta` as JSON
TOLERANCE = 1e-3  # of a stage's largest value; float32 on other machines differs by less than a hundredth of this
SAMPLES = 32
IMAGE_SIZE = (120, 160)  # height and width; no multiple of 32, so that padding takes part

Fingerprint = dict[str, list[float]]


class CertificateMismatch(UserError, ValueError):
    """A file does not match its certificate."""


def describe(preprocess: Preprocess, **facts: Any) -> dict[str, Any]:
    """Metadata of a file without a certificate, such as a checkpoint of a run.

    Args:
        preprocess: the pixel format of the weights.
        **facts: what else travels with the weights, as plain values: `kind` ("backbone", "classifier", "detector"),
            `source`, `project` (its conventions apply), `net` (how to build it), and what the kind needs.

    Returns:
        The `meta` of the file.
    """
    return {"format": FORMAT, **facts, "preprocess": to_plain(preprocess)}


def certify(meta: Mapping[str, Any], state: Mapping[str, Tensor], fingerprint: Fingerprint) -> dict[str, Any]:
    """Add a certificate to a file's metadata.

    Args:
        meta: what `describe` returned.
        state: the tensors of the file.
        fingerprint: the outputs of the stages.

    Returns:
        The metadata with the hashes of all tensors and the fingerprint.
    """
    return {**meta, "tensors": tensor_hashes(state), "fingerprint": fingerprint}


def certified_source(meta: Mapping[str, Any]) -> WeightSource:
    """What the weights of a file of this project were trained with, from its metadata."""
    net = meta["net"]
    return WeightSource(meta["project"], net["spec"]["stride_on"], preprocess_of(meta), net["norm_eps"])


def preprocess_of(meta: Mapping[str, Any]) -> Preprocess:
    """The pixel format in a file's metadata."""
    return from_plain(Preprocess, meta["preprocess"])


def tensor_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the type, shape and bytes of every tensor, by key."""
    return {key: _hash(value) for key, value in state.items()}


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    plain = tensor.detach().cpu().contiguous()
    if plain.numel():  # the bytes in place: Tensor.numpy() needs NumPy, which has no bfloat16
        digest.update((ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()))
    return digest.hexdigest()


def check_hashes(state: Mapping[str, Tensor], certified: Mapping[str, str], where: str) -> None:
    """Compare tensors with their certified hashes.

    Args:
        state: the tensors of the file.
        certified: key -> SHA-256, from the certificate.
        where: the name of the file, for the message.

    Raises:
        CertificateMismatch: a tensor was changed, added or removed; the message names it.
    """
    hashes = tensor_hashes(state)
    for key in dict.fromkeys([*certified, *hashes]):
        if key not in hashes:
            what = "is missing"
        elif key not in certified:
            what = "is not in the certificate"
        elif hashes[key] != certified[key]:
            what = "is not the tensor that was certified"
        else:
            continue
        raise CertificateMismatch(f"{where}: {key} {what}: the file was edited or damaged; make or copy it again")


def generated_pixels(preprocess: Preprocess) -> Tensor:
    """Make the image for which fingerprints are taken: bands, a gradient and a checkerboard, one in each channel.

    Args:
        preprocess: how the image is normalised and padded.

    Returns:
        (1, 3, H, W) float32.
    """
    height, width = IMAGE_SIZE
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [x * 7 + y * 3, y * 5 + (x // 16 % 2) * 90, (x // 8 + y // 8) % 2 * 160 + x]
    return preprocess.pad([preprocess.normalise((torch.stack(planes) % 256).to(torch.uint8))])


def inference_copy(model: T) -> T:
    """A copy of a model on the CPU, in float32 and in inference mode, for taking its fingerprint."""
    return copy.deepcopy(model).cpu().float().eval()


def sample_outputs(outputs: Mapping[str, Tensor]) -> Fingerprint:
    """Reduce the outputs of stages to a fingerprint.

    Args:
        outputs: stage -> tensor, in the order in which an image meets the stages.

    Returns:
        Stage -> root mean square and `SAMPLES` evenly spaced values.
    """
    fingerprint: Fingerprint = {}
    for stage, tensor in outputs.items():
        flat = tensor.detach().flatten().double()
        positions = torch.linspace(0, len(flat) - 1, SAMPLES).long()
        fingerprint[stage] = [float(flat.square().mean().sqrt()), *flat[positions].tolist()]
    return fingerprint


def check_fingerprint(fingerprint: Fingerprint, certified: Mapping[str, list[float]], where: str) -> None:
    """Compare a fingerprint with the certified one.

    Args:
        fingerprint: of the net that was built from the file.
        certified: stage -> values, from the certificate, in the order in which an image meets the stages.
        where: the name of the file, for the message.

    Raises:
        CertificateMismatch: the outputs differ; the message names the first stage.
    """
    for stage, values in certified.items():
        if stage not in fingerprint:
            raise CertificateMismatch(f"{where}: its certificate has a stage {stage!r} that this net lacks")
        expected = torch.tensor(values, dtype=torch.float64)
        actual = torch.tensor(fingerprint[stage], dtype=torch.float64)
        # the weights of a diverged run are finite, their outputs may not be: then the same values must be infinite
        finite = expected.isfinite()
        limit = TOLERANCE * float(expected[finite].abs().max()) if finite.any() else 0.0
        same = actual.shape == expected.shape and torch.equal(actual.isfinite(), finite)
        if same and bool(((actual - expected)[finite].abs() <= limit).all()):
            continue
        raise CertificateMismatch(
            f"{where}: {stage} is the first stage whose output differs from its certificate (off by "
            f"{float((actual - expected).abs().max()):.3g}, {limit:.3g} allowed): its stride, epsilon or preprocessing "
            "was changed after it was written, or this version computes something else"
        )
