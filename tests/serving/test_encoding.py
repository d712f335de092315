"""One media file of a request: the limits, and tokens equal to the extraction's."""

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from linvt.backbones import load_backbone
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.reading import read_media
from linvt.serving.encoding import DecodeOrder, decode, decode_order, encode
from linvt.serving.errors import RequestError
from linvt.serving.media import MediaRules, fetch_media
from linvt.serving.requests import VideoOptions
from linvt.video import MediaLimits
from tests.media import write_image, write_video
from tests.tiny_models import save_tiny_llava

SPEC = FeatureSpec(
    vision_fingerprint="v",
    max_side=64,
    max_candidates=16,
    cache_dtype="bf16",
    num_frames=8,
    detector="none",
    shot_threshold=0.5,
)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("media")
    write_video(directory / "video.mp4", shot_lengths=(24, 24), fps=12)  # four seconds
    write_image(directory / "image.png")
    return directory


def order_for(path: Path, kind: str = "video", max_frames: int = 32, **options) -> DecodeOrder:
    local = asyncio.run(fetch_media(path.as_uri(), MediaRules(allowed_dirs=(path.parent,)), path.parent))
    return decode_order(
        local.container, kind, VideoOptions(**options), spec=SPEC, detector="none", max_frames=max_frames
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 8), ({"num_frames": 3}, 3), ({"num_frames": 32}, 32), ({"fps": 2}, 8), ({"fps": 99}, 32)],
)
def test_as_many_frames_as_asked(media, options, count):
    row, frames = decode(order_for(media / "video.mp4", **options), media / "video.mp4")
    assert frames is not None
    assert len(frames) == len(row.kept_timestamps_s) == count
    assert frames.shape[1:] == (43, 64, 3)


def test_tokens_are_those_of_the_image_llms_own_path(media, tmp_path):
    torch.set_num_threads(1)
    backbone = load_backbone(str(save_tiny_llava(tmp_path)), parts={"vision"})
    order = order_for(media / "video.mp4")
    row, frames = decode(order, media / "video.mp4")
    assert frames is not None
    video = encode(backbone, order, row, frames, batch_size=4)
    assert (video.kind, len(video.tokens), video.feature_id) == ("video", 8, SPEC.feature_id)
    assert video.duration_s == pytest.approx(4.0, abs=0.1)
    assert torch.equal(video.tokens, backbone.encode_frames(frames, batch_size=4).tokens.bfloat16())
    image_order = order_for(media / "image.png", "image")
    image = encode(backbone, image_order, *decode(image_order, media / "image.png"), batch_size=4)
    assert (image.kind, len(image.tokens)) == ("image", 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_duration_s": 3.0}, "4 s long; at most 3"), ({"max_frame_pixels": 6000}, "96 × 64 pixels")],
)
def test_limits(media, limits, message):
    order = order_for(media / "video.mp4")
    row, frames = decode(order, media / "video.mp4", partial(read_media, limits=MediaLimits(**limits)))
    assert frames is None
    with pytest.raises(RequestError, match=message) as caught:
        encode(None, order, row, frames, batch_size=4)  # media that never become frames need no backbone
    assert (caught.value.status, caught.value.code) == (422, "media_not_decodable")


def test_too_many_frames_and_a_video_as_an_image(media):
    with pytest.raises(RequestError, match="400 too_many_frames"):
        order_for(media / "video.mp4", num_frames=33)
    with pytest.raises(RequestError, match=r"422 .*image_url leads to mp4"):
        order_for(media / "video.mp4", "image")


def test_noise_behind_a_good_beginning_is_quarantined(media):
    broken = media / "broken.mp4"
    broken.write_bytes((media / "video.mp4").read_bytes()[:200] + np.random.default_rng(0).bytes(5000))
    row, frames = decode(order_for(broken), broken)
    assert frames is None
    assert row.status == "quarantined"
