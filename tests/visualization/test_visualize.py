"""From a real file, or from a cache, to pictures and numbers; nothing replaced or mixed up unasked."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from linvt.backbones import load_backbone
from linvt.extraction.identity import Extraction
from linvt.serving.feature_spec import trained_feature_spec
from linvt.shards.commit import PendingSample
from linvt.shards.index import write_index
from linvt.shards.layout import EXTRACTION
from linvt.shards.sample import SampleInfo, tokens_to_bytes
from linvt.shards.storage import open_storage
from linvt.shots import load_detector
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig
from linvt.visualization.config import VisualizeConfig
from linvt.visualization.inputs import PICTURE_SIDE_PX, cached_sample, encode_file, pictures_of
from linvt.visualization.visualize import visualize
from tests.media import write_image, write_video
from tests.shards.cache_builder import write_one_shard
from tests.tiny_models import save_tiny_llava

QUESTION = "what color is the ball ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    backbone = load_backbone(str(save_tiny_llava(tmp_path_factory.mktemp("llava"))))
    torch.manual_seed(0)
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=200)
    VideoLLM(backbone, LinVT(config)).save_pretrained(directory := tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "v.mp4", shot_lengths=(12, 20), size=(640, 360))


def _config(model: Path, out: Path, **fields) -> VisualizeConfig:
    defaults = {"model": model, "question": QUESTION, "num_frames": 6, "detector": "none", "max_new_tokens": 4}
    return VisualizeConfig(out=out, **defaults | fields)


def _numbers(out: Path) -> dict:
    return json.loads((out / "evidence.json").read_text())


def test_a_file_becomes_pictures_a_page_and_numbers(model, video, tmp_path) -> None:
    result = visualize(_config(model, tmp_path / "out", video=str(video), answer_tokens=True))
    names = ["answer_tokens.png", "evidence.html", "evidence.json", "frames.png", "time.png"]
    assert result["files"] == names == sorted(file.name for file in (tmp_path / "out").iterdir())
    for name in ("answer_tokens.png", "frames.png", "time.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width == 2100
    numbers = _numbers(tmp_path / "out")
    weights = np.array(numbers["weights"])
    assert weights.shape == (6, 64)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert numbers["frame_weights"] == pytest.approx(weights.sum(-1).tolist())
    assert [token["text"] for token in numbers["answer_tokens"]] == result["answer"].split()
    assert result["top_moments"][0]["weight"] == pytest.approx(max(numbers["frame_weights"]), abs=1e-4)
    assert result["pictures"] is True


def test_the_weights_are_those_of_the_library(model, video, tmp_path) -> None:
    visualize(_config(model, tmp_path, video=str(video)))
    llm = VideoLLM.from_pretrained(model)
    spec, batch_size = trained_feature_spec(model, detector="none", num_frames=6)
    cached = encode_file(str(video), llm.backbone, spec, load_detector("none"), batch_size=batch_size)
    answer = llm.answer(cached, QUESTION, max_new_tokens=4)
    assert _numbers(tmp_path)["answer"] == answer.text
    assert np.allclose(_numbers(tmp_path)["weights"], answer.weights, atol=1e-6)


def test_another_answer_than_the_models_can_be_explained(model, video, tmp_path) -> None:
    own = visualize(_config(model, tmp_path / "own", video=str(video)))
    given = visualize(_config(model, tmp_path / "given", video=str(video), answer="blue star"))
    assert given["answer"] == "blue star" != own["answer"]
    assert _numbers(tmp_path / "given")["weights"] != _numbers(tmp_path / "own")["weights"]


def _cache(directory: Path, model: Path, video: Path) -> str:
    """An extraction's folder with one video, through the extraction's own functions."""
    llm = VideoLLM.from_pretrained(model)
    spec, batch_size = trained_feature_spec(model, detector="none", num_frames=6)
    cached = encode_file(str(video), llm.backbone, spec, load_detector("none"), batch_size=batch_size)
    info = SampleInfo(
        **{name: getattr(cached, name) for name in ("key", "video_id", "uri", "sha256", "kind", "grid", "duration_s")},
        timestamps_s=tuple(cached.timestamps_s.tolist()),
        shots=tuple(map(tuple, cached.shots.tolist())),
        shot_index=tuple(cached.shot_index.tolist()),
        feature_id=cached.feature_id,
    )
    sample = PendingSample(
        slot=0,
        **{name: getattr(cached, name) for name in ("key", "video_id", "uri", "sha256", "kind", "grid", "duration_s")},
        shape=tuple(cached.tokens.shape),
        load=lambda: (info.to_json(), tokens_to_bytes(cached.tokens, "bf16")),
    )
    storage = open_storage(str(directory))
    write_index(storage, [write_one_shard(storage, 0, [sample])])
    extraction = Extraction(
        feature=spec, samples_per_shard=1, encode_batch_size=16, encode_dtype="float32", threads_per_worker=1
    )
    (directory / EXTRACTION).write_bytes(extraction.to_json())
    return str(directory)


def test_a_cached_sample_gives_the_same_evidence_as_its_file(model, video, tmp_path, caplog) -> None:
    moved = Path(shutil.copy(video, tmp_path / "v.mp4"))
    cache = _cache(tmp_path / "cache", model, moved)
    by_file = visualize(_config(model, tmp_path / "file", video=str(moved)))
    by_id = visualize(_config(model, tmp_path / "id", cache=cache, sample="v.mp4"))
    assert by_id["pictures"]
    assert by_id["top_moments"] == by_file["top_moments"]
    weights = [np.array(_numbers(tmp_path / name)["weights"]) for name in ("id", "file")]
    assert np.allclose(*weights, atol=1e-6)

    moved.rename(tmp_path / "elsewhere.mp4")
    key = cached_sample(cache, "v.mp4").key
    with caplog.at_level(logging.WARNING):
        gone = visualize(_config(model, tmp_path / "gone", cache=cache, sample=key))
    assert gone["pictures"] is False
    assert "--video says where the file is now" in caplog.text
    found = _config(model, tmp_path / "found", cache=cache, sample=key, video=str(tmp_path / "elsewhere.mp4"))
    assert visualize(found)["pictures"] is True
    write_video(tmp_path / "other.mp4", seed=5)
    with pytest.raises(ValueError, match=r"is not the file that v\.mp4's tokens were made from"):
        visualize(_config(model, tmp_path / "other", cache=cache, sample=key, video=str(tmp_path / "other.mp4")))
    with pytest.raises(ValueError, match=r"no such key or video id; it has v\.mp4"):
        visualize(_config(model, tmp_path / "no", cache=cache, sample="w.mp4"))


def test_pictures_are_the_frames_of_the_tokens_in_print_size(model, video) -> None:
    llm = VideoLLM.from_pretrained(model)
    spec, batch_size = trained_feature_spec(model, detector="none", num_frames=6)
    cached = encode_file(str(video), llm.backbone, spec, load_detector("none"), batch_size=batch_size)
    pictures = pictures_of(cached, str(video), max_candidates=spec.max_candidates)
    assert pictures.shape == (6, 288, PICTURE_SIDE_PX, 3)
    # Encoded anew, the same frames give nearly the same tokens; another frame's would be far off.
    again = llm.backbone.encode_frames(pictures).tokens
    distances = (again[:, None] - cached.tokens.float()[None]).abs().mean((2, 3))
    assert distances.argmin(1).tolist() == list(range(6))


def test_results_are_kept_replaced_or_refused_as_asked(model, video, tmp_path) -> None:
    first = visualize(_config(model, tmp_path, video=str(video)))
    before = (tmp_path / "frames.png").stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds results already"):
        visualize(_config(model, tmp_path, video=str(video)))
    assert visualize(_config(model, tmp_path, video=str(video), on_existing="resume")) == first
    assert (tmp_path / "frames.png").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="differ in question; pass --on-existing overwrite"):
        visualize(_config(model, tmp_path, video=str(video), on_existing="resume", question="what ?"))
    again = visualize(_config(model, tmp_path, video=str(video), on_existing="overwrite", question="what ?"))
    assert _numbers(tmp_path)["made_with"]["question"] == "what ?"
    assert again["answer"] == _numbers(tmp_path)["answer"]


def test_what_cannot_be_drawn_is_told(model, tmp_path) -> None:
    image = write_image(tmp_path / "i.png")
    with pytest.raises(ValueError, match="is an image: it goes past LinVT"):
        visualize(_config(model, tmp_path / "out", video=str(image)))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read"):
        visualize(_config(model, tmp_path / "out", video=str(tmp_path / "text.mp4")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give --video FILE"),
        ({"cache": "c"}, "--cache and --sample go together"),
        ({"video": "v", "sample": "s"}, "--cache and --sample go together"),
        ({"video": "v", "question": " "}, "--question is empty"),
        ({"video": "v", "answer": ""}, "--answer is empty"),
        ({"video": "v", "max_pictures": 0}, "at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        VisualizeConfig(**{"question": QUESTION, "out": tmp_path} | fields)
