"""A decoder may crash, hang or eat memory: the process that asked goes on, and the next input is none the worse."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from linvt.extraction.decode_process import DecodeProcess, DecoderDied
from linvt.extraction.reading import Unreadable, read_media
from linvt.video import MediaLimits
from tests.media import write_image, write_video


class HostileProcess(DecodeProcess):
    child_module = "tests.extraction.hostile_decoder"


def drained(chunks):
    """(detector frames, the rest) of a reader's generator."""
    frames = [np.zeros((0, 27, 48, 3), np.uint8)]
    while True:
        try:
            frames.append(next(chunks))
        except StopIteration as end:
            return np.concatenate(frames), end.value


@pytest.fixture(scope="module")
def process():
    with DecodeProcess(stall_timeout_s=60, memory_mb=2048) as process:
        yield process


def test_a_child_gives_what_decoding_here_gives(process, tmp_path):
    files = [write_video(tmp_path / "a.mp4", shot_lengths=(300, 350), size=(320, 64)), write_image(tmp_path / "b.png")]
    for file in files:
        frames, media = drained(process(str(file), 48, 16))
        expected_frames, expected = drained(read_media(str(file), 48, 16))
        np.testing.assert_array_equal(frames, expected_frames)
        np.testing.assert_array_equal(media.timestamps_s, expected.timestamps_s)
        np.testing.assert_array_equal(media.candidates, expected.candidates)
        assert (media.info, media.sha256, media.size_bytes) == (expected.info, expected.sha256, expected.size_bytes)
        kept = media.candidates[::3]
        np.testing.assert_array_equal(media.take(kept), expected.take(kept))


def test_errors_arrive_as_they_are(process, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(Unreadable) as raised:
        drained(process(str(tmp_path / "empty.mp4"), 48, 16))
    assert (raised.value.stage, raised.value.error_class) == ("open", "EmptyFile")
    assert raised.value.size_bytes == 0
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for path, error_class in {
        tmp_path / "gone.mp4": "FileNotFoundError",
        tmp_path / "a\0b.mp4": "FileNotFoundError",
        tmp_path: "IsADirectoryError",
        tmp_path / "pipe": "NotARegularFileError",
        tmp_path / "endless.mp4": "NotARegularFileError",
    }.items():
        with pytest.raises(Unreadable) as raised:
            drained(process(str(path), 48, 16))
        assert (raised.value.stage, raised.value.error_class, raised.value.sha256) == ("fetch", error_class, None)


@pytest.mark.parametrize(
    ("wish", "error_class", "message"),
    [
        ("crash", "DecoderCrashed", "SIGSEGV"),
        ("hang", "DecoderStalled", "no sign of life for 3 s"),
        ("eat memory", "DecoderOutOfMemory", "more than 256 MB"),
    ],
)
def test_whatever_kills_the_child_is_told_and_the_next_input_is_decoded(wish, error_class, message, tmp_path):
    (tmp_path / "wish").write_text(wish)
    with HostileProcess(stall_timeout_s=3, memory_mb=256) as process:
        for _ in range(2):
            with pytest.raises(DecoderDied, match=message) as raised:
                drained(process(str(tmp_path / "wish"), 48, 16))
            assert raised.value.error_class == error_class
        (tmp_path / "wish").write_text("stumble")
        with pytest.raises(Unreadable, match="unexpected: a surprise"):
            drained(process(str(tmp_path / "wish"), 48, 16))


def test_a_child_that_died_between_two_inputs_is_told_of_once(tmp_path):
    video = str(write_video(tmp_path / "a.mp4"))
    with DecodeProcess(stall_timeout_s=60, memory_mb=1024) as process:
        expected, media = drained(process(video, 48, 16))
        media.take(media.candidates)
        process._process.kill()
        process._process.wait()
        with pytest.raises(DecoderDied, match="SIGKILL"):
            drained(process(video, 48, 16))
        np.testing.assert_array_equal(drained(process(video, 48, 16))[0], expected)


def test_work_that_takes_too_long_is_ended_however_alive_it_seems(tmp_path):
    (tmp_path / "wish").write_text("never end")
    with HostileProcess(stall_timeout_s=600, memory_mb=1024, timeout_s=2) as process:
        with pytest.raises(DecoderDied, match="not done after 2 s") as raised:
            drained(process(str(tmp_path / "wish"), 48, 16))
        assert raised.value.error_class == "DecoderTooSlow"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MediaLimits(max_duration_s=0.9), "1 s long; at most 1 s"),
        (MediaLimits(max_frame_pixels=6000), "96 × 64 pixels; at most 6000"),
    ],
)
def test_limits_reach_the_child(limits, message, tmp_path):
    video = str(write_video(tmp_path / "a.mp4", fps=24))
    with DecodeProcess(stall_timeout_s=60, memory_mb=1024, limits=limits) as process:
        with pytest.raises(Unreadable, match=message) as raised:
            drained(process(video, 48, 16))
        assert raised.value.error_class == "BeyondLimits"


def test_a_reader_that_stops_half_way_leaves_no_stale_answer(process, tmp_path):
    first, second = (
        write_video(tmp_path / f"{i}.mp4", shot_lengths=(250, 250), size=(256, 64), seed=i) for i in range(2)
    )
    chunks = process(str(first), 48, 16)
    next(chunks)
    chunks.close()
    frames, _ = drained(process(str(second), 48, 16))
    np.testing.assert_array_equal(frames, drained(read_media(str(second), 48, 16))[0])


def test_a_hanging_child_does_not_outlive_a_parent_that_is_killed(tmp_path):
    (tmp_path / "wish").write_text("hang")
    script = (
        "import sys; from tests.extraction.test_decode_process import HostileProcess\n"
        "process = HostileProcess(stall_timeout_s=600, memory_mb=1024); process._start()\n"
        "print(process._process.pid, flush=True); next(process(sys.argv[1], 48, 16))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "wish")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
