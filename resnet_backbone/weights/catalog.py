"""Published ImageNet weights by name: address, and the hash prefix that the file's name publishes.

Source: torchvision's model pages (IMAGENET1K_V1: the classic recipe; IMAGENET1K_V2: its newer one).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import torch

from ..suggest import unknown

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


def published_file(name: str, net: str, *, cache: Path | None = None) -> Path:
    """The local file of published weights, downloaded once, its SHA-256 checked against its name.

    cache: folder to keep it in; default torch.hub's `checkpoints`, so files that torchvision fetched are found.
    Raises ValueError for unknown names or a file with the wrong hash, ConnectionError where it cannot be downloaded.
    """
    if name not in PUBLISHED:
        raise ValueError(f"{name!r} is neither a file nor published weights: {unknown(name, PUBLISHED)}")
    if net not in PUBLISHED[name]:
        raise ValueError(f"{name} is not published for {net}, only for {', '.join(PUBLISHED[name])}")
    file_name = PUBLISHED[name][net]
    path = (cache or Path(torch.hub.get_dir()) / "checkpoints") / file_name
    if not path.is_file():
        _download(_ADDRESS + file_name, path)
    check_hash(path)
    return path


def check_hash(path: Path) -> None:
    """Raises ValueError where the file's SHA-256 does not begin with the prefix in its name (`name-0123abcd.pth`)."""
    published = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    if published is None:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(published[1]):
        raise ValueError(
            f"{path} has SHA-256 {digest[:8]}..., its name says {published[1]}: the file is damaged or another one; "
            "delete it and download it again"
        )


def _download(address: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(path), progress=False)
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"could not download {address} ({error}). Without a network: fetch the file elsewhere, put it at {path}, "
            "and run again; or give weights= the path of a file that you have"
        ) from error
