"""Which packages an import loads, tested in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"timm", "detectron2", "mmdet", "mmengine", "mmcv", "transformers", "segmentation_models_pytorch"}
UNWANTED = HOSTS | {"torchvision", "PIL", "cv2", "scipy", "pycocotools", "safetensors", "yaml", "heads", "tools"}


def imported_by(code: str) -> set[str]:
    """The top-level packages that are loaded after `code` ran in a fresh interpreter."""
    script = f"import sys; {code}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_building_a_backbone_imports_only_torch() -> None:
    """torchvision, Pillow, the host frameworks and our other packages are not imported."""
    packages = imported_by(
        "import resnet_backbone as r; r.build_backbone('resnet20_cifar', norm='bn', frozen_stages=0, out_levels=['c2'])"
    )
    assert "torch" in packages and not packages & UNWANTED


def test_importing_heads_does_not_load_opencv_coco_tools_or_host_frameworks() -> None:
    """Pillow is not checked: torchvision imports it where it is installed."""
    assert not imported_by("import heads") & (HOSTS | {"cv2", "scipy", "pycocotools", "safetensors", "tools"})
