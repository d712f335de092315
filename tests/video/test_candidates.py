"""What the pool keeps, as a closed formula, and what `get` gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linvt.video.candidates import CandidateCollector, CandidatePool


def collect(thumbnails: np.ndarray, max_candidates: int) -> tuple[CandidatePool, int]:
    """The pool of frames that are their own index, and how many frames were rendered for it."""
    rendered = []

    def render(frame: int) -> np.ndarray:
        rendered.append(frame)
        return np.full((1, 1, 3), frame % 256, np.uint8)

    collector = CandidateCollector(max_candidates, render)
    for index, thumbnail in enumerate(thumbnails):
        collector.add(index, index, thumbnail)
    return collector.finish(), len(rendered)


def formula(thumbnails: np.ndarray, max_candidates: int) -> list[int]:
    count = len(thumbnails)
    if count <= max_candidates:
        return list(range(count))
    jumps = np.abs(np.diff(thumbnails.astype(int), axis=0, prepend=thumbnails[:1])).reshape(count, -1).sum(1)
    around = np.maximum(np.append(0, jumps[:-1]), np.append(jumps[1:], 0))
    sharpness = jumps - around
    max_jumps = max_candidates // 2
    stride = 1
    while -(-count // stride) > max_candidates - max_jumps:
        stride *= 2
    regular = list(range(0, count, stride))
    others = sorted((index for index in range(count) if index % stride), key=lambda index: (-sharpness[index], index))
    return sorted(regular + others[:max_jumps])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=120).map(lambda values: np.array(values, np.uint8)[:, None]),
    st.integers(1, 20),
)
def test_the_pool_is_the_formula(thumbnails: np.ndarray, max_candidates: int) -> None:
    pool, _ = collect(thumbnails, max_candidates)
    assert pool.indices.tolist() == formula(thumbnails, max_candidates)
    assert len(pool) <= max_candidates
    frames, indices = pool.get(pool.indices)
    assert indices.tolist() == pool.indices.tolist()
    assert frames[:, 0, 0, 0].tolist() == (pool.indices % 256).tolist()


def test_short_shots_in_a_long_video_keep_a_frame() -> None:
    """20,000 noisy frames with 25 shots of 3 to 6 frames: every one has a candidate, and few frames are rendered."""
    rng = np.random.default_rng(0)
    starts = np.sort(rng.choice(np.arange(100, 19_900, 50), 25, replace=False))
    level = np.full(20_000, 60)
    shots = [(start, start + int(rng.integers(3, 7))) for start in starts]
    for start, end in shots:
        level[start:end] = 160
    thumbnails = (level[:, None] + rng.integers(-8, 8, (20_000, 48))).astype(np.uint8)
    pool, num_rendered = collect(thumbnails, 128)
    assert len(pool) <= 128
    assert all(((pool.indices >= start) & (pool.indices < end)).any() for start, end in shots)
    assert np.diff(pool.indices).max() <= 20_000 / 32  # and the rest of the video is covered evenly
    assert num_rendered < 2_000


def test_fast_motion_does_not_crowd_out_cuts() -> None:
    rng = np.random.default_rng(0)
    thumbnails = np.full((4_000, 48), 60, np.uint8)
    thumbnails[1_000:2_000] = rng.integers(0, 256, (1_000, 48))  # every jump here is as large as a cut's
    cuts = range(2_101, 2_301, 25)
    for number, cut in enumerate(cuts):
        thumbnails[cut : cut + 25] = 200 if number % 2 == 0 else 60
    pool, _ = collect(thumbnails, 64)
    assert set(cuts) <= set(pool.indices.tolist())


def test_nearest() -> None:
    pool = CandidatePool([0, 10, 13], [np.full((2, 2, 3), number, np.uint8) for number in range(3)])
    frames, indices = pool.get([4, 5, 6])
    assert (indices.tolist(), frames[:, 0, 0, 0].tolist()) == ([0, 10], [0, 1])  # 5 is as near to 0: the earlier
    assert pool.get([11])[1].tolist() == [10]
    assert pool.get([12, 500])[1].tolist() == [13]
    with pytest.raises(ValueError, match="at least one frame"):
        pool.get([])


@settings(deadline=None)
@given(st.sets(st.integers(0, 200), min_size=1), st.lists(st.integers(0, 200), min_size=1))
def test_get_gives_the_nearest_each_once(indices: set[int], wanted: list[int]) -> None:
    ordered = sorted(indices)
    pool = CandidatePool(ordered, [np.zeros((1, 1, 3), np.uint8)] * len(ordered))
    nearest = {min(ordered, key=lambda index: (abs(index - frame), index)) for frame in wanted}
    assert pool.get(wanted)[1].tolist() == sorted(nearest)
