"""Norms: parity with torchvision and `nn.BatchNorm2d`, folding into convolutions, fixed statistics."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_backbone.norm import NORMS, FrozenBatchNorm2d, conv_layer, conv_norm, frozen, make_norm


def random_norm(channels: int, eps: float = 1e-5) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels, eps)
    norm.weight.normal_()
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    return norm


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.0])
def test_frozen_norm_equals_torchvisions(eps: float) -> None:
    ours, reference = random_norm(6, eps), torchvision.ops.FrozenBatchNorm2d(6, eps)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(ours(x), reference(x))


def test_frozen_norm_loads_a_batch_norm_and_equals_it_in_eval() -> None:
    batch_norm = nn.BatchNorm2d(6)
    batch_norm(torch.randn(8, 6, 4, 4) * 3 + 1)
    norm = FrozenBatchNorm2d(6)
    norm.load_state_dict(batch_norm.state_dict())
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(norm(x), batch_norm.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_freezing_keeps_the_dtype(dtype: torch.dtype) -> None:
    batch_norm = nn.BatchNorm2d(6, dtype=dtype).eval()
    batch_norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 4, 5, dtype=dtype)
    norm = frozen(batch_norm)
    assert isinstance(norm, FrozenBatchNorm2d) and norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), batch_norm(x))


def test_frozen_norm_has_no_parameters_and_ignores_train_mode() -> None:
    norm, x = random_norm(4), torch.randn(3, 4, 5, 5) * 7
    assert not list(norm.parameters())
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("bias", [False, True])
def test_folding_gives_the_same_output_and_gradients(bias: bool) -> None:
    conv, norm = nn.Conv2d(3, 6, 3, 2, padding=2, dilation=2, bias=bias).double(), random_norm(6).double()
    pixels = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 6, 5, 4, dtype=torch.float64)

    def gradients(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((y * weight).sum(), [pixels, *conv.parameters()]))

    folded, separate = conv_norm(conv, norm, pixels), norm(conv(pixels))
    torch.testing.assert_close(folded, separate, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(folded), gradients(separate), rtol=1e-10, atol=1e-10)


def test_batch_norm_in_training_is_not_folded_and_updates_its_statistics() -> None:
    conv, norm, x = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), torch.randn(8, 3, 5, 5)
    torch.testing.assert_close(conv_norm(conv, norm, x).mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert norm.state_dict()["num_batches_tracked"] == 1 and norm.state_dict()["running_mean"].any()


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (16, 16), (48, 16)])
def test_group_norm_has_32_groups_or_16_if_32_do_not_divide_the_channels(channels: int, groups: int) -> None:
    norm = make_norm("gn")(channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


def test_bn_eval_trains_its_affine_terms_and_keeps_its_statistics() -> None:
    """Output and gradients, with the norm folded into the convolution, equal those of `BatchNorm2d` in eval."""
    conv, batch_norm, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.randn(8, 3, 9, 9) * 3 + 1
    batch_norm(conv(x))
    nn.init.normal_(batch_norm.weight)
    nn.init.normal_(batch_norm.bias)
    fixed = make_norm("bn_eval")(4)
    fixed.load_state_dict(batch_norm.state_dict())
    output, expected = conv_norm(conv, fixed.train(), x), batch_norm.eval()(conv(x))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(output.square().sum(), [fixed.weight, fixed.bias, conv.weight])
    expected_gradients = torch.autograd.grad(expected.square().sum(), [batch_norm.weight, batch_norm.bias, conv.weight])
    for a, b in zip(gradients, expected_gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert not fixed.training
    assert all(torch.equal(fixed.state_dict()[key], value) for key, value in batch_norm.state_dict().items())


@pytest.mark.parametrize("kind", ["none", *NORMS])
def test_empty_batch_gives_zero_gradients_and_keeps_the_statistics(kind: str) -> None:
    layer = conv_layer(3, 32, 3, kind).train()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    out = layer(torch.zeros(0, 3, 7, 7))
    assert out.shape == (0, 32, 7, 7)
    out.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", ["frozen_bn", "bn", "bn_eval", "sync_bn", "gn"])
def test_every_norm_has_the_given_epsilon(kind: str) -> None:
    assert make_norm(kind, 1e-3)(8).eps == 1e-3


def test_error_for_an_unknown_norm_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="norm 'batch' is unknown: give one of frozen_bn, bn, bn_eval, sync_bn, gn"):
        make_norm("batch")
