"""Intervals against published numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.evaluation.statistics import mean_score, wilson_score


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_newcombes_table(correct, total, low, high):
    score = wilson_score(correct, total)
    assert (round(score.low, 4), round(score.high, 4)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_holds_the_accuracy_and_mirrors(counts):
    correct, total = counts
    score, mirrored = wilson_score(correct, total), wilson_score(total - correct, total)
    assert 0 <= score.low <= score.accuracy <= score.high <= 1
    assert score.low == pytest.approx(1 - mirrored.high)


def test_more_confidence_is_wider():
    assert wilson_score(5, 10, confidence=0.99).low < wilson_score(5, 10).low


def test_mean_of_one_is_that_one_and_of_many_is_narrower():
    one = wilson_score(30, 40)
    assert mean_score([one]) == one
    mean = mean_score([one] * 4)
    assert mean.accuracy == one.accuracy
    assert mean.high - mean.accuracy == pytest.approx((one.high - one.accuracy) / 2)
    assert (mean.correct, mean.total) == (120, 160)


def test_mean_weighs_families_equally():
    assert mean_score([wilson_score(1, 1), wilson_score(0, 99)]).accuracy == 0.5


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, total):
    with pytest.raises(ValueError, match="expected 0 ≤ correct"):
        wilson_score(correct, total)


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        mean_score([])
