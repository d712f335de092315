"""AutoShot: our network against the original's numbers, its checkpoint files, and what a detector promises."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from linvt.extraction.config import ExtractConfig
from linvt.extraction.decode import decode_input
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import make_plan
from linvt.serving.encoding import DecodeOrder, decode
from linvt.shots import Shot, detector_fingerprint, load_detector, published_threshold, shots_from_probabilities
from linvt.shots.autoshot import AutoShot, AutoShotDetector, read_weights, weight_shapes
from linvt.shots.boundaries import TransitionScore, score_transitions
from linvt.video import decode_video
from tests.media import write_video
from tests.shots.autoshot_weights import GOLDEN, published_shapes, undecided_weights, weights_by_rule
from tests.shots.test_transnetv2 import moving_scenes

SHARED = os.environ.get("LINVT_SHARED")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def detector() -> AutoShotDetector:
    return AutoShotDetector(undecided_weights())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A file like the published one."""
    path = tmp_path_factory.mktemp("weights") / "ckpt_0_200_0.pth"
    torch.save({"net": undecided_weights()}, path)
    return path


def test_a_checkpoint_has_the_originals_names_and_shapes() -> None:
    assert weight_shapes() == published_shapes()


@pytest.mark.golden
@pytest.mark.parametrize("head", ["one_hot", "many_hot"])
def test_the_network_is_the_original(head: str) -> None:
    golden, weights = load_file(GOLDEN / "golden.safetensors"), weights_by_rule()
    if head == "many_hot":  # detection uses the other head alone; all below it is the same
        weights |= {name.replace("layer2", "layer1"): weights[name] for name in weights if "cls_layer2" in name}
    with torch.inference_mode():
        logits = AutoShot(weights)(torch.from_numpy(golden["frames"])).numpy()
    np.testing.assert_allclose(logits, golden[f"{head}_logits"], rtol=0, atol=1e-4)


@pytest.mark.skipif(SHARED is None, reason="set LINVT_SHARED to the folder that holds golden/autoshot")
def test_published_predictions_give_the_published_scores() -> None:
    assert SHARED is not None
    published = np.load(Path(SHARED) / "golden/autoshot/shot_test_set.npz")
    videos = [name.removeprefix("gt_") for name in published.files if name.startswith("gt_")]
    assert len(videos) == 200
    score = TransitionScore()
    for video in videos:
        found = shots_from_probabilities(published[f"pred_{video}"], published_threshold("autoshot"))
        score += score_transitions(found, [Shot(start, last + 1) for start, last in published[f"gt_{video}"].tolist()])
    assert [round(value, 4) for value in (score.f1, score.precision, score.recall)] == [0.8405, 0.8473, 0.8339]


@pytest.mark.parametrize("count", [1, 2, 60, 99, 100, 101])
def test_windows_and_padding_are_the_originals(detector: AutoShotDetector, count: int) -> None:
    """Windows of 100 frames from every 50th on; a frame's probability is that of the window whose middle it is in."""
    frames = moving_scenes([31, 17, 50, 3], seed=8)[:count]
    padded = np.concatenate([frames[:1].repeat(25, axis=0), frames, frames[-1:].repeat(25 + -count % 50, axis=0)])
    windows = np.stack([padded[start : start + 100] for start in range(0, len(padded) - 50, 50)])
    with torch.inference_mode():
        logits = torch.cat([detector._network(torch.from_numpy(window)[None]) for window in windows])
    expected = torch.sigmoid(logits[:, 25:75]).flatten()[:count].numpy()
    np.testing.assert_array_equal(detector.predict(frames), expected)


def test_predictions_are_reproducible_and_own_to_the_video(detector: AutoShotDetector) -> None:
    frames = moving_scenes([12, 60], seed=4)
    first = detector.predict(frames)
    detector.predict(moving_scenes([5], seed=5))
    np.testing.assert_array_equal(first, detector.predict(frames))
    np.testing.assert_array_equal(first, AutoShotDetector(undecided_weights()).predict(frames.copy()))
    assert (first.dtype, first.shape) == (np.float32, (72,))
    assert 0 < (first > published_threshold("autoshot")).sum() < 72, "the frames exercise nothing"


@pytest.mark.parametrize("size", [1, 49, 130])
def test_frames_that_come_in_chunks_give_the_same_bits(detector: AutoShotDetector, size: int) -> None:
    frames = moving_scenes([70, 40, 45], seed=7)
    chunks = (frames[start : start + size] for start in range(0, len(frames), size))
    np.testing.assert_array_equal(detector.predict_stream(chunks), detector.predict(frames))
    assert detector.predict_stream([]).shape == (0,)


def test_bad_frames(detector: AutoShotDetector) -> None:
    with pytest.raises(ValueError, match=r"frames must be uint8 \[F >= 1, 27, 48, 3\], got float32"):
        detector.predict(np.zeros((3, 27, 48, 3), np.float32))


def test_loading_and_predicting_leave_global_state_alone(checkpoint: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    numpy, python = np.random.get_state(legacy=False), random.getstate()
    load_detector("autoshot", weights=checkpoint).predict(np.zeros((1, 27, 48, 3), np.uint8))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy)
    assert random.getstate() == python


