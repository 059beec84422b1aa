"""Matching equals torchvision's Matcher; sampling keeps its fractions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from heads.matching import IGNORED, NEGATIVE, POSITIVE, match, mean_over_processes, sample


def as_torchvision(matched: Tensor, roles: Tensor) -> Tensor:
    """torchvision's encoding: the matched index if positive, -1 if negative, -2 between the thresholds."""
    return torch.where(roles == POSITIVE, matched, torch.where(roles == NEGATIVE, -1, -2))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_boxes=st.integers(1, 6),
    candidates=st.integers(1, 30),
    thresholds=st.sampled_from([(0.3, 0.7), (0.5, 0.5)]),
    keep_best=st.booleans(),
)
def test_matches_and_roles_equal_torchvision(
    seed: int, num_boxes: int, candidates: int, thresholds: tuple[float, float], keep_best: bool
) -> None:
    """The IoUs are coarse, so that ties and values equal to a threshold are common."""
    generator = torch.Generator().manual_seed(seed)
    overlap = torch.randint(1, 11, (num_boxes, candidates), generator=generator) / 10
    low, high = thresholds
    expected = Matcher(high, low, allow_low_quality_matches=keep_best)(overlap)
    assert torch.equal(
        as_torchvision(*match(overlap, low=low, high=high, best_from=0.0 if keep_best else None)), expected
    )


def test_a_box_without_overlap_makes_no_candidate_positive() -> None:
    """Its best IoU is zero, which all distant candidates have."""
    overlap = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.1, 0.0]])
    _, roles = match(overlap, low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [POSITIVE, NEGATIVE, NEGATIVE]


def test_a_low_quality_match_keeps_the_box_it_overlaps_most() -> None:
    overlap = torch.tensor([[0.6, 0.2], [0.5, 0.1]])  # candidate 0 is the best of both boxes
    matched, roles = match(overlap, low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [POSITIVE, NEGATIVE] and matched[0] == 0


def test_without_ground_truth_all_candidates_are_negative() -> None:
    matched, roles = match(torch.zeros(0, 4), low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [NEGATIVE] * 4 and matched.shape == (4,) and matched.dtype == torch.int64


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_without_candidates_nothing_is_matched(num_boxes: int) -> None:
    matched, roles = match(torch.zeros(num_boxes, 0), low=0.3, high=0.7, best_from=0.0)
    assert len(matched) == len(roles) == 0


@settings(max_examples=60, deadline=None)
@given(
    roles=st.lists(st.sampled_from([POSITIVE, NEGATIVE, IGNORED]), max_size=60),
    count=st.integers(1, 40),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_samples_have_their_roles_and_numbers_without_repetition(roles: list[int], count: int, fraction: float) -> None:
    ((positive, negative),) = sample([torch.tensor(roles, dtype=torch.int8)], count, fraction)
    assert len(positive) == min(roles.count(POSITIVE), int(count * fraction))
    assert len(negative) == min(roles.count(NEGATIVE), count - len(positive))
    for chosen, role in ((positive.tolist(), POSITIVE), (negative.tolist(), NEGATIVE)):
        assert len(set(chosen)) == len(chosen) and all(roles[i] == role for i in chosen)


def test_sampling_everything_uses_no_random_numbers() -> None:
    roles = torch.tensor([1, 0, -1, 0, 1], dtype=torch.int8)
    before = torch.get_rng_state()
    ((positive, negative),) = sample([roles], 100, 0.5)
    assert positive.tolist() == [0, 4] and negative.tolist() == [1, 3]
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_is_uniform() -> None:
    roles = torch.zeros(10, dtype=torch.int8)
    drawn = torch.cat([negative for _, negative in sample([roles] * 400, 5, 0.5)]).bincount(minlength=10)
    assert drawn.min() > 150 and drawn.max() < 250  # expected 200, standard deviation 10


def test_mean_over_one_process_is_the_count_but_at_least_one() -> None:
    device = torch.device("cpu")
    assert mean_over_processes(7, device).item() == 7 and mean_over_processes(0, device).item() == 1


def test_a_best_candidate_below_best_from_is_not_positive() -> None:
    overlap = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.35, 0.3]])
    assert match(overlap, low=0.3, high=0.7, best_from=0.3)[1].tolist() == [NEGATIVE, POSITIVE, IGNORED]
    assert match(overlap[:1], low=0.3, high=0.7, best_from=0.3)[1].tolist() == [NEGATIVE] * 3


def test_with_best_switches_a_candidate_is_matched_with_the_last_box_it_is_best_for() -> None:
    """As in mmdetection. Candidate 0 overlaps box 0 most, and is the best candidate of boxes 0, 1 and 2."""
    overlap = torch.tensor([[0.8, 0.4], [0.6, 0.5], [0.5, 0.1], [0.2, 0.45]])
    assert match(overlap, low=0.3, high=0.7, best_from=0.3)[0].tolist() == [0, 1]
    assert match(overlap, low=0.3, high=0.7, best_from=0.3, best_switches=True)[0].tolist() == [2, 3]
