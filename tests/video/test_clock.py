"""The rule for times: PTS where they increase, and what happens where they don't."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.video.clock import LONGEST_GAP_S, PresentationClock

MILLISECOND = Fraction(1, 1000)


def times(pts: list[int | None], *, start_s: float | None = 0.0, durations: list[int] | None = None) -> list[float]:
    clock = PresentationClock(time_base=MILLISECOND, start_s=start_s, nominal_fps=Fraction(10))
    return [clock.time_s(at, duration) for at, duration in zip(pts, durations or [0] * len(pts))]


@pytest.mark.parametrize(
    ("pts", "expected"),
    [
        ([0, 40, 45, 900], [0, 0.04, 0.045, 0.9]),
        ([None, None, None], [0, 0.1, 0.2]),
        ([0, None, 150], [0, 0.1, 0.15]),
        ([500, 500, 600], [0.5, 0.500001, 0.6]),  # a repeat is held back, later times are not moved
        ([500, 400, 600], [0.5, 0.500001, 0.6]),
        ([9000, 9040, 20, 60], [9.0, 9.04, 9.14, 9.18]),  # a splice: time goes on by a period
        ([0, 40, 10**15, 80, 120], [0, 0.04, 0.14, 0.24, 0.28]),  # so it does at both edges of a wild time
        ([0, 80_000_000, 80_000_040], [0, 80_000, 80_000.04]),  # less than a day may pass
        ([10**9, 10**9 + 40], [0, 0.04]),  # a start that the first frame is nowhere near
    ],
)
def test_rule(pts: list[int | None], expected: list[float]) -> None:
    assert times(pts) == pytest.approx(expected, abs=1e-9)


def test_stored_durations_are_the_period() -> None:
    assert times([0, None, None], durations=[40, 60, 0]) == pytest.approx([0, 0.04, 0.1])
    assert times([0, None, None], durations=[10**15, -5, 0]) == pytest.approx([0, 0.1, 0.2])  # not believable


def test_start() -> None:
    assert times([700, 740], start_s=0.5) == pytest.approx([0.2, 0.24])
    assert times([700, 740], start_s=None) == pytest.approx([0, 0.04])
    assert times([700, 740], start_s=2.0) == pytest.approx([0, 0.04])  # a start that comes after the first frame
    assert times([None, 740, 780], start_s=None) == pytest.approx([0, 0.1, 0.14])


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.integers(-(10**7), 10**7), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=30
    ),
    st.one_of(st.none(), st.floats(-100, 100), st.floats(-(2.0**63), 2.0**63)),
)
def test_times_always_increase_from_zero_or_later(pts: list[int | None], start_s: float | None) -> None:
    result = times(pts, start_s=start_s)
    assert result[0] >= 0
    assert (np.diff(result) > 0).all()
    assert result[-1] <= len(pts) * LONGEST_GAP_S


@pytest.mark.parametrize("nominal_fps", [Fraction(1, 10**9), Fraction(10**9)])
def test_a_rate_that_nothing_has_is_not_believed(nominal_fps: Fraction) -> None:
    clock = PresentationClock(time_base=MILLISECOND, start_s=0.0, nominal_fps=nominal_fps)
    assert [clock.time_s(None, 0) for _ in range(3)] == pytest.approx([0, 0.04, 0.08])  # 25 fps
