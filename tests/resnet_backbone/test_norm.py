"""Norms: parity with torchvision, and the folding into convolutions."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_backbone.norm import FrozenBatchNorm2d, conv_norm, make_norm


def random_norm(channels: int, eps: float = 1e-5) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels, eps)
    norm.weight.normal_()
    norm.bias.normal_()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    return norm


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.0])
def test_frozen_norm_is_torchvisions(eps: float) -> None:
    ours, theirs = random_norm(6, eps), torchvision.ops.FrozenBatchNorm2d(6, eps)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_frozen_norm_is_batch_norm_in_eval_and_takes_its_state_dict() -> None:
    live = nn.BatchNorm2d(6)
    live(torch.randn(8, 6, 4, 4) * 3 + 1)
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict(live.state_dict())
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(frozen(x), live.eval()(x))


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

    folded, apart = conv_norm(conv, norm, pixels), norm(conv(pixels))
    torch.testing.assert_close(folded, apart, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(folded), gradients(apart), rtol=1e-10, atol=1e-10)


def test_a_live_norm_is_not_folded_and_learns_its_statistics() -> None:
    conv, norm, x = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), torch.randn(8, 3, 5, 5)
    torch.testing.assert_close(conv_norm(conv, norm, x).mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert norm.state_dict()["num_batches_tracked"] == 1 and norm.state_dict()["running_mean"].any()


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (16, 16), (48, 16)])
def test_group_norm_has_32_groups_or_as_many_as_divide(channels: int, groups: int) -> None:
    norm = make_norm("gn")(channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


@pytest.mark.parametrize("kind", ["frozen_bn", "bn", "sync_bn", "gn"])
def test_every_norm_takes_its_epsilon(kind: str) -> None:
    assert make_norm(kind, 1e-3)(8).eps == 1e-3


def test_an_unknown_norm_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="norm 'batch' is unknown: give one of frozen_bn, bn, sync_bn, gn"):
        make_norm("batch")
