"""Published ImageNet weights by name, and hashes of published files.

Source: torchvision's model pages (IMAGENET1K_V1: the original training recipe; IMAGENET1K_V2: the newer one).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch

from ..errors import DownloadFailed, InvalidValue, did_you_mean

_ADDRESS = "https://download.pytorch.org/models/"
PUBLISHED: dict[str, dict[str, str]] = {
    "imagenet1k_v1": {
        "resnet18": "resnet18-f37072fd.pth",
        "resnet34": "resnet34-b627a593.pth",
        "resnet50": "resnet50-0676ba61.pth",
        "resnet101": "resnet101-63fe2227.pth",
        "resnet152": "resnet152-394f9c45.pth",
    },
    "imagenet1k_v2": {
        "resnet50": "resnet50-11ad3fa6.pth",
        "resnet101": "resnet101-cd907fc2.pth",
        "resnet152": "resnet152-f82ba261.pth",
    },
}

# First eight digits of the SHA-256 of published files, which their names contain: ImageNet nets of torchvision and timm
# (those with ImageNet's mean and std), Faster and Mask R-CNNs of torchvision and mmdetection, and the backbones of
# mmdetection's caffe style. Two of mmdetection's files are left out, because its configurations contradict one another
# about their channel order.
_PREFIXES = {
    "torchvision": "f37072fd b627a593 0676ba61 11ad3fa6 63fe2227 cd907fc2 394f9c45 f82ba261 dd69338a 73cbd019 19c8e357",
    "torchvision_coco_v1": "258fb6c6 bf2d0c1e",
    "timm": (
        "d63eafa0 b61bd467 40c531c8 d92f0530 118f1556 0757602b 46f8f793 82d47d71 a20cabb6 43635321 c6d82d59 14fe96d1 "
        "001a1197 a2746f79 59cae1ef 532a802a 1ba180c1 5ba5e060 d01e05b2 f39db8af a26f946b 6c502b37 85ebb6e5 86acaeed "
        "08389792 16a12f1b 0ebe02e2 36d3f2aa cdcb52a9 6edb36c7 1db14157 3b017079 dc400468 2eee8a7a b4c6978f 134d4688 "
        "c1edb0dd 48a79e06 f8dcfcaf 464e36ba e20cff14 a3adc64d 403fdfad 818a1b1b 2803ffab 0f9c8644 5cac0439 bd354e12"
    ),
    "mmdetection": (
        "047c8118 d4dc1471 a5d8aa15 e10bd31c f513f705 1d2dac9c 4d4d2ca8 d4b0c5d6 59faf7e4 3e542a40 21b550bb 1efe0ed5 "
        "14b391c7 5675c317"
    ),
    "mmdetection_caffe": (
        "5891d200 6cc46731 3f885b85 db276fed 531f0f43 b33d21b9 34a53b2c c5925ee5 10b2de58 1f77628b 30042637 b269e9dd "
        "0ebd1859 a75c98ce 42aa3d00 805e06c1"
    ),
}
HASHES: dict[str, str] = {prefix: source for source, prefixes in _PREFIXES.items() for prefix in prefixes.split()}


def address(name: str, net: str) -> str:
    """The URL of published weights.

    Args:
        name: a key of `PUBLISHED`.
        net: a key of `PUBLISHED[name]`.

    Returns:
        The URL.
    """
    return _ADDRESS + PUBLISHED[name][net]


def published_file(name: str, net: str, *, cache: Path | None = None) -> Path:
    """The local file of published weights; downloaded at the first call, and checked against the hash in its name.

    Args:
        name: "imagenet1k_v1" or "imagenet1k_v2".
        net: a row of `RESNETS` ("resnet50").
        cache: the folder of the file; by default torch.hub's `checkpoints`, where torchvision keeps its files too.

    Returns:
        The path of the file.

    Raises:
        InvalidValue: an unknown name, a net without these weights, or a file with another hash.
        DownloadFailed: the file is not in the cache and cannot be downloaded.
    """
    if name not in PUBLISHED:
        raise InvalidValue(f"{name!r} is neither a file nor published weights: {did_you_mean(name, PUBLISHED)}")
    if net not in PUBLISHED[name]:
        raise InvalidValue(
            f"{name} is not published for {net}, only for {', '.join(PUBLISHED[name])}: give the path of a file for it"
        )
    file_name = PUBLISHED[name][net]
    path = (cache or Path(torch.hub.get_dir()) / "checkpoints") / file_name
    if not path.is_file():
        _download(address(name, net), path)
    check_hash(path)
    return path


def check_hash(path: Path) -> None:
    """Compare the hash of a file with the one that its name contains; a name without a hash passes.

    Args:
        path: the file. `name-0123abcd.pth` contains the first eight digits of a SHA-256, detectron2's
            `model_final_0123ab.pkl` the first six of an MD5.

    Raises:
        InvalidValue: the hashes differ.
    """
    if published := re.search(r"-([0-9a-f]{8})\.\w+$", path.name):
        kind, digest = "SHA-256", file_sha256(path)
    elif published := re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", path.name):
        kind, digest = "MD5", hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    else:
        return
    if not digest.startswith(published[1]):
        raise InvalidValue(
            f"{path} has {kind} {digest[:8]}..., its name says {published[1]}: the file is damaged or another one; "
            "delete it and download it again"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(address: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(path), progress=False)
    except (URLError, OSError) as error:
        raise DownloadFailed(
            f"could not download {address} ({error}). Without a network, copy the file to {path} and run again, or "
            "give weights= the path of a file that you have"
        ) from error
