"""Our backbone in other frameworks: `register(host)` adds it to the registry of a framework, here called a host.

There is one module per host. A module imports its host inside functions only.
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
    """A supported framework.

    Attributes:
        package: the name that is imported.
        distribution: the name that is installed.
        at_least: the oldest version that was tested.
        install: the command that installs or updates it.
    """

    package: str
    distribution: str
    at_least: str
    install: str


# mmdet, mmseg and mmpretrain all build from mmengine's root registry, so mmengine alone is required
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
    """Add our backbone to the registry of a host, under the names that `docs/hosts.md` lists.

    A second call changes nothing.

    Args:
        host: a key of `HOSTS`.

    Raises:
        InvalidValue: an unknown host.
        MissingPackage: the host is not installed or too old; the message gives the command that installs it.
    """
    require(host)
    importlib.import_module(f".{host}", __name__).register()


def require(host: str) -> None:
    """Check that a host is installed, in a version that was tested or a newer one.

    Args:
        host: a key of `HOSTS`.

    Raises:
        InvalidValue: an unknown host.
        MissingPackage: the host is not installed or too old; the message gives the command that installs it.
    """
    if host not in HOSTS:
        raise InvalidValue(f"no host is called {host!r}: {did_you_mean(host, HOSTS)}")
    required = HOSTS[host]
    if importlib.util.find_spec(required.package) is None:
        raise MissingPackage(
            f"{required.distribution} is not installed, {required.at_least} or newer is required: {required.install}"
        )
    installed = importlib.metadata.version(required.distribution)
    if _numbers(installed) < _numbers(required.at_least):
        raise MissingPackage(
            f"{required.distribution} {installed} is too old, {required.at_least} or newer is required: "
            f"{required.install}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, without a local label such as "+cu128"."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])
