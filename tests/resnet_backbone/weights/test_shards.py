"""Models in several files with an index, as transformers and huggingface_hub write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetForImageClassification

from resnet_backbone import ResNetClassifier, load_weights
from resnet_backbone.weights.read import read_file

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(params=[True, False], ids=["safetensors", "torch"])
def folder(request: pytest.FixtureRequest, narrow: ResNetClassifier, tmp_path: Path) -> Path:
    """A small net in several files of each format."""
    pattern = "model{suffix}.safetensors" if request.param else "pytorch_model{suffix}.bin"
    save_torch_state_dict(
        narrow.state_dict(),
        tmp_path,
        filename_pattern=pattern,
        max_shard_size="2KB",
        safe_serialization=request.param,
    )
    return tmp_path


def index_of(folder: Path) -> Path:
    return next(folder.glob("*.index.json"))


def edited_index(folder: Path, edit: Edit) -> Path:
    path = index_of(folder)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def test_transformers_shards_give_transformers_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], num_labels=5)
    theirs = ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="10MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    pixels = torch.randn(1, 3, 64, 64)
    for weights in (tmp_path, index_of(tmp_path)):
        ours = ResNetClassifier("resnet18", num_classes=5).eval()
        report = load_weights(ours, weights)
        assert "tensors joined from the files that model.safetensors.index.json lists" in report.notes[0]
        with torch.inference_mode():
            torch.testing.assert_close(ours(pixels), theirs(pixels).logits)


def test_shards_of_both_formats_hold_every_tensor(folder: Path, narrow: ResNetClassifier) -> None:
    assert len(list(folder.iterdir())) > 4
    content = read_file(index_of(folder))
    assert isinstance(content, dict) and content.keys() == narrow.state_dict().keys()
    fresh = ResNetClassifier(narrow.spec, num_classes=5)
    load_weights(fresh, folder, source="torchvision")
    assert all(torch.equal(value, narrow.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_a_missing_shard_is_named(folder: Path, narrow: ResNetClassifier) -> None:
    shard = next(path for path in sorted(folder.iterdir()) if "00002-of" in path.name)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of its \d+ files are missing, first {shard.name}"):
        load_weights(narrow, folder, source="torchvision")


def test_one_shard_alone_is_refused_with_the_index_to_give(folder: Path, narrow: ResNetClassifier) -> None:
    shard, index = next(folder.glob("*-00001-of-*")), index_of(folder)
    with pytest.raises(ValueError, match=rf"is one of \d+ files .*: give {index} or its folder"):
        load_weights(narrow, shard, source="torchvision")
    index.unlink()
    with pytest.raises(ValueError, match=f"its index {index.name} is not beside it"):
        load_weights(narrow, shard, source="torchvision")


def test_a_tensor_that_the_index_expects_elsewhere_is_named(folder: Path, narrow: ResNetClassifier) -> None:
    places = json.loads(index_of(folder).read_text())["weight_map"]
    first, last = places["conv1.weight"], places["fc.weight"]
    assert first != last
    path = edited_index(folder, lambda index: index["weight_map"].update({"conv1.weight": last}))
    with pytest.raises(ValueError, match=r"(holds|lacks) conv1.weight, which the index (expects|does not list) there"):
        load_weights(narrow, path, source="torchvision")


def test_a_tensor_that_the_index_does_not_list_is_named(folder: Path, narrow: ResNetClassifier) -> None:
    path = edited_index(folder, lambda index: index["weight_map"].pop("layer1.0.bn1.bias"))
    with pytest.raises(ValueError, match=r"holds layer1.0.bn1.bias, which the index does not list there"):
        load_weights(narrow, path, source="torchvision")


def test_a_tensor_that_no_file_holds_is_named(folder: Path, narrow: ResNetClassifier) -> None:
    first = json.loads(index_of(folder).read_text())["weight_map"]["conv1.weight"]
    path = edited_index(folder, lambda index: index["weight_map"].update({"extra.weight": first}))
    with pytest.raises(ValueError, match=rf"{first} lacks extra.weight, which the index expects there"):
        load_weights(narrow, path, source="torchvision")


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", r"..\x.bin", "..", ""])
def test_a_shard_outside_the_folder_is_not_opened(place: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": place}}))
    with pytest.raises(ValueError, match="w is in .*, which is not the name of a file beside the index"):
        read_file(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '"x"', "\xff"])
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"index.json (is not a whole JSON file|has no weight_map)"):
        read_file(path)


def test_one_file_of_one_is_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    assert load_weights(torch.nn.Linear(3, 2), path).complete
    assert load_file(path).keys() == {"weight", "bias"}
