"""Presentation times from PTS, and the rule for streams whose PTS are missing, run backwards or lead far away."""

from fractions import Fraction

SPLICE_S = 1.0
LONGEST_GAP_S = 24 * 3600.0
_TICK_S = 1e-6
_DEFAULT_PERIOD_S = 1 / 25


class PresentationClock:
    """Seconds since the file's presentation starts, strictly increasing.

    - A frame's time is its PTS, minus the container's start (what players call 0; where it has none, a later one than
      the first frame, or one more than a day before it, the first PTS).
    - A frame without PTS follows its predecessor by one frame period (the predecessor's stored duration, else the
      stream's nominal rate, else 1/25 s; none of them is believed outside of 1 µs to a day).
    - A PTS that repeats, steps back by up to 1 s or leads ahead by less than 1 µs keeps its place in the order: 1 µs
      after its predecessor.
    - A step back by more than 1 s, or ahead by more than a day, is a splice or damage: this frame follows by one
      period, and later ones move with it.
    """

    def __init__(self, *, time_base: Fraction, start_s: float | None, nominal_fps: Fraction | None) -> None:
        self._time_base = time_base
        nominal_period_s = float(1 / nominal_fps) if nominal_fps else _DEFAULT_PERIOD_S
        self._nominal_period_s = nominal_period_s if _is_period(nominal_period_s) else _DEFAULT_PERIOD_S
        self.start_s = start_s
        self._time_s: float | None = None
        self._period_s = self._nominal_period_s

    def time_s(self, pts: int | None, duration: int) -> float:
        """The next frame's time, from its PTS and stored duration (0 = unknown), both in the time base."""
        time_s = self._next_time_s(pts)
        self._time_s = time_s
        stored_period_s = float(duration * self._time_base)
        self._period_s = stored_period_s if _is_period(stored_period_s) else self._nominal_period_s
        return time_s

    @property
    def end_s(self) -> float:
        """When the latest frame ends."""
        assert self._time_s is not None
        return self._time_s + self._period_s

    def _next_time_s(self, pts: int | None) -> float:
        if pts is None:
            return 0.0 if self._time_s is None else self.end_s
        stored_s = float(pts * self._time_base)
        if self.start_s is None:
            # Frames before the first PTS, if any, have already taken the time up to `end_s`.
            self.start_s = stored_s - (0.0 if self._time_s is None else self.end_s)
        time_s = stored_s - self.start_s
        if self._time_s is None:
            # Earlier than the start, or at it but for the start's rounding to microseconds; or nowhere near it.
            if time_s < _TICK_S or time_s > LONGEST_GAP_S:
                self.start_s = stored_s
            return stored_s - self.start_s
        step_s = time_s - self._time_s
        if _TICK_S <= step_s <= LONGEST_GAP_S:
            return time_s
        if -SPLICE_S <= step_s < _TICK_S:
            return self._time_s + _TICK_S
        self.start_s = stored_s - self.end_s
        return self.end_s


def _is_period(seconds: float) -> bool:
    return _TICK_S <= seconds <= LONGEST_GAP_S
