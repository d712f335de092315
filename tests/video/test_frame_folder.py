from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from linvt.video import MediaError, is_frame, ordered_frames, stream_frame_folder
from tests.media import write_image


def _stream(folder: Path, fps: float = 2.0, max_side: int = 48, max_candidates: int = 64):
    chunks, stream = [], stream_frame_folder(folder, fps, max_side=max_side, max_candidates=max_candidates)
    while True:
        try:
            chunks.append(next(stream))
        except StopIteration as end:
            return np.concatenate(chunks), end.value


def _write(folder: Path, count: int, *, pattern: str = "c01_{:04d}.jpeg", first: int = 1) -> list[np.ndarray]:
    for number in range(first, first + count):
        write_image(folder / pattern.format(number), seed=number)
    return [np.asarray(Image.open(folder / pattern.format(number))) for number in range(first, first + count)]


def test_frames_come_in_order_at_the_stated_rate(tmp_path):
    pictures = _write(tmp_path, 35)
    (tmp_path / "notes.txt").touch()
    detector_frames, video = _stream(tmp_path, fps=2.0, max_side=96)
    np.testing.assert_array_equal(video.timestamps_s, np.arange(35) / 2)
    assert detector_frames.shape == (35, 27, 48, 3)
    frames, indices = video.pool.get(range(35))
    np.testing.assert_array_equal(indices, np.arange(35))
    np.testing.assert_array_equal(frames, pictures)
    info = video.info
    assert (info.kind, info.container, info.codec, info.width, info.height) == ("video", "frames", "jpeg", 96, 64)
    assert (info.num_frames, info.duration_s, info.average_fps, info.num_bad_packets) == (35, 17.5, 2.0, 0)
    # What the detector sees is the picture, only smaller.
    small = np.asarray(Image.fromarray(pictures[7]).resize((48, 27), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(detector_frames[7], small)


def test_a_pool_is_bounded_and_frames_are_scaled(tmp_path):
    _write(tmp_path, 20, pattern="{}.png")
    _, video = _stream(tmp_path, max_side=48, max_candidates=8)
    assert len(video.pool) <= 8
    assert video.pool.get(video.pool.indices)[0].shape[1:] == (32, 48, 3)
    assert video.info.codec == "png"


@given(
    numbers=st.sets(st.integers(0, 10**12), min_size=1),
    width=st.integers(1, 6),
    prefix=st.sampled_from(["", "f", "c01_"]),
)
def test_order_is_by_number_whatever_the_zeros(numbers, width, prefix):
    names = [f"{prefix}{number:0{width}d}.JPG" for number in numbers]
    expected = [f"{prefix}{number:0{width}d}.JPG" for number in sorted(numbers)]
    assert ordered_frames(["thumbs.db", ".1.jpg", "cover.png", *names]) == expected
    assert all(is_frame(name) for name in names)


@pytest.mark.parametrize("names", [["a_1.jpg", "b_2.jpg"], ["1.jpg", "01.jpg"], ["1.jpg", "1.png"]])
def test_frames_of_two_videos_or_twice_the_same_are_no_video(names):
    with pytest.raises(MediaError, match="AmbiguousFrames"):
        ordered_frames(names)


def test_a_broken_frame_is_counted_and_the_others_keep_their_times(tmp_path):
    _write(tmp_path, 5)
    for number in (1, 3):
        (tmp_path / f"c01_{number:04d}.jpeg").write_bytes(b"\xff\xd8\xff no picture")
    _, video = _stream(tmp_path)
    np.testing.assert_array_equal(video.timestamps_s, [0.5, 1.5, 2.0])
    assert (video.info.num_frames, video.info.num_bad_packets, video.info.duration_s) == (3, 2, 2.5)
    (tmp_path / "c01_0002.jpeg").write_bytes(b"")
    with pytest.raises(MediaError, match=r"MostlyCorrupt: 3 of 5 pictures cannot be read, the last: c01_0003"):
        _stream(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(MediaError, match="NoFrames: 5 of 5"):
        _stream(tmp_path)


def test_a_folder_without_frames_is_no_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MediaError, match="NoFrames"):
        _stream(tmp_path)


def test_another_size_is_stretched_to_the_first(tmp_path):
    write_image(tmp_path / "1.jpg", size=(96, 64))
    write_image(tmp_path / "2.jpg", size=(10, 80))
    _, video = _stream(tmp_path, max_side=48)
    assert video.pool.get([0, 1])[0].shape == (2, 32, 48, 3)
