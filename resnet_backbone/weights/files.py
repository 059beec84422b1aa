"""Writing weights: whole files or none, with what travels beside the tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..backbone import ResNetBody
from .certificate import METADATA, body_certificate


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write beside, flush to the disk, rename: at any moment `path` is a whole file, the old or the new one.

    A `.safetensors` file takes the tensors under "model" and, as JSON in its header, "meta"; a torch file everything.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with open(draft, "wb") as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            tensors = {key: value.contiguous() for key, value in content["model"].items()}
            file.write(save(tensors, {METADATA: json.dumps(content["meta"])} if "meta" in content else None))
        else:
            torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def save_weights(body: ResNetBody, path: str | PathLike[str], *, source: str) -> None:
    """Write a backbone's or classifier's certified file, `.pth` or `.safetensors` by its name.

    source: whose weights these are, a source's name or in words.
    """
    meta = body_certificate(body, source=source)
    save_atomically({"model": body.state_dict(), "meta": meta}, Path(path))
