"""`register()`: errors for missing and old hosts; hosts are not imported before the call."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_backbone
from resnet_backbone import register
from resnet_backbone.hosts import HOSTS

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {host.package for host in HOSTS.values()} | {"mmdet", "mmcv"}


def test_error_for_an_unknown_host_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no host is called 'tim'.*timm"):
        register("tim")


def registration_error(host: str, *paths: Path) -> str:
    """The ImportError message of `register(host)` in a fresh interpreter with `paths` first on sys.path."""
    script = (
        f"import resnet_backbone\ntry: resnet_backbone.register({host!r})\nexcept ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="detectron2 is installed")
def test_error_for_a_missing_host_names_the_version_and_the_install_command() -> None:
    message = registration_error("detectron2")
    assert "detectron2 is not installed, 0.6 or newer is required: " + HOSTS["detectron2"].install in message


@pytest.mark.parametrize("host", list(HOSTS))
def test_error_for_an_old_host_names_both_versions_and_the_install_command(host: str, tmp_path: Path) -> None:
    """A fake distribution of version 0.3.9 takes precedence over the installed one."""
    required = HOSTS[host]
    (tmp_path / required.package).mkdir()
    (tmp_path / required.package / "__init__.py").touch()
    folder = tmp_path / f"{required.distribution.replace('-', '_')}-0.3.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {required.distribution}\nVersion: 0.3.9\n")
    message = registration_error(host, tmp_path)
    assert (
        f"{required.distribution} 0.3.9 is too old, {required.at_least} or newer is required: {required.install}"
        in message
    )


def test_importing_the_package_imports_no_host() -> None:
    """In a fresh interpreter; nor do the modules in `resnet_backbone.hosts` import a host."""
    modules = ", ".join(f"resnet_backbone.hosts.{host}" for host in HOSTS)
    script = f"import sys, resnet_backbone, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" in result.stdout.split() and not set(result.stdout.split()) & PACKAGES


def test_extras_in_pyproject_require_the_same_versions_as_register() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, host in HOSTS.items():
        if name in ("torchvision", "detectron2"):  # torchvision is a dependency, detectron2 is not on PyPI
            continue
        assert f'\n{name} = ["{host.distribution}>={host.at_least}"' in text, name
    assert 'torchvision>=0.21"' in text and HOSTS["torchvision"].at_least == "0.21"


def test_register_is_public() -> None:
    assert resnet_backbone.register is register and "register" in resnet_backbone.__all__
