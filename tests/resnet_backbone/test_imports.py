"""What an import brings along, asked of a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"timm", "detectron2", "mmdet", "mmengine", "mmcv", "transformers", "segmentation_models_pytorch"}
UNWANTED = HOSTS | {"torchvision", "PIL", "cv2", "scipy", "pycocotools", "safetensors", "yaml", "heads", "tools"}


def imported_by(code: str) -> set[str]:
    script = f"import sys; {code}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_backbone_needs_torch_alone() -> None:
    """Not even building a net and saying what it gives brings in more."""
    found = imported_by(
        "import resnet_backbone as r; r.build_backbone('resnet20_cifar', norm='bn', frozen_stages=0, out_levels=['c2'])"
    )
    assert "torch" in found and not found & UNWANTED


def test_the_heads_bring_in_no_image_reader_and_no_coco_tools_of_their_own() -> None:
    """Pillow comes with torchvision where it is installed; cv2, pycocotools and hosts stay out until they are met."""
    assert not imported_by("import heads") & (HOSTS | {"cv2", "scipy", "pycocotools", "safetensors", "tools"})
