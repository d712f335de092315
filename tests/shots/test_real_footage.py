"""Labelled real footage (LINVT_SHARED/videos): every file decodes, and every labelled hard cut is found."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from benchmarks.shots_on_real_footage import is_explained, match_entry, read_manifest
from linvt.shots import ShotDetector, fast_detector_dtype, load_detector
from linvt.video import decode_video

SHARED = os.environ.get("LINVT_SHARED")
VIDEOS = Path(SHARED) / "videos" if SHARED else None
MANIFEST = read_manifest(VIDEOS) if VIDEOS else {}

pytestmark = pytest.mark.skipif(VIDEOS is None, reason="set LINVT_SHARED to the folder that holds videos/manifest.json")


@pytest.fixture(scope="module")
def detector() -> Iterator[ShotDetector]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_detector("transnetv2", dtype=fast_detector_dtype())
    torch.set_num_threads(threads)


def test_all_files_are_there() -> None:
    assert len(MANIFEST) == 19


@pytest.mark.slow  # all files together: about 90 CPU seconds, nearly all of them the detector's
@pytest.mark.parametrize("name", MANIFEST)
def test_labelled_cuts_are_found(name: str, detector: ShotDetector) -> None:
    assert VIDEOS is not None
    video = decode_video(VIDEOS / name, max_side=64, max_candidates=32)
    with av.open(str(VIDEOS / name)) as container:  # every frame, at its own PTS
        stream = container.streams.video[0]
        stored_s = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
    np.testing.assert_allclose(video.timestamps_s + video.info.start_s, stored_s, atol=1e-6)
    assert video.info.num_bad_packets == 0

    match = match_entry(video, detector, MANIFEST[name])
    assert match.missed == ()
    assert [cut for cut in match.extra if not is_explained(cut, MANIFEST[name])] == []


def test_formats_are_told_right() -> None:
    assert VIDEOS is not None
    expected = {
        "torchcodec_nasa_13013_rotated.mp4": ("h264", 270, 480, 90),
        "torchcodec_nasa_13013_hdr.mp4": ("hevc", 320, 180, 0),
        "intel_asl_book.mkv": ("h264", 640, 480, 0),
    }
    for name, facts in expected.items():
        info = decode_video(VIDEOS / name, max_side=64, max_candidates=4).info
        assert (info.codec, info.width, info.height, info.rotation_deg) == facts


def test_variable_frame_rate_keeps_its_times() -> None:
    assert VIDEOS is not None
    gaps_s = np.diff(decode_video(VIDEOS / "dog_vfr_h264.mp4", max_side=64, max_candidates=4).timestamps_s)
    assert gaps_s.max() > 10 * gaps_s.min()
