"""AutoShot's weights and threshold on their way to the decoders and to the endpoint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from linvt.backbones import vision_fingerprint
from linvt.extraction.config import ExtractConfig
from linvt.extraction.identity import Extraction, FeatureSpec, read_extraction
from linvt.serving.config import ServeConfig
from linvt.shards.storage import open_storage
from linvt.shots import detector_fingerprint, load_detector, shots_from_probabilities
from linvt.video import decode_video
from linvt.video_llm import FORMAT
from pipelines._decoder import Decoder
from pipelines.extract import extract
from pipelines.serve import _feature_spec
from tests.media import write_video
from tests.shots.autoshot_weights import undecided_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "ckpt_0_200_0.pth"
    torch.save({"net": undecided_weights()}, path)
    return path


@pytest.fixture
def config(checkpoint, tiny_llava, tmp_path, monkeypatch) -> ExtractConfig:
    write_video(tmp_path / "videos/a.mp4", shot_lengths=(40, 35, 30))
    monkeypatch.chdir(checkpoint.parent)  # where workers are not
    return ExtractConfig(
        videos=str(tmp_path / "videos"),
        backbone=tiny_llava,
        out=str(tmp_path / "out"),
        detector="autoshot",
        detector_weights=checkpoint.name,
        num_frames=6,
        encode_batch_size=4,
        num_decode_workers=1,
        num_encode_workers=1,
    )


@pytest.mark.ray
def test_an_extraction_has_the_shots_of_the_detector_at_its_own_threshold(config, ray_cluster):
    extract(config)
    extraction = read_extraction(open_storage(config.out))
    assert extraction.feature.detector == detector_fingerprint("autoshot", config.detector_weights)
    assert (extraction.feature.shot_threshold, extraction.detector_dtype) == (0.296, "float32")
    [row] = pq.read_table(Path(config.out, "videos.parquet")).to_pylist()
    torch.set_num_threads(config.threads_per_worker)
    frames = decode_video(Path(config.videos, "a.mp4"), max_side=64, max_candidates=8).detector_frames
    probabilities = load_detector("autoshot", weights=config.detector_weights).predict(frames)
    np.testing.assert_array_equal(np.float32(row["boundary_probabilities"]), probabilities)
    assert row["shots"] == [[shot.start, shot.end] for shot in shots_from_probabilities(probabilities, 0.296)]
    with pytest.raises(ValueError, match=r"detector \(there: 'autoshot-.*shot_threshold \(there: 0.296, asked: 0.5"):
        extract(replace(config, detector="transnetv2", detector_weights=None, on_existing="resume"))


def test_weights_that_cannot_be_meant_are_refused_before_anything_is_written(config, tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    for changes, message in (
        ({"detector_weights": None}, "needs its weights: pass --detector-weights FILE"),
        ({"detector": "transnetv2"}, "--detector-weights is for --detector autoshot"),
        ({"detector_weights": "nowhere.pth"}, r"there is no file nowhere\.pth"),
        ({"detector_weights": str(tmp_path / "text.pth")}, "is no checkpoint of AutoShot"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(replace(config, encode_dtype="float32", **changes))
    assert not Path(config.out).exists()


def test_a_node_with_other_weights_decodes_nothing(checkpoint, tmp_path):
    feature = FeatureSpec(
        vision_fingerprint="v",
        max_side=48,
        max_candidates=16,
        cache_dtype="bf16",
        num_frames=5,
        detector=detector_fingerprint("autoshot", checkpoint),
        shot_threshold=0.296,
    )
    asked = Extraction(
        feature=feature, samples_per_shard=4, encode_batch_size=4, encode_dtype="float32", threads_per_worker=1
    )
    other = undecided_weights()
    other["cls_layer1.linear.bias"] += 1
    torch.save({"net": other}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="'autoshot' is another on this node than where the extraction was started"):
        Decoder("autoshot", str(tmp_path / "other.pth"), asked, str(tmp_path / "out"), 60, 1024)


def test_the_endpoint_takes_a_threshold_from_the_training_of_the_same_detector_alone(checkpoint, tiny_llava, tmp_path):
    feature = {"vision_fingerprint": vision_fingerprint(tiny_llava), "num_frames": 8}

    def threshold(trained: dict, **served) -> float:
        extraction = {"feature": feature | trained} if trained else {}
        model = {"format": FORMAT, "version": 1, "backbone": tiny_llava, "extraction": extraction}
        (tmp_path / "config.json").write_text(json.dumps(model))
        return _feature_spec(ServeConfig(model=tmp_path, **served))[0].shot_threshold

    autoshot = {"detector": "autoshot", "detector_weights": checkpoint}
    on_transnetv2 = {"detector": "transnetv2-of-old", "shot_threshold": 0.4}
    on_autoshot = {"detector": detector_fingerprint("autoshot", checkpoint), "shot_threshold": 0.2}
    assert threshold(on_transnetv2) == 0.4
    assert threshold(on_transnetv2, **autoshot) == 0.296
    assert threshold(on_autoshot, **autoshot) == 0.2
    assert threshold(on_autoshot) == 0.5
    assert threshold({}, **autoshot) == 0.296
