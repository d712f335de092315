"""From published annotation files to visits: GIFs and folders of frames are extracted like any video."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from linvt.annotations.config import ConvertConfig
from linvt.annotations.converting import convert
from linvt.extraction.config import ExtractConfig
from linvt.shards import read_cache
from linvt.training.data import open_sources, plan_visits
from pipelines.extract import extract
from tests.media import write_image, write_video

pytestmark = pytest.mark.ray


@pytest.fixture
def published(tmp_path):
    """ShareGPTVideo, TGIF-QA and Video-ChatGPT, one video of each."""
    media = tmp_path / "media"
    for number in range(1, 7):
        write_image(media / f"v_a-Scene-001/c01_{number:04d}.jpeg", seed=number)
    pictures = [Image.open(media / f"v_a-Scene-001/c01_{number:04d}.jpeg") for number in range(1, 4)]
    pictures[0].save(media / "tumblr_a.gif", save_all=True, append_images=pictures[1:], duration=[100, 300, 200])
    write_video(media / "v_b.mkv")
    conversation = [{"from": "human", "value": "<video>\nWhere?"}, {"from": "gpt", "value": "In a newsroom."}]
    share = {"id": "1", "video": "v_a-Scene-001", "conversations": conversation}
    (tmp_path / "share.jsonl").write_text(json.dumps(share))
    (tmp_path / "tgif.csv").write_text(
        "gif_name\tquestion\tanswer\tvid_id\tkey\ntumblr_a\tHow often ?\t5\tCOUNT2\t16\n"
    )
    (tmp_path / "chatgpt.json").write_text(json.dumps([{"q": "Who?", "a": "A man.", "video_id": "v_b"}]))
    return [tmp_path / name for name in ("share.jsonl", "tgif.csv", "chatgpt.json")]


def test_published_files_lead_to_visits(published, ray_cluster, tiny_llava, tmp_path):
    out = str(tmp_path / "out")
    convert(ConvertConfig(files=tuple(published), out=tmp_path / "all.jsonl", media_root=tmp_path / "media"))
    config = ExtractConfig(
        videos=str(tmp_path / "all.jsonl"),
        media_root=str(tmp_path / "media"),
        frames_fps=4,
        backbone=tiny_llava,
        out=out,
        num_frames=4,
        detector="none",
        num_decode_workers=1,
        num_encode_workers=1,
    )
    assert extract(config)["committed"] == 3
    rows = {row["video_id"]: row for row in pq.read_table(f"{out}/videos.parquet").to_pylist()}
    assert {
        name: (row["kind"], row["container"], row["num_frames"], row["duration_s"]) for name, row in rows.items()
    } == {
        "tumblr_a.gif": ("video", "gif", 3, pytest.approx(0.6)),
        "v_a-Scene-001": ("video", "frames", 6, 1.5),
        "v_b.mkv": ("video", "matroska,webm", 24, 2.0),
    }
    # The published files are trained on as they are: their names find what the cache holds.
    sources = open_sources([str(file) for file in published], formats=["auto"], weights=(), media_prefixes=[""])
    visits = plan_visits(read_cache(out), sources, stage=2, turns_per_visit=5)
    assert {visit.turns[0].answer for visit in visits.visits} == {"In a newsroom.", "5", "A man."}

    # A folder that lost a frame is another video, and only it is extracted again.
    before = read_cache(out)
    (tmp_path / "media/v_a-Scene-001/c01_0006.jpeg").unlink()
    assert extract(replace(config, on_existing="resume"))["committed"] == 3
    after = read_cache(out)
    assert len(after) == 3
    assert {name for name in after.video_ids if after.video_ids[name] != before.video_ids[name]} == {"v_a-Scene-001"}
