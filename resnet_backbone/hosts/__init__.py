"""One backbone in everybody's detector: `register(host)` makes ours one of the host's own.

One file a host. None of them imports its host when it is imported: only inside the functions that meet it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass

from ..errors import InvalidValue, MissingPackage, did_you_mean


@dataclass(frozen=True)
class Host:
    """package: what is imported; distribution: what is installed; at_least: the oldest version that was tested;
    install: the command that mends a missing or too old one."""

    package: str
    distribution: str
    at_least: str
    install: str


# mmdetection's registry is mmengine's: what registers there is found by mmdet, mmseg and mmpretrain
HOSTS: dict[str, Host] = {
    "torchvision": Host("torchvision", "torchvision", "0.21", 'pip install "torchvision>=0.21"'),
    "timm": Host("timm", "timm", "1.0.9", 'pip install "timm>=1.0.9"'),
    "detectron2": Host(
        "detectron2",
        "detectron2",
        "0.6",
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2",
    ),
    "mmdet": Host("mmengine", "mmengine", "0.10.7", 'pip install "mmengine>=0.10.7"'),
    "transformers": Host("transformers", "transformers", "4.46", 'pip install "transformers>=4.46"'),
    "smp": Host(
        "segmentation_models_pytorch",
        "segmentation-models-pytorch",
        "0.4",
        'pip install "segmentation-models-pytorch>=0.4"',
    ),
}


def register(host: str) -> None:
    """Make our backbone known to a host (a key of `HOSTS`), under the names that `docs/hosts.md` lists. Registering
    again changes nothing.

    Raises ValueError for an unknown host, ImportError where it is missing or too old; both say what mends it.
    """
    require(host)
    importlib.import_module(f".{host}", __name__).register()


def require(host: str) -> None:
    """Raises ValueError for an unknown host; ImportError with the version found, the one wanted, and the command."""
    if host not in HOSTS:
        raise InvalidValue(f"no host is called {host!r}: {did_you_mean(host, HOSTS)}")
    wanted = HOSTS[host]
    if importlib.util.find_spec(wanted.package) is None:
        raise MissingPackage(
            f"{wanted.distribution} is not installed, {wanted.at_least} or newer is wanted: {wanted.install}"
        )
    found = importlib.metadata.version(wanted.distribution)
    if _numbers(found) < _numbers(wanted.at_least):
        raise MissingPackage(
            f"{wanted.distribution} {found} is too old, {wanted.at_least} or newer is wanted: {wanted.install}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
