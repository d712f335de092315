"""The work on one input, without Ray."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from transformers.models.qwen2_vl import Qwen2VLImageProcessor

from linvt.backbones import load_backbone
from linvt.extraction.decode import decode_input
from linvt.extraction.encode import encode_input
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import make_plan
from linvt.extraction.rows import VIDEOS_SCHEMA, VideoRow, rows_from_table, rows_to_table
from linvt.shards.sample import CachedVideo
from linvt.shots import load_detector
from tests.media import write_image, write_video
from tests.tiny_models import save_tiny_llava

SPEC = FeatureSpec(
    vision_fingerprint="v",
    max_side=48,
    max_candidates=16,
    cache_dtype="bf16",
    num_frames=5,
    detector="none",
    shot_threshold=0.5,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.set_num_threads(1)
    return load_backbone(str(save_tiny_llava(tmp_path_factory.mktemp("backbone"))), parts={"vision"})


def _decode(uri: str | Path, spec: FeatureSpec = SPEC) -> tuple[VideoRow, np.ndarray | None]:
    [planned] = make_plan(list_inputs(str(uri)), 4).rows
    return decode_input(planned, load_detector("none"), spec)


def test_a_video_becomes_frames_facts_and_a_key(tmp_path):
    path = write_video(tmp_path / "a.mp4", shot_lengths=(40,), size=(96, 64), fps=10)
    row, frames = _decode(path)
    assert frames is not None
    assert frames.shape == (5, 32, 48, 3)
    assert row.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row.status, row.kind, row.width, row.height, row.num_frames) == ("committed", "video", 96, 64, 40)
    assert row.size_bytes == path.stat().st_size
    assert row.shots == [[0, 40]]
    np.testing.assert_allclose(row.shots_s, [[0.0, 4.0]])
    np.testing.assert_allclose(row.kept_timestamps_s, np.array(row.kept_frames) / 10)
    assert len(row.boundary_probabilities) == 40
    # The same file elsewhere under the same name has the same key; under another name it has not.
    (tmp_path / "b").mkdir()
    assert _decode(path.rename(tmp_path / "b/a.mp4"))[0].key == row.key
    assert _decode((tmp_path / "b/a.mp4").rename(tmp_path / "b/c.mp4"))[0].key != row.key


def test_an_image_is_known_by_its_content(tmp_path):
    row, frames = _decode(write_image(tmp_path / "x.png").rename(tmp_path / "x.mp4"))
    assert frames is not None
    assert len(frames) == 1
    assert (row.kind, row.duration_s, row.kept_timestamps_s, row.kept_shot_index) == ("image", 0.0, [0.0], [0])


def test_media_on_other_filesystems_give_the_same(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    MemoryFileSystem().pipe("/remote/a.mp4", path.read_bytes())
    (here, frames_here), (there, frames_there) = _decode(path), _decode("memory://remote/a.mp4")
    np.testing.assert_array_equal(frames_here, frames_there)
    assert (here.key, here.sha256, here.kept_frames) == (there.key, there.sha256, there.kept_frames)
    assert there.uri == "memory:///remote/a.mp4"


@pytest.mark.parametrize(
    ("content", "stage", "error_class"),
    [
        (b"", "open", "EmptyFile"),
        (b"no video at all", "open", "InvalidDataError"),
        (b"\x89PNG\r\n\x1a\n", "open", None),
    ],
)
def test_bad_media_is_a_row_not_an_exception(tmp_path, content, stage, error_class):
    (tmp_path / "x.mp4").write_bytes(content)
    row, frames = _decode(tmp_path / "x.mp4")
    assert frames is None
    assert (row.status, row.stage, row.key) == ("quarantined", stage, None)
    assert row.error_class == error_class or error_class is None
    assert row.message
    assert row.sha256 == hashlib.sha256(content).hexdigest()


def test_a_file_that_vanished_is_a_row(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    [planned] = make_plan(list_inputs(str(path)), 4).rows
    path.unlink()
    row, frames = decode_input(planned, load_detector("none"), SPEC)
    assert frames is None
    assert (row.status, row.stage, row.error_class) == ("quarantined", "fetch", "FileNotFoundError")


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        # Shots of 10 and 30 frames at 10 frames/s, every frame a candidate.
        ({"sampling": "shots", "num_frames": 4}, [2, 7, 17, 32]),
        ({"sampling": "shots", "num_frames": 2}, [5, 25]),
        ({"sampling": "uniform", "num_frames": 4}, [5, 15, 25, 35]),
        ({"sampling": "uniform", "num_frames": 2}, [10, 30]),
        ({"sampling": "fps", "fps": 0.5, "num_frames": 8}, [10, 30]),
        ({"sampling": "fps", "fps": 0.51, "num_frames": 8}, [6, 20, 33]),
        ({"sampling": "fps", "fps": 100.0, "num_frames": 2}, [10, 30]),
        ({"sampling": "fps", "fps": 0.001, "num_frames": 8}, [20]),
    ],
)
def test_which_frames_are_kept(tmp_path, changes, kept):
    path = write_video(tmp_path / "a.mp4", shot_lengths=(10, 30), fps=10)
    [planned] = make_plan(list_inputs(str(path)), 4).rows
    spec = replace(SPEC, max_candidates=64, **changes)
    row, frames = decode_input(planned, _CutAt(10), spec)
    assert row.shots == [[0, 10], [10, 40]]
    assert row.kept_frames == kept
    assert frames is not None
    assert len(frames) == len(kept)


def test_a_single_frame_costs_no_shot_detection(tmp_path):
    class Unwanted(_CutAt):
        def predict_stream(self, chunks) -> np.ndarray:
            assert list(chunks) == []
            return np.zeros(0, np.float32)

    for path in (write_image(tmp_path / "a.png"), write_video(tmp_path / "b.mp4", shot_lengths=(1,))):
        [planned] = make_plan(list_inputs(str(path)), 4).rows
        row, frames = decode_input(planned, Unwanted(0), SPEC)
        assert (row.shots, row.kept_frames, row.boundary_probabilities.tolist()) == ([[0, 1]], [0], [0.0])
        assert frames is not None


class _CutAt:
    """A detector that knows where the cut is."""

    name, fingerprint = "cut", "cut"

    def __init__(self, first_frame: int) -> None:
        self._last = first_frame - 1

    def predict(self, frames: np.ndarray) -> np.ndarray:
        return (np.arange(len(frames)) == self._last).astype(np.float32)

    def predict_stream(self, chunks) -> np.ndarray:
        return self.predict(np.concatenate(list(chunks)))


@pytest.mark.parametrize("cache_dtype", ["bf16", "int8"])
def test_encoding_gives_a_sample_that_reads_back(tmp_path, backbone, cache_dtype):
    spec = replace(SPEC, cache_dtype=cache_dtype)
    row, frames = _decode(write_video(tmp_path / "a.mp4", shot_lengths=(30,)), spec)
    assert frames is not None
    row, info_json, tokens = encode_input(row, frames, backbone, spec, batch_size=4, device="cpu")
    assert info_json is not None
    assert tokens is not None
    video = CachedVideo.from_bytes(info_json, tokens)
    assert video.tokens.shape == (5, row.tokens_per_frame, row.hidden_size) == (5, 64, 64)
    assert (video.key, video.video_id, video.grid, video.feature_id) == (row.key, "a.mp4", (8, 8), spec.feature_id)
    again = encode_input(row, frames, backbone, spec, batch_size=4, device="cpu")
    assert again[1:] == (info_json, tokens)


def test_tokens_that_are_not_finite_quarantine_the_input(tmp_path):
    broken = load_backbone(str(save_tiny_llava(tmp_path / "backbone")), parts={"vision"})
    with torch.no_grad():
        next(broken.model.parameters()).view(-1)[0] = torch.nan
    row, frames = _decode(write_video(tmp_path / "a.mp4"))
    assert frames is not None
    row, info_json, tokens = encode_input(row, frames, broken, SPEC, batch_size=4, device="cpu")
    assert (row.status, row.stage, row.error_class) == ("quarantined", "encode", "NonFiniteTokens")
    assert (row.key, info_json, tokens) == (None, None, None)


def test_frames_of_a_shape_that_the_image_llm_refuses_quarantine_the_input(tmp_path):
    class Picky:
        def encode_frames(self, frames, *, batch_size, kind):
            Qwen2VLImageProcessor()(images=list(frames), return_tensors="pt")
            raise ValueError("something else")

    def encode(path: Path):
        spec = replace(SPEC, max_side=1000)
        row, frames = _decode(path, spec)
        backbone: Any = Picky()
        assert frames is not None
        return encode_input(row, frames, backbone, spec, batch_size=4, device="cpu")

    row, info_json, tokens = encode(write_video(tmp_path / "thin.mp4", size=(1000, 4)))
    assert (row.status, row.stage, row.error_class) == ("quarantined", "encode", "FramesRefused")
    assert "no frames of 1000x4: absolute aspect ratio must be smaller than 200" in str(row.message)
    assert (row.key, info_json, tokens) == (None, None, None)
    with pytest.raises(ValueError, match="something else"):
        encode(write_video(tmp_path / "usual.mp4"))


def test_rows_survive_their_table(tmp_path):
    row, _ = _decode(write_video(tmp_path / "a.mp4"))
    row = replace(row, boundary_probabilities=[0.0, 0.5], timestamps_s=[0.0, 1 / 3], candidate_frames=[0], grid=[8, 8])
    table = rows_to_table([row, row.quarantined("decode", "X", "why")])
    assert table.schema == VIDEOS_SCHEMA
    assert rows_from_table(table.append_column("more", pa.array([1, 2])))[0] == row
    assert rows_from_table(table)[1].status == "quarantined"
