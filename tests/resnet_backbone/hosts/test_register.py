"""register(): what it says where a host is missing or too old, and that nothing comes in before it is called."""

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


def test_an_unknown_host() -> None:
    with pytest.raises(ValueError, match="no host is called 'tim'.*timm"):
        register("tim")


def asked(host: str, *paths: Path) -> str:
    """What register() says in a fresh interpreter that finds these folders first."""
    script = (
        f"import resnet_backbone\ntry: resnet_backbone.register({host!r})\nexcept ImportError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="detectron2 is installed")
def test_a_host_that_is_missing() -> None:
    said = asked("detectron2")
    assert "detectron2 is not installed, 0.6 or newer is required: " + HOSTS["detectron2"].install in said


@pytest.mark.parametrize("host", list(HOSTS))
def test_a_host_that_is_too_old(host: str, tmp_path: Path) -> None:
    """An installed distribution of an old version, before whatever else is there."""
    wanted = HOSTS[host]
    (tmp_path / wanted.package).mkdir()
    (tmp_path / wanted.package / "__init__.py").touch()
    folder = tmp_path / f"{wanted.distribution.replace('-', '_')}-0.3.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wanted.distribution}\nVersion: 0.3.9\n")
    said = asked(host, tmp_path)
    assert f"{wanted.distribution} 0.3.9 is too old, {wanted.at_least} or newer is required: {wanted.install}" in said


def test_no_host_comes_in_unasked() -> None:
    """Not even importing the hosts' files brings one in; in a fresh interpreter."""
    modules = ", ".join(f"resnet_backbone.hosts.{host}" for host in HOSTS)
    script = f"import sys, resnet_backbone, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" in result.stdout.split() and not set(result.stdout.split()) & PACKAGES


def test_the_extras_ask_for_the_versions_that_register_asks_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, host in HOSTS.items():
        if name in ("torchvision", "detectron2"):  # a dependency; and one that no index has
            continue
        assert f'\n{name} = ["{host.distribution}>={host.at_least}"' in text, name
    assert 'torchvision>=0.21"' in text and HOSTS["torchvision"].at_least == "0.21"


def test_it_is_public() -> None:
    assert resnet_backbone.register is register and "register" in resnet_backbone.__all__
