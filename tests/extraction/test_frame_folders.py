"""Folders of frames and GIFs go through extraction as any video does."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from linvt.extraction.decode import decode_input
from linvt.extraction.decode_process import DecodeProcess
from linvt.extraction.fetch import content_sha256, local_copy
from linvt.extraction.frame_folders import frame_folder_uri, split_frame_folder_uri
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import changed_inputs, make_plan
from linvt.extraction.reading import read_media
from linvt.shots import load_detector
from tests.extraction.test_work import SPEC
from tests.media import write_image, write_video


def _write_frames(folder, count=6, first_seed=0):
    for number in range(count):
        write_image(folder / f"c01_{number + 1:04d}.jpeg", seed=first_seed + number)


def _list(tmp_path, *names):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({"media": name, "caption": "x"}) + "\n" for name in names))
    return path


def _decoded(path, read=read_media, frames_fps=2.0, **spec):
    plan = make_plan(list_inputs(str(path), frames_fps=frames_fps), 4)
    return {
        row.media.video_id: decode_input(row, load_detector("none"), replace(SPEC, **spec), read) for row in plan.rows
    }


@pytest.mark.parametrize("uri", ["/data/v_a/@2fps", "s3://b/v a/@29.97fps", "/x/@2fps/@0.5fps"])
def test_a_uri_says_folder_and_rate(uri):
    folder, fps = split_frame_folder_uri(uri)
    assert frame_folder_uri(folder, fps) == uri
    for other in ("/data/v_a", "/data/v_a/", "/data/@2fps.mp4", "@2fps", "/data/@fps", "/data/@2.fps"):
        assert split_frame_folder_uri(other) is None


def test_a_listed_folder_of_frames_is_one_video_and_others_are_none(tmp_path):
    _write_frames(tmp_path / "frames/v_a")
    write_video(tmp_path / "frames/b.mp4")
    (tmp_path / "frames/empty").mkdir()
    _write_frames(tmp_path / "frames/twice", count=2)
    write_image(tmp_path / "frames/twice/other_0001.jpeg")
    names = ("frames/v_a", "frames/v_a/", "frames/b.mp4", "frames/empty", "frames/twice", "frames/gone")
    decoded = _decoded(_list(tmp_path, *names))
    row, frames = decoded["frames/v_a"]
    assert frames is not None
    assert frames.shape == (5, 32, 48, 3)
    assert (row.status, row.kind, row.container, row.num_frames, row.duration_s) == (
        "committed",
        "video",
        "frames",
        6,
        3.0,
    )
    assert row.kept_timestamps_s == [frame / 2 for frame in row.kept_frames]
    assert row.size_bytes == sum(file.stat().st_size for file in (tmp_path / "frames/v_a").iterdir())
    assert row.key is not None
    assert {name: (row.status, row.stage, row.error_class) for name, (row, _) in decoded.items()} == {
        "frames/v_a": ("committed", None, None),
        "frames/b.mp4": ("committed", None, None),
        "frames/empty": ("quarantined", "fetch", "IsADirectoryError"),
        "frames/twice": ("quarantined", "fetch", "NotFramesError"),
        "frames/gone": ("quarantined", "fetch", "FileNotFoundError"),
    }
    # A folder that is searched gives its pictures, as ever.
    assert len(list_inputs(str(tmp_path / "frames"))) == 10


def test_the_process_of_its_own_decodes_the_same(tmp_path):
    _write_frames(tmp_path / "v_a", count=40)
    here, there = _decoded(_list(tmp_path, "v_a")), {}
    with DecodeProcess(stall_timeout_s=60, memory_mb=512) as read:
        there = _decoded(_list(tmp_path, "v_a"), read)
    (row, frames), (other_row, other_frames) = here["v_a"], there["v_a"]
    np.testing.assert_array_equal(frames, other_frames)
    assert (row.key, row.kept_timestamps_s) == (other_row.key, other_row.kept_timestamps_s)


def test_the_key_depends_on_rate_names_and_contents(tmp_path):
    folder = tmp_path / "v_a"
    _write_frames(folder)
    path = _list(tmp_path, "v_a")
    keys = [_decoded(path)["v_a"][0].key, _decoded(path, frames_fps=3)["v_a"][0].key]
    row, _ = _decoded(path, frames_fps=3)["v_a"]
    assert row.duration_s == 2.0
    (folder / "c01_0006.jpeg").rename(folder / "c01_0007.jpeg")
    keys.append(_decoded(path)["v_a"][0].key)
    write_image(folder / "c01_0007.jpeg", seed=99)
    keys.append(_decoded(path)["v_a"][0].key)
    (folder / "notes.txt").write_text("no part of it")
    assert _decoded(path)["v_a"][0].key == keys[-1]
    assert len(set(keys)) == 4


def test_a_folder_whose_frames_come_or_go_is_changed(tmp_path):
    folder = tmp_path / "v_a"
    _write_frames(folder)
    path = _list(tmp_path, "v_a")
    plan = make_plan(list_inputs(str(path)), 4)
    assert changed_inputs(plan, list_inputs(str(path))) == []
    assert len(changed_inputs(plan, list_inputs(str(path), frames_fps=3))) == 1
    os.utime(folder, ns=(0, 1))
    [(_, touched)] = changed_inputs(plan, list_inputs(str(path)))
    before = content_sha256(touched.uri)
    (folder / "c01_0006.jpeg").unlink()
    [(_, changed)] = changed_inputs(plan, list_inputs(str(path)))
    assert changed.uri == touched.uri
    assert content_sha256(changed.uri) != before


def test_frames_on_s3_are_those_on_a_disk(s3, tmp_path):
    _write_frames(tmp_path / "v_a", count=12)
    bucket = s3.make_bucket()
    s3.client().put(str(tmp_path / "v_a"), f"{bucket}/v_a", recursive=True)
    listing = _list(tmp_path, "v_a")
    s3.client().put_file(str(listing), f"{bucket}/list.jsonl")
    remote = f"s3://{bucket}/list.jsonl"
    (row, frames), (local_row, local_frames) = _decoded(remote)["v_a"], _decoded(listing)["v_a"]
    assert row.uri == f"s3://{bucket}/v_a/@2fps"
    assert (row.key, row.sha256, row.size_bytes) == (local_row.key, local_row.sha256, local_row.size_bytes)
    np.testing.assert_array_equal(frames, local_frames)
    assert content_sha256(row.uri) == row.sha256
    before = list_inputs(remote)
    assert list_inputs(remote) == before
    s3.client().put_file(str(write_image(tmp_path / "new.jpeg", seed=77)), f"{bucket}/v_a/c01_0003.jpeg")
    assert list_inputs(remote) != before
    with local_copy(row.uri) as (folder, _):
        assert len(list(folder.iterdir())) == 12
    assert not folder.exists()


def _write_gif(path, durations_ms, *, size=(96, 64)):
    pictures = []
    for seed in range(len(durations_ms)):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0)
    return path, pictures


def test_a_gif_is_a_video_with_its_own_delays(tmp_path):
    path, pictures = _write_gif(tmp_path / "tumblr_a.gif", [100, 200, 300, 100, 500])
    row, frames = _decoded(path)["tumblr_a.gif"]
    assert frames is not None
    assert (row.status, row.kind, row.container, row.codec, row.num_frames) == ("committed", "video", "gif", "gif", 5)
    np.testing.assert_allclose(row.kept_timestamps_s, [0.0, 0.1, 0.3, 0.6, 0.7], atol=1e-6)
    np.testing.assert_allclose(row.duration_s, 1.2, atol=1e-6)
    expected = np.stack([np.asarray(picture.resize((48, 32), Image.Resampling.BICUBIC)) for picture in pictures])
    assert np.abs(frames.astype(int) - expected).mean() < 8  # 256 colours


def test_a_gif_that_stores_only_what_changes_gives_whole_frames(tmp_path):
    """As TGIF's do: later pictures cover a part of the screen, the rest is see-through."""
    still = Image.new("RGB", (96, 64), (200, 30, 30))
    moved = still.copy()
    moved.paste((20, 20, 220), (40, 20, 60, 40))
    still.save(tmp_path / "a.gif", save_all=True, append_images=[moved, still], duration=100, loop=0)
    _, frames = _decoded(tmp_path / "a.gif")["a.gif"]
    assert frames is not None
    assert len(frames) == 3
    for frame, middle in zip(frames, [(200, 30, 30), (20, 20, 220), (200, 30, 30)], strict=True):
        assert np.abs(frame[2, 2].astype(int) - (200, 30, 30)).max() < 16
        assert np.abs(frame[15, 25].astype(int) - middle).max() < 16
