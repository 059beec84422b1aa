"""transformers: configurations, `BackboneMixin`, saving and loading, and parity with its ResNet."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_backbone import load_weights, register
from tests.resnet_backbone.hosts.cases import body_state

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
Photos = Callable[[int, int, int], Tensor]


@pytest.fixture(autouse=True)
def registered() -> None:
    register("transformers")


def test_feature_maps_equal_those_of_the_resnet_of_transformers(imagenet_weights: Path, photos: Photos) -> None:
    file = imagenet_weights / "resnet50-imagenet.pth"
    stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
    reference = transformers.ResNetBackbone(transformers.ResNetConfig(out_features=stages)).eval()
    reference.load_state_dict(body_state(file, "transformers"))
    config = transformers.AutoConfig.for_model("resnet_backbone", name="resnet50", out_features=stages)
    ours = transformers.AutoBackbone.from_config(config).eval()
    load_weights(ours.body, file, source="torchvision")
    assert ours.channels == reference.channels and ours.out_features == reference.out_features
    with torch.inference_mode():
        expected, actual = reference(photos(1, 97, 130)), ours(photos(1, 97, 130))
    for a, b in zip(expected.feature_maps, actual.feature_maps):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_out_features_and_out_indices_select_the_same_levels() -> None:
    by_name = transformers.AutoConfig.for_model("resnet_backbone", out_features=["stage2", "stage4"])
    by_index = transformers.AutoConfig.for_model("resnet_backbone", out_indices=[2, 4])
    assert by_name.out_indices == by_index.out_indices == [2, 4]
    assert by_name.out_features == by_index.out_features == ["stage2", "stage4"]
    model = transformers.AutoBackbone.from_config(by_index)
    assert model.channels == [512, 2048] and list(model.body.out_levels) == ["c3", "c5"]
    with pytest.raises(ValueError, match="stage9"):
        transformers.AutoConfig.for_model("resnet_backbone", out_features=["stage9"])
    with pytest.raises(ValueError, match="resnet51.*resnet50"):
        transformers.AutoConfig.for_model("resnet_backbone", name="resnet51")


def test_configuration_is_restored_from_a_file_and_from_a_pickle(tmp_path: Path) -> None:
    settings = {"name": "resnet18", "stride_on": "3x3", "norm": "bn", "frozen_stages": 1, "num_channels": 4}
    config = transformers.AutoConfig.for_model("resnet_backbone", **settings, out_features=["stage1", "stage3"])
    config.save_pretrained(tmp_path)
    for loaded in (transformers.AutoConfig.from_pretrained(str(tmp_path)), pickle.loads(pickle.dumps(config))):
        assert type(loaded) is type(config) and loaded.out_features == ["stage1", "stage3"]
        assert {name: getattr(loaded, name) for name in settings} == settings
    model = transformers.AutoBackbone.from_config(config)
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
    assert model(torch.rand(1, 4, 64, 64)).feature_maps[0].shape == (1, 64, 16, 16)


def test_tensors_missing_from_a_checkpoint_are_initialised(tmp_path: Path) -> None:
    """transformers builds models on the meta device; missing tensors must not be uninitialised memory."""
    from resnet_backbone.hosts.transformers import ResNetBackboneModel

    config = transformers.AutoConfig.for_model("resnet_backbone", name="resnet18", norm="bn")
    model = ResNetBackboneModel(config)
    state = model.state_dict()
    missing = ["body.layer2.0.conv1.weight", "body.layer2.0.bn1.running_var", "body.layer2.0.bn1.weight"]
    model.save_pretrained(tmp_path, state_dict={key: x for key, x in state.items() if key not in missing})
    loaded = ResNetBackboneModel.from_pretrained(str(tmp_path)).state_dict()
    assert torch.equal(loaded[missing[1]], torch.ones(128)) and torch.equal(loaded[missing[2]], torch.ones(128))
    assert 0.5 < loaded[missing[0]].std() / state[missing[0]].std() < 2
    assert all(torch.equal(loaded[key], state[key]) for key in state if key not in missing)
