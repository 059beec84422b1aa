"""Matching against torchvision's Matcher, and what sampling promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from heads.matching import IGNORED, NEGATIVE, POSITIVE, match, mean_over_processes, sample


def as_torchvision(matched: Tensor, roles: Tensor) -> Tensor:
    """The index where positive, -1 for negative, -2 for between the thresholds."""
    return torch.where(roles == POSITIVE, matched, torch.where(roles == NEGATIVE, -1, -2))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    truths=st.integers(1, 6),
    candidates=st.integers(1, 30),
    thresholds=st.sampled_from([(0.3, 0.7), (0.5, 0.5)]),
    keep_best=st.booleans(),
)
def test_roles_and_truths_are_torchvisions(
    seed: int, truths: int, candidates: int, thresholds: tuple[float, float], keep_best: bool
) -> None:
    """On a coarse scale, so that ties and values exactly at the thresholds are common."""
    generator = torch.Generator().manual_seed(seed)
    overlap = torch.randint(1, 11, (truths, candidates), generator=generator) / 10
    low, high = thresholds
    want = Matcher(high, low, allow_low_quality_matches=keep_best)(overlap)
    assert torch.equal(as_torchvision(*match(overlap, low=low, high=high, best_from=0.0 if keep_best else None)), want)


def test_a_truth_that_overlaps_nothing_makes_nothing_positive() -> None:
    """Otherwise its best overlap, zero, would tie with every candidate far away from it."""
    overlap = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.1, 0.0]])
    _, roles = match(overlap, low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [POSITIVE, NEGATIVE, NEGATIVE]


def test_a_low_quality_match_answers_for_its_own_best_truth() -> None:
    overlap = torch.tensor([[0.6, 0.2], [0.5, 0.1]])  # candidate 0 is the best of both truths
    matched, roles = match(overlap, low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [POSITIVE, NEGATIVE] and matched[0] == 0


def test_without_ground_truth_everything_is_negative() -> None:
    matched, roles = match(torch.zeros(0, 4), low=0.3, high=0.7, best_from=0.0)
    assert roles.tolist() == [NEGATIVE] * 4 and matched.shape == (4,) and matched.dtype == torch.int64


@pytest.mark.parametrize("truths", [0, 3])
def test_without_candidates_nothing_is_matched(truths: int) -> None:
    matched, roles = match(torch.zeros(truths, 0), low=0.3, high=0.7, best_from=0.0)
    assert len(matched) == len(roles) == 0


@settings(max_examples=60, deadline=None)
@given(
    roles=st.lists(st.sampled_from([POSITIVE, NEGATIVE, IGNORED]), max_size=60),
    count=st.integers(1, 40),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_sampling_keeps_its_fractions_and_never_invents(roles: list[int], count: int, fraction: float) -> None:
    positive, negative = sample(torch.tensor(roles, dtype=torch.int8), count, fraction)
    assert len(positive) == min(roles.count(POSITIVE), int(count * fraction))
    assert len(negative) == min(roles.count(NEGATIVE), count - len(positive))
    for chosen, role in ((positive.tolist(), POSITIVE), (negative.tolist(), NEGATIVE)):
        assert len(set(chosen)) == len(chosen) and all(roles[i] == role for i in chosen)


def test_nothing_is_random_where_everything_is_sampled() -> None:
    roles = torch.tensor([1, 0, -1, 0, 1], dtype=torch.int8)
    before = torch.get_rng_state()
    positive, negative = sample(roles, 100, 0.5)
    assert positive.tolist() == [0, 4] and negative.tolist() == [1, 3]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_has_to_be_left_out_is_drawn_evenly() -> None:
    roles = torch.zeros(10, dtype=torch.int8)
    drawn = torch.cat([sample(roles, 5, 0.5)[1] for _ in range(400)]).bincount(minlength=10)
    assert drawn.min() > 150 and drawn.max() < 250  # 200 expected, deviation 10


def test_in_one_process_the_mean_is_the_count_and_at_least_one() -> None:
    device = torch.device("cpu")
    assert mean_over_processes(7, device).item() == 7 and mean_over_processes(0, device).item() == 1


def test_a_best_candidate_may_have_to_overlap_enough() -> None:
    overlap = torch.tensor([[0.1, 0.2, 0.0], [0.0, 0.35, 0.3]])
    assert match(overlap, low=0.3, high=0.7, best_from=0.3)[1].tolist() == [NEGATIVE, POSITIVE, IGNORED]
    assert match(overlap[:1], low=0.3, high=0.7, best_from=0.3)[1].tolist() == [NEGATIVE] * 3


def test_a_best_candidate_answers_for_the_truth_whose_best_it_is_the_last_of_several() -> None:
    """mmdetection: candidate 0 overlaps truth 0 most, and is the best that truths 0, 1 and 2 have."""
    overlap = torch.tensor([[0.8, 0.4], [0.6, 0.5], [0.5, 0.1], [0.2, 0.45]])
    assert match(overlap, low=0.3, high=0.7, best_from=0.3)[0].tolist() == [0, 1]
    assert match(overlap, low=0.3, high=0.7, best_from=0.3, best_switches=True)[0].tolist() == [2, 3]