def test_the_fingerprint_is_of_the_tensors_and_not_of_their_file(
    detector: AutoShotDetector, checkpoint: Path, tmp_path: Path
) -> None:
    save_file(undecided_weights(), tmp_path / "same.safetensors")
    save_file(weights_by_rule(), tmp_path / "other.safetensors")
    loaded = load_detector("autoshot", weights=tmp_path / "same.safetensors")
    assert loaded.name == "autoshot"
    assert loaded.fingerprint == detector.fingerprint == detector_fingerprint("autoshot", checkpoint)
    assert detector_fingerprint("autoshot", tmp_path / "other.safetensors") != detector.fingerprint
    assert detector.fingerprint.startswith("autoshot-")  # serving tells kinds of detectors by it
    frames = moving_scenes([20, 20], seed=9)
    np.testing.assert_array_equal(loaded.predict(frames), detector.predict(frames))
    from_checkpoint = load_detector("autoshot", weights=str(checkpoint))
    np.testing.assert_array_equal(from_checkpoint.predict(frames), detector.predict(frames))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = weights_by_rule()
    del weights["fc1_0.linear.bias"]
    weights["Layer_5_12.share.weight"] = torch.zeros(1)
    weights["Layer_1_8.batch_norm.bias"] = torch.zeros(65)
    torch.save({"net": weights}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not hold AutoShot's network") as refused:
        read_weights(tmp_path / "a.pth")
    assert "missing: fc1_0.linear.bias;" in str(refused.value)
    assert "unexpected: Layer_5_12.share.weight;" in str(refused.value)
    assert "of another shape: Layer_1_8.batch_norm.bias [65] instead of [64]" in str(refused.value)


class _Executed:
    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)

    def __init__(self, folder: str) -> None:
        self.folder = folder


def test_what_is_no_checkpoint_is_refused_and_never_executed(tmp_path: Path, checkpoint: Path) -> None:
    truncated, bare, hostile = tmp_path / "truncated.pth", tmp_path / "bare.pth", tmp_path / "hostile.pth"
    truncated.write_bytes(checkpoint.read_bytes()[:100_000])
    torch.save(torch.zeros(3), bare)
    torch.save({"net": weights_by_rule(), "epoch": _Executed(str(tmp_path / "executed"))}, hostile)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"net": torch.zeros(3)}, tmp_path / "tensor.pth")
    torch.save({"net": {"fc1.linear.bias": 3}}, tmp_path / "number.pth")
    torch.save({"state_dict": weights_by_rule()}, tmp_path / "elsewhere.pth")
    for path in (*tmp_path.glob("*.pth"), tmp_path / "text.safetensors"):
        with pytest.raises(ValueError, match=rf"{path.name} (is no checkpoint of AutoShot|does not hold AutoShot's)"):
            read_weights(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match=r"there is no file .*nowhere"):
        read_weights(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("use", [load_detector, detector_fingerprint])
def test_weights_are_for_autoshot_and_autoshot_needs_them(use) -> None:
    with pytest.raises(ValueError, match=r"--detector-weights FILE.*ckpt_0_200_0\.pth.*github\.com/wentaozhu/AutoShot"):
        use("autoshot")
    for other in ("transnetv2", "none"):
        with pytest.raises(ValueError, match=f"--detector-weights is for --detector autoshot; '{other}' takes none"):
            use(other, weights="a.pth")


def test_it_computes_in_float32_alone(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="float32 alone"):
        load_detector("autoshot", weights=checkpoint, dtype="bfloat16")
    with pytest.raises(ValueError, match="--detector-dtype bfloat16 is for --detector transnetv2"):
        ExtractConfig(videos="v", backbone="b", out="o", detector="autoshot", detector_dtype="bfloat16")


def test_extraction_and_serving_keep_the_frames_of_its_shots(
    detector: AutoShotDetector, checkpoint: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", shot_lengths=(40, 35, 30), size=(96, 64))
    spec = FeatureSpec(
        vision_fingerprint="v",
        max_side=48,
        max_candidates=16,
        cache_dtype="bf16",
        num_frames=5,
        detector=detector.fingerprint,
        shot_threshold=published_threshold("autoshot"),
    )
    [planned] = make_plan(list_inputs(str(path)), 4).rows
    row, frames = decode_input(planned, detector, spec)
    assert frames is not None
    expected = detector.predict(decode_video(path, max_side=48, max_candidates=16).detector_frames)
    np.testing.assert_array_equal(row.boundary_probabilities, expected)
    shots = shots_from_probabilities(expected, 0.296)
    assert row.shots == [[shot.start, shot.end] for shot in shots]
    assert len(shots) > 1, "the frames exercise nothing"

    order = DecodeOrder(
        kind="video",
        spec=replace(spec, detector="another's, which decides nothing here"),
        detector="autoshot",
        detector_weights=checkpoint,
    )
    served, served_frames = decode(order, path)
    np.testing.assert_array_equal(served.boundary_probabilities, expected)
    np.testing.assert_array_equal(served_frames, frames)
