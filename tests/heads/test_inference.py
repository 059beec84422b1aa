"""A copy for inference gives the detections of its detector, and cannot be taken for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from heads import RCNN, DetectorRecipe, Predictor, save_detector
from heads.build import assemble, empty_backbone
from heads.inference import CannotCompile
from resnet_backbone import Preprocess
from resnet_backbone.errors import InvalidType, InvalidValue
from resnet_backbone.norm import FrozenBatchNorm2d


@pytest.fixture
def detector(small_recipe: DetectorRecipe) -> RCNN:
    """A detector with norms that change their input, and scores that differ from each other."""
    recipe = replace(small_recipe, norm="frozen_bn")
    net = assemble(recipe, 3, empty_backbone(recipe))
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.normal_(module.bias, std=0.2)
    for layer in ("box_head.logits", "rpn.objectness", "mask_head.logits"):
        nn.init.normal_(net.get_parameter(f"{layer}.weight"), std=0.5)
    net.preprocess = Preprocess(short_side_px=96, long_side_px=192)
    return net


@pytest.fixture(scope="module")
def photos(coco_mini: Path) -> list[np.ndarray]:
    files = sorted((coco_mini / "val2017").glob("*.jpg"))[:3]
    assert len(files) == 3
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def assert_same_detections(fast: Predictor, plain: Predictor, photos: list[np.ndarray]) -> None:
    for ours, reference in zip(fast(photos), plain(photos), strict=True):
        assert len(reference) > 10 and torch.equal(ours.labels, reference.labels)
        torch.testing.assert_close(ours.boxes, reference.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(ours.scores, reference.scores, rtol=0, atol=1e-4)
        assert (ours.masks.bits != reference.masks.bits).float().mean() < 1e-3  # type: ignore[union-attr]


def test_a_fast_predictor_gives_the_same_detections_and_leaves_the_detector_alone(
    detector: RCNN, photos: list[np.ndarray], hashes: Callable[..., dict[str, str]]
) -> None:
    before = hashes(detector.state_dict())
    plain = Predictor(detector)
    fast = Predictor(detector, fast=True)
    assert fast.detector is not detector and fast.detector.compile_s is None
    assert_same_detections(fast, plain, photos)
    assert hashes(detector.state_dict()) == before and next(detector.parameters()).requires_grad


def test_a_compiled_predictor_gives_the_same_detections_for_images_of_any_size(
    detector: RCNN, photos: list[np.ndarray]
) -> None:
    sizes = [photos[0], photos[0][:200], photos[0].transpose(1, 0, 2), *photos[1:]]
    torch._dynamo.utils.counters.clear()
    compiled = Predictor(detector, compile=True)
    assert compiled.detector.compile_s is not None and compiled.detector.compile_s > 0.1
    # weights are constants of the graph, not its inputs: only then are they laid out as its kernels read them
    packed = torch._dynamo.utils.counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
    assert packed > 0 or not torch.backends.mkldnn.is_available()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_same_detections(compiled, Predictor(detector), sizes)
    # for very small feature maps torch chooses other kernels, and compiles once more
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 2


def test_without_a_compiler_the_error_says_what_to_install(detector: RCNN) -> None:
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(CannotCompile, match="install a C\\+\\+ compiler"),
    ):
        detector.for_inference(compile=True)


def test_in_bfloat16_features_are_half_and_boxes_are_not(detector: RCNN, photos: list[np.ndarray]) -> None:
    fast = Predictor(detector, precision="bf16", fast=True)
    assert {p.dtype for p in fast.detector.parameters()} == {torch.bfloat16}
    pooled: list[torch.Tensor] = []
    fast.detector.box_head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    found = fast(photos)
    assert {regions.dtype for regions in pooled} == {torch.bfloat16}
    for ours, reference in zip(found, Predictor(detector)(photos), strict=True):
        assert ours.boxes.dtype == ours.scores.dtype == torch.float32
        torch.testing.assert_close(ours.scores[:5], reference.scores[:5], rtol=0, atol=0.05)


def test_a_copy_for_inference_is_not_saved_as_weights(
    detector: RCNN, small_recipe: DetectorRecipe, tmp_path: Path
) -> None:
    with pytest.raises(InvalidType, match="copy for inference.*save the one on which for_inference was called"):
        save_detector(detector.for_inference(), small_recipe, tmp_path / "copy.safetensors", source="trained here")


def test_a_copy_of_a_compiled_copy_runs_its_own_weights(detector: RCNN, photos: list[np.ndarray]) -> None:
    first = detector.for_inference()
    first.compiled_dense = lambda pixels: pytest.fail("the copy ran what was compiled for the original")
    Predictor(first.for_inference())(photos[:1])


def test_a_precision_that_is_none_is_refused(detector: RCNN) -> None:
    with pytest.raises(InvalidValue, match="dtype=torch.int8 is not supported: give one of torch.float32"):
        detector.for_inference(dtype=torch.int8)
