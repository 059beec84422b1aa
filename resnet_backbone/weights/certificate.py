"""A weight certificate: what a file that we write carries so that a reader can tell that nothing was lost or mistaken.

Beside the tensors lies `meta`, plain values: whose weights they are, their `Preprocess`, where the stride sits, a
SHA-256 of every tensor, and a fingerprint: what the net answers, stage by stage, to a generated image. The hashes find
a changed tensor; the fingerprint finds a changed meaning (another stride, epsilon or channel order), and says where.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..preprocess import Preprocess
from ..specs import spec_to_dict

if TYPE_CHECKING:
    from ..backbone import ResNetBody

T = TypeVar("T", bound=nn.Module)
FORMAT = 1
METADATA = "resnet_backbone"  # the entry of a safetensors header that holds `meta` as JSON
TOLERANCE = 1e-3  # of a stage's largest value: other machines' float32 differs by less than a hundredth of this
SAMPLES = 32
IMAGE = (120, 160)  # height and width; no multiple of 32, so that padding takes part

Fingerprint = dict[str, list[float]]


class CertificateMismatch(ValueError):
    """A file does not hold what its certificate says."""


def tensor_hashes(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's type, shape and bytes."""
    return {key: _hash(value) for key, value in state.items()}


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    plain = tensor.detach().cpu().contiguous()
    if plain.numel():  # the bytes where they lie: Tensor.numpy() would need NumPy, and knows no bfloat16
        digest.update((ctypes.c_char * plain.nbytes).from_address(plain.data_ptr()))
    return digest.hexdigest()


def check_hashes(state: Mapping[str, Tensor], certified: Mapping[str, str], where: str) -> None:
    """Raises `CertificateMismatch` for a tensor that was edited, added or lost."""
    found = tensor_hashes(state)
    for key in dict.fromkeys([*certified, *found]):
        if key not in found:
            what = "is missing"
        elif key not in certified:
            what = "is not in the certificate"
        elif found[key] != certified[key]:
            what = "is not the tensor that was certified"
        else:
            continue
        raise CertificateMismatch(f"{where}: {key} {what}: the file was edited or damaged; make or copy it again")


def generated_pixels(preprocess: Preprocess) -> Tensor:
    """(1, 3, H, W) normalised and padded: bands, a gradient and a checkerboard that no two channels share."""
    height, width = IMAGE
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [x * 7 + y * 3, y * 5 + (x // 16 % 2) * 90, (x // 8 + y // 8) % 2 * 160 + x]
    return preprocess.pad([preprocess.normalise((torch.stack(planes) % 256).to(torch.uint8))])


def body_fingerprint(body: ResNetBody, preprocess: Preprocess) -> Fingerprint:
    """Of a net's body: the stem and every stage that is built."""
    with torch.inference_mode():
        return sampled(on_cpu(body).all_levels(generated_pixels(preprocess)))


def on_cpu(model: T) -> T:
    """A copy for inference, in float32: where fingerprints are taken."""
    return copy.deepcopy(model).cpu().float().eval()


def sampled(stages: Mapping[str, Tensor]) -> Fingerprint:
    """Of every stage its root mean square and evenly spread values."""
    prints: Fingerprint = {}
    for stage, tensor in stages.items():
        flat = tensor.detach().flatten().double()
        where = torch.linspace(0, len(flat) - 1, SAMPLES).long()
        prints[stage] = [float(flat.square().mean().sqrt()), *flat[where].tolist()]
    return prints


def check_fingerprint(found: Fingerprint, certified: Mapping[str, list[float]], where: str) -> None:
    """Raises `CertificateMismatch`, naming the first stage that differs; stages are in the order of the journey."""
    for stage, wanted in certified.items():
        if stage not in found:
            raise CertificateMismatch(f"{where}: its certificate has a stage {stage!r} that this net lacks")
        want, got = torch.tensor(wanted, dtype=torch.float64), torch.tensor(found[stage], dtype=torch.float64)
        # weights of a run that blew up are finite, what they answer may not be: the same values must be
        finite = want.isfinite()
        limit = TOLERANCE * float(want[finite].abs().max()) if finite.any() else 0.0
        same = got.shape == want.shape and torch.equal(got.isfinite(), finite)
        if same and bool(((got - want)[finite].abs() <= limit).all()):
            continue
        raise CertificateMismatch(
            f"{where}: {stage} is the first stage that does not answer as its certificate says (off by "
            f"{float((got - want).abs().max()):.3g}, {limit:.3g} allowed): its stride, epsilon or preprocessing was "
            "changed after it was written, or this version computes something else"
        )


def net_facts(body: ResNetBody) -> dict[str, Any]:
    """How to build this body again, as plain values."""
    levels = [level for level in body.built_levels() if level != "c1"]
    choices = {"norm": body.norm, "norm_eps": body.norm_eps, "frozen_stages": body.frozen_stages}
    return {"spec": spec_to_dict(body.spec), "out_levels": levels, **choices}


def certificate(
    state: Mapping[str, Tensor], fingerprint: Fingerprint, preprocess: Preprocess, **facts: Any
) -> dict[str, Any]:
    """The `meta` of a file. facts: what else travels with these weights, as plain values: `kind` ("backbone",
    "classifier", "detector"), `source`, `project` (whose conventions), `net` (`net_facts`), and what the kind needs."""
    return {
        "format": FORMAT,
        **facts,
        "preprocess": dict(vars(preprocess)),
        "tensors": tensor_hashes(state),
        "fingerprint": fingerprint,
    }


def body_certificate(
    body: ResNetBody, *, source: str, project: str = "detectron2", kind: str = "backbone", **facts: Any
) -> dict[str, Any]:
    """The `meta` of a backbone's or classifier's file; source: whose weights these are, in words or a source's name;
    facts: what else travels with them."""
    prints, net = body_fingerprint(body, body.preprocess), net_facts(body)
    state, facts = body.state_dict(), {"source": source, "project": project, "net": net, **facts}
    return certificate(state, prints, body.preprocess, kind=kind, **facts)


def preprocess_from(meta: Mapping[str, Any]) -> Preprocess:
    """The record in a file's `meta`, also after a way through JSON."""
    values = dict(meta["preprocess"])
    return Preprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
