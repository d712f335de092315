"""Windows: every frame is predicted once, with its context, and short videos cost little."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.shots.windows import Windowing


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 20), st.integers(1, 60), st.integers(1, 30), st.integers(1, 500))
def test_every_frame_once_with_its_context(count: int, context: int, step: int, length_step: int, chunk: int) -> None:
    windowing = Windowing(length=2 * context + step, context=context, length_step=length_step)
    frames = np.arange(count)
    seen = []
    for window, kept in windowing.windows(frames[i : i + chunk] for i in range(0, count, chunk)):
        start = len(seen)
        seen += window[context : context + kept].tolist()
        around = np.arange(start - context, start + kept + context).clip(0, count - 1)
        assert window[: len(around)].tolist() == around.tolist()
        assert (window[len(around) :] >= around[-1]).all()
        assert len(window) % length_step == 0
        assert len(window) < len(around) + length_step
    assert seen == frames.tolist()


def test_costs() -> None:
    """A 60-frame clip is one window of 110 frames; a long video spends a sixth on context."""

    def lengths(count: int) -> list[int]:
        return [len(window) for window, _ in Windowing().windows([np.arange(count)])]

    assert lengths(60) == [110]
    assert lengths(1) == [60]
    assert lengths(250) == [300]
    assert lengths(251) == [300, 60]
    assert lengths(1000) == [300] * 4
    assert len({lengths(count)[-1] for count in range(1, 2000)}) == 25
